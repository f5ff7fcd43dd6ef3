import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.speed import device
from benchmarks.speed.harness import Plan
from benchmarks.speed.labeler_tables import plot
from benchmarks.speed.labelers import measure_speed
from benchmarks.speed.methods import Workload
from tests.benchmarks.speed.helpers import QUICK, SETTINGS, check_numbers
from tests.helpers import TINY


def test_random_weights_measure_the_device_alone(images, short_sweeps, tmp_path):
    workload = Workload(TINY, random_weights=True, settings={**SETTINGS, "refine": "none"})
    results = measure_speed(Plan(workload, images, **QUICK))
    figures = results.figures
    check_numbers(figures)
    for precision, batch in itertools.product(("fp32", "bf16"), (1, 2)):
        rate = figures[f"device.{precision}.batch_{batch}.features_images_per_s"]
        assert 0 < rate <= figures["device.features_images_per_s"]
    assert figures["device.release.masks_per_image"] == 3  # the replayed ones
    presets = ("release", "best", "fast")
    ways = ("", ".refined_there", ".all_there")
    for name in (f"{preset}{way}" for preset in presets for way in ways):
        rate = figures[f"device.{name}.images_per_s"]
        assert figures[f"device.{name}.imagenet_hours"] == pytest.approx(1281167 / rate / 3600)
        waits = figures[f"device.{name}.network_waits"]
        assert waits == pytest.approx(max(0, 1 - rate / figures["device.features_images_per_s"]))
    assert "total.ratio_to_released" not in figures
    assert not any("iou" in name for name in figures)
    text = results.markdown()
    assert "three discs an image" in text
    assert "times faster" not in text
    plot(figures, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_masks_of_a_device_are_compared_with_the_cpu(workload, images):
    found = device.masks_by_device(workload, images[:1])
    assert list(found) == ["cpu", "fp32", "bf16"]
    assert np.array_equal(found["cpu"][0], found["fp32"][0])
    assert found["bf16"][0].shape[1:] == (12, 12)


def test_the_device_refines_as_the_cpu(workload, images):
    guided = workload.with_settings({"refine_min_iou": 0, "keep_aspect": False})
    ours, theirs = device.refined_twice(guided, "best", images[:2])
    assert len(ours) == len(theirs) == 2
    assert device.agreement(ours, theirs) > 0.999
    assert len(ours[0]) > 1


def test_the_device_finds_the_masks_of_the_cpu(workload, images):
    ours, theirs = device.masks_twice(workload, "best", images[:1])
    assert device.identical(ours, theirs) == 1
    assert len(ours[0]) > 1


def test_a_workload_is_compiled_where_it_says_so():
    def extractor(backbone, vit, precision, compiled):
        return SimpleNamespace(to=lambda device: (precision, compiled, device))

    workload = Workload(TINY, random_weights=True, precision="bf16", compiled=True)
    assert workload.extractor(extractor) == ("bf16", True, "cpu")


def test_discs_are_apart_and_of_their_size():
    masks = device.disc_masks(60, 90)
    assert masks.shape == (3, 60, 90)
    assert masks.sum(axis=0).max() == 1
    assert masks.mean(axis=(1, 2)) == pytest.approx([0.03, 0.06, 0.12], rel=0.05)
