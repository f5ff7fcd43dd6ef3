"""A tiny benchmark in this process: names and consistency of figures; no time is asserted."""

import itertools

import numpy as np
import pytest
import torch

from benchmarks.measure import Samples
from benchmarks.speed import labelers, tasks
from benchmarks.speed.harness import Plan, after, running, total
from benchmarks.speed.labeler_tables import plot
from benchmarks.speed.labelers import REGIONS, masks_to_refine, measure_speed
from benchmarks.speed.methods import METHODS
from benchmarks.speed.tasks import AFTER, BEFORE, Finished
from promerge_d2.labeler import ProMergeConfig
from promerge_d2.labeler.refine import REFINERS
from promerge_d2.utils.errors import UserError
from tests.benchmarks.speed.helpers import QUICK, check_numbers


def test_the_whole_way_is_the_sum_of_the_stages():
    stages = {
        name: Samples(np.array([[10.0**place]])) for place, name in enumerate((*BEFORE, *AFTER))
    }
    assert total(stages).values.item() == 11111
    assert after(stages).values.item() == 11100


def test_every_figure(workload, images, short_sweeps, tmp_path):
    pytest.importorskip("pydensecrf")
    results = measure_speed(Plan(workload, images, full=True, **QUICK))
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
        if name not in REGIONS:  # which propose regions of all scales
            assert figures[f"{name}.refined_per_image"] == 3
        stages = [figures[f"{name}.{stage}_s"] for stage in (*BEFORE, *AFTER)]
        # each figure is a mean of medians: over two repeats these add up
        assert figures[f"{name}.total_s"] == pytest.approx(sum(stages))
        assert figures[f"{name}.after_features_s"] == pytest.approx(sum(stages[2:]))
        assert figures[f"{name}.images_per_s"] == pytest.approx(1 / figures[f"{name}.total_s"])
        assert figures[f"{name}.peak_mb"] > 0
    assert figures["maskcut.images_identical"] == 2
    assert figures["features.max_difference"] < 1e-5

    assert figures["best.masks_per_image"] > 3
    assert figures["throughput.processes"] == 2

    refiners = [name for name, refiner in REFINERS.items() if refiner]
    for name in ("released", *refiners):
        slow, fast = (figures[f"refiner.{r}.seconds_per_image"] for r in ("released", name))
        assert figures[f"refiner.{name}.ratio_to_released"] == pytest.approx(slow / fast)
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

    text = results.markdown()
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
        plot(figures, tmp_path / file)
        assert (tmp_path / file).read_bytes().startswith(start)


def test_without_pydensecrf_the_rest_is_measured(workload, images, monkeypatch):
    def missing(name):
        raise UserError(f"the refiner {name} needs pydensecrf")

    monkeypatch.setattr(labelers, "check_refiner", missing)
    results = measure_speed(Plan(workload, images, **QUICK))
    assert results.figures["masks.ratio_to_released"] > 0
    assert not any(name.startswith(("refine", "total")) for name in results.figures)
    notes = " ".join(results.notes)
    assert "Refinement is not measured: the refiner dense_crf needs pydensecrf" in notes
    assert "--set refine=none" in notes
    assert "| Refinement, to released-style | not measured | not measured |" in results.markdown()

    # with no refinement to do, the whole way can be measured
    plain = workload.with_settings({"refine": "none"})
    assert measure_speed(Plan(plain, images, **QUICK)).figures["total.ratio_to_released"] > 0


def test_too_few_images_are_refused(workload, images):
    with pytest.raises(
        UserError, match=r"1 images.* too few for 2 processes; give each at least 2"
    ):
        Plan(workload, images[:1])


def test_ratios_are_of_sums_over_the_same_images(monkeypatch, workload, images):
    """Stages take what a table says; every ratio of the whole way is worked out by hand."""
    slow = {"decoding": 1, "features": 50, "masks": 20, "refinement": 8, "encoding": 1}
    fast = {"decoding": 1, "features": 10, "masks": 2, "refinement": 4, "encoding": 1}
    eigenproblem = {**slow, "masks": 300}
    costs = {"released": slow, "ours": fast, "maskcut_reference": eigenproblem}
    kept = {}

    def grows(name, file):  # seconds differ from image to image, and not alike for all methods
        return images.index(file) + 1 if name == "ours" else 10 ** images.index(file)

    def take(name, stages, files, repeats):
        seconds = costs.get(name, fast)
        return {
            stage: Samples(np.array([[seconds[stage] * grows(name, f)] * repeats for f in files]))
            for stage in stages
        }

    def extract(workload, name, files, folder):
        kept[folder] = files
        return take(name, BEFORE, files, 1)

    def finish(workload, name, folder, places, repeats, together=False):
        files = [kept[folder][place] for place in places]
        masks = [np.ones((1, 2, 2), bool)] * len(files)
        return Finished(take(name, AFTER, files, repeats), 1.0, masks, [1] * len(files))

    monkeypatch.setattr(labelers, "feature_difference", lambda *_: 0.0)
    monkeypatch.setattr(tasks, "extract", extract)
    monkeypatch.setattr(tasks, "finish", finish)
    plan = Plan(workload, images, **{**QUICK, "whole": 3, "reference": 2})
    with running(plan) as bench:
        labelers.measure_whole(bench, bench.extract("ours", range(3)))
        labelers.measure_throughput(bench)
    figures = bench.figures
    # released: 80 * (1, 10, 100); ours: 18 * (1, 2, 3), of that 10 the features
    assert figures["released.images"] == figures["ours.images"] == 3
    assert figures["released.total_s"] == pytest.approx(80 * 111 / 3)
    assert figures["ours.after_features_s"] == pytest.approx(7 * 6 / 3)
    assert figures["ours.images_per_s"] == pytest.approx(3 / (18 * 6))
    assert figures["total.ratio_to_released"] == pytest.approx(80 * 111 / (18 * 6))
    assert figures["features.ratio_to_released"] == pytest.approx(50 * 111 / (10 * 6))
    assert figures["after_features.ratio_to_released"] == pytest.approx(29 * 111 / (7 * 6))
    assert figures["total.bound_by_features"] == pytest.approx(80 * 111 / (10 * 6))
    assert figures["total.best_to_ours"] == pytest.approx(18 * 111 / (18 * 6))
    # the eigenproblem: 360 * (1, 10) on the first and the second of the three images
    assert figures["maskcut_reference.images"] == 2
    assert figures["to_maskcut.ours.total_s"] == pytest.approx(18 * 3 / 2)
    assert figures["total.ratio_to_maskcut"] == pytest.approx(360 * 11 / (18 * 3))
    assert figures["total.ratio_to_maskcut_same_features"] == pytest.approx(
        (310 * 11 + 10 * 3) / (18 * 3)
    )
    assert figures["total.bound_by_features_to_maskcut"] == pytest.approx(360 * 11 / (10 * 3))
    assert figures["after_features.ratio_to_maskcut"] == pytest.approx(309 * 11 / (7 * 3))
    # two processes, each with its share
    assert figures["ours.throughput_images_per_s"] == pytest.approx(2 * 3 / (7 * 6))
    assert figures["after_features.throughput_ratio_to_released"] == pytest.approx(
        29 * 111 / (7 * 6)
    )
    assert figures["after_features.throughput_ratio_to_maskcut"] == pytest.approx(
        309 * 11 / (7 * 3)
    )


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
