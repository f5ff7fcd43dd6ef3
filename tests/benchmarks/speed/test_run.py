"""A tiny benchmark in this process: names and consistency of figures; no time is asserted."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from benchmarks.speed import device, run, store
from benchmarks.speed.harness import Plan, Results
from benchmarks.speed.measure import Figures
from benchmarks.speed.methods import METHODS, Workload
from benchmarks.speed.report import BEGIN, END, digits, markdown, plot, write_markdown
from benchmarks.speed.run import masks_to_refine, run_benchmark
from benchmarks.speed.tasks import AFTER, BEFORE
from promerge_d2.labeler import ProMergeConfig
from promerge_d2.labeler.refine import REFINERS
from promerge_d2.pseudo_labels import LocalEngine
from promerge_d2.utils.errors import UserError
from tests.benchmarks.speed.helpers import shorten_sweeps
from tests.helpers import ROOT, TINY, photo, save_image, use_tiny

SETTINGS = {"grid": (12, 12), "stride": 2}
QUICK = {
    "whole": 2,
    "reference": 2,
    "repeats": 2,
    "slow_repeats": 1,
    "fresh": False,
    "annotations": ROOT / "datasets/sample/annotations.json",
    "seconds": 0.01,
    "stream": 4,
}


def scene(seed):
    """Three bright objects of whole patches."""
    pixels = photo(box=(84, 16, 108, 32), seed=seed)
    pixels[40:56, 12:36] = (200, 60, 40)
    pixels[64:88, 60:84] = (40, 200, 90)
    return pixels


@pytest.fixture
def short_sweeps(monkeypatch):
    shorten_sweeps(monkeypatch)


@pytest.fixture
def images(tmp_path):
    return tuple(save_image(tmp_path / f"{seed}.png", scene(seed)) for seed in range(3))


@pytest.fixture
def workload(monkeypatch, tmp_path):
    weights = use_tiny(monkeypatch, tmp_path)
    return Workload(TINY, weights=str(weights), settings=SETTINGS)


def check_numbers(figures):
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    for name, value in figures.items():
        assert type(value) in (int, float), name
        assert value >= 0, name
        if name.endswith(".iqr"):
            assert name.removesuffix(".iqr") in figures


def test_every_figure(workload, images, short_sweeps, tmp_path):
    pytest.importorskip("pydensecrf")
    results = run_benchmark(Plan(workload, images, full=True, **QUICK))
    figures = results.figures
    check_numbers(figures)

    assert figures["images"] == figures["masks.images"] == figures["refine.images"] == 3
    assert figures["masks.images_identical"] == 3
    assert figures["masks.prompts"] == 36
    assert figures["masks_per_image"] == 3
    assert figures["refine.masks"] == 9
    assert figures["refine.masks_added"] == 0
    for name in METHODS:
        assert figures[f"{name}.images"] == 2
        if name != "best":  # which proposes regions of all scales
            assert figures[f"{name}.refined_per_image"] == 3
        stages = [figures[f"{name}.{stage}_s"] for stage in (*BEFORE, *AFTER)]
        # each figure is a mean of medians: over two repeats these add up
        assert figures[f"{name}.total_s"] == pytest.approx(sum(stages))
        assert figures[f"{name}.after_features_s"] == pytest.approx(sum(stages[2:]))
        assert figures[f"{name}.images_per_s"] == pytest.approx(1 / figures[f"{name}.total_s"])
        assert figures[f"{name}.peak_mb"] > 0
    assert figures["maskcut.images_identical"] == 2
    assert figures["features.max_difference"] < 1e-5

    def check_ratio(name, slow, fast):
        assert figures[name] == pytest.approx(figures[slow] / figures[fast]), name

    check_ratio("masks.ratio_to_released", "masks.released_s", "masks.ours_s")
    check_ratio("features.ratio_to_released", "released.features_s", "ours.features_s")
    check_ratio("total.bound_by_features", "released.total_s", "ours.features_s")
    check_ratio("total.best_to_ours", "best.total_s", "ours.total_s")
    assert figures["best.masks_per_image"] > 3
    for part, seconds in (("total", "total_s"), ("after_features", "after_features_s")):
        check_ratio(f"{part}.ratio_to_released", f"released.{seconds}", f"ours.{seconds}")
        reference, ours = f"maskcut_reference.{seconds}", f"to_maskcut.ours.{seconds}"
        check_ratio(f"{part}.ratio_to_maskcut", reference, ours)
    for other, name in (("released", "released"), ("maskcut", "maskcut_reference")):
        check_ratio(
            f"after_features.throughput_ratio_to_{other}",
            "ours.throughput_images_per_s",
            f"{name}.throughput_images_per_s",
        )
    assert figures["throughput.processes"] == 2
    assert (
        figures["total.ratio_to_released"]
        < figures["total.bound_by_features"]
        == pytest.approx(figures["released.total_s"] / figures["ours.features_s"])
    )

    refiners = [name for name, refiner in REFINERS.items() if refiner]
    for name in ("released", *refiners):
        check_ratio(
            f"refiner.{name}.ratio_to_released",
            "refiner.released.seconds_per_image",
            f"refiner.{name}.seconds_per_image",
        )
        assert figures[f"refiner.{name}.mean_iou"] >= figures[f"refiner.{name}.min_iou"]
        assert 0.9 < figures[f"refiner.{name}.mean_iou"] <= 1
        assert 0.9 < figures[f"refiner.{name}.share_above_0.95"] <= 1
    default = ProMergeConfig().refine
    for item in ("ratio_to_released", "mean_iou", "share_above_0.95", "seconds_per_image"):
        assert figures[f"refine.{item}"] == figures[f"refiner.{default}.{item}"]

    for side, name in itertools.product((8, 12), ("ours", "released")):
        stages = [figures[f"sweep.grid.{side}.{name}.{stage}_s"] for stage in ("features", "masks")]
        assert sum(stages) < figures[f"sweep.grid.{side}.{name}.total_s"]
    assert {"sweep.prompts.9.ours.masks_s", "sweep.prompts.36.released.masks_s"} <= figures.keys()
    assert "sweep.masks.2.released.refinement_s" in figures
    assert not any(name.startswith("sweep.masks.500.") for name in figures)
    assert "sweep.workers.0.images_per_s" in figures
    assert figures["sweep.images.3.seconds"] < figures["sweep.images.5.seconds"]
    assert not any(name.startswith("device.") for name in figures)

    text = markdown(results)
    assert "not measured: --device cuda" in text
    assert "| 36 |" in text
    assert (
        "With 36 prompts, masks on the grid are identical to the released-style ones on 3 of 3"
        in text
    )
    assert "those of `maskcut` to the dense solver's on 2 of 2" in text
    assert "What bounds us: " in text
    assert "No image has 500 masks" in text
    assert "3 images with 3 to 6 masks each, 9 in all" in text
    for file, start in (("plot.png", b"\x89PNG"), ("plot.svg", b"<?xml")):
        plot(results, tmp_path / file)
        assert (tmp_path / file).read_bytes().startswith(start)


def test_random_weights_measure_the_device_alone(images, short_sweeps, tmp_path):
    workload = Workload(TINY, random_weights=True, settings={**SETTINGS, "refine": "none"})
    results = run_benchmark(Plan(workload, images, **QUICK))
    figures = results.figures
    check_numbers(figures)
    for precision, batch in itertools.product(("fp32", "bf16"), (1, 2)):
        rate = figures[f"device.{precision}.batch_{batch}.features_images_per_s"]
        assert 0 < rate <= figures["device.features_images_per_s"]
    assert figures["device.masks_per_image"] == 3  # the replayed ones
    rate = figures["device.images_per_s"]
    assert figures["device.imagenet_hours"] == pytest.approx(1281167 / rate / 3600)
    assert "total.ratio_to_released" not in figures
    assert not any("iou" in name for name in figures)
    text = markdown(results)
    assert "replaying 3 stored masks an image" in text
    assert "times faster" not in text
    plot(results, tmp_path / "plot.png")


def test_masks_of_a_device_are_compared_with_the_cpu(workload, images):
    found = device.masks_by_device(workload, images[:1])
    assert list(found) == ["cpu", "fp32", "bf16"]
    assert np.array_equal(found["cpu"][0], found["fp32"][0])
    assert found["bf16"][0].shape[1:] == (12, 12)


def test_annotated_objects_become_mask_sets(tmp_path):
    box = [0, 0, 50, 0, 50, 100, 0, 100]  # left half of 100x100
    strip = [0, 75, 100, 75, 100, 100, 0, 100]  # lowest quarter
    annotations = [
        {"image_id": image, "segmentation": [polygon]}
        for image, polygons in ((1, [box, strip, box, strip]), (2, [box]))
        for polygon in polygons
    ]
    sizes = [{"id": image, "width": 100, "height": 100} for image in (1, 2)]
    (tmp_path / "a.json").write_text(json.dumps({"images": sizes, "annotations": annotations}))
    device.save_annotated_masks(tmp_path / "a.json", tmp_path / "masks.npy", (8, 4))
    sets = np.load(tmp_path / "masks.npy")
    assert sets.shape == (1, 3, 8, 4)  # the second photograph has too few
    left, low = np.zeros((8, 4), bool), np.zeros((8, 4), bool)
    left[:, :2] = low[6:] = True
    assert np.array_equal(sets[0], [left, low, left])


def test_without_pydensecrf_the_rest_is_measured(workload, images, monkeypatch):
    def missing(name):
        raise UserError(f"the refiner {name} needs pydensecrf")

    monkeypatch.setattr(run, "check_refiner", missing)
    results = run_benchmark(Plan(workload, images, **QUICK))
    assert results.figures["masks.ratio_to_released"] > 0
    assert not any(name.startswith(("refine", "total")) for name in results.figures)
    notes = " ".join(results.notes)
    assert "Refinement is not measured: the refiner dense_crf needs pydensecrf" in notes
    assert "--set refine=none" in notes
    assert "| Refinement, to released-style | not measured | not measured |" in markdown(results)

    # with no refinement to do, the whole way can be measured
    plain = workload.with_settings({"refine": "none"})
    assert run_benchmark(Plan(plain, images, **QUICK)).figures["total.ratio_to_released"] > 0


def test_too_few_images_are_refused(workload, images):
    with pytest.raises(
        UserError, match=r"1 images.* too few for 2 processes; give each at least 2"
    ):
        Plan(workload, images[:1])


def test_masks_to_refine_are_filled_up_to_three():
    features = torch.zeros(4, 20, 20)
    features[0] = 1
    for channel, (row, column) in enumerate(((2, 2), (2, 12), (12, 6)), start=1):
        features[:, row : row + 4, column : column + 4] = 0
        features[channel, row : row + 4, column : column + 4] = 1
    config = ProMergeConfig(grid=20, stride=2)
    one = np.zeros((1, 20, 20), bool)
    one[0, 2:6, 2:6] = True
    filled = masks_to_refine(features, one, config)
    assert len(filled) == 3
    assert np.array_equal(filled[0], one[0])
    assert {tuple(np.argwhere(mask)[0]) for mask in filled} == {(2, 2), (2, 12), (12, 6)}
    assert all(mask.sum() == 16 for mask in filled)
    many = np.repeat(one, 9, axis=0)
    assert len(masks_to_refine(features, many, config)) == 6
    assert len(masks_to_refine(torch.ones(4, 20, 20), one, config)) == 1


def results_with(**figures):
    return Results("a title", Figures({"run.seconds": 12.0, **figures}), ["A note."])


def test_markdown_replaces_the_block_and_nothing_else(tmp_path):
    file = tmp_path / "page.md"
    file.write_text(f"# Head\n\n{BEGIN}\nold\n{END}\n\nTail\n")
    write_markdown(markdown(results_with()), file)
    first = file.read_text()
    assert first.startswith(f"# Head\n\n{BEGIN}\n")
    assert first.endswith(f"\n{END}\n\nTail\n")
    assert "old" not in first
    assert "a title; the benchmark took 12 s." in first
    assert "* A note." in first
    write_markdown(markdown(results_with()), file)
    assert file.read_text() == first

    write_markdown(markdown(results_with()), tmp_path / "new.md")
    assert (tmp_path / "new.md").read_text().startswith(BEGIN)


@pytest.mark.parametrize("text", ["# No place\n", f"{END}\n{BEGIN}\n", f"{BEGIN}{BEGIN}{END}"])
def test_a_page_without_a_place_is_left_alone(tmp_path, text):
    file = tmp_path / "page.md"
    file.write_text(text)
    with pytest.raises(UserError, match=r"page\.md has no place for the tables"):
        write_markdown(markdown(results_with()), file)
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("value", "text"), [(123.4, "123"), (12.34, "12.3"), (0.01234, "0.0123"), (2.0, "2"), (0, "0")]
)
def test_digits(value, text):
    assert digits(value, 3) == text
    assert math.isclose(float(digits(value, 3)), value, rel_tol=5e-3)


def test_the_store(workload, images, monkeypatch):
    monkeypatch.setattr(store, "READY", 7)
    rates = []
    monkeypatch.setattr(  # without processes
        store, "LocalEngine", lambda workers=0: rates.append(workers) or LocalEngine(0)
    )
    results = run_benchmark(Plan(workload, images, store=True, **QUICK))
    check_numbers(results.figures)
    assert rates == [0, 0, 1, 2, 1, 2]  # stored twice, then the workers in turns
    figures = results.figures
    assert figures["store.own_percent"] == pytest.approx(
        figures["store.own_ms"] / figures["store.labeler_s"] / 10
    )
    assert "masks.ratio_to_released" not in figures
    text = markdown(results)
    assert "| Stored images/s, 2 workers | " in text
    assert "not measured" not in text
