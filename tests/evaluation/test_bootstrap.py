"""Intervals over images: exact draws, figures by hand, the paired difference, the tool's option."""

from __future__ import annotations

import json

import numpy as np
import pytest

from promerge_d2.evaluation import (
    METRICS,
    align_predictions,
    bootstrap,
    format_bootstrap,
    match_instances,
    metrics_of,
)
from promerge_d2.utils.errors import UserError
from tests.evaluation.helpers import plain_pycocotools, random_case
from tests.helpers import parse_ground_truth, parse_predictions, run_tool

HIT, MISS = (20, 0, 40, 40), (150, 60, 40, 30)


def _matches(truth, guesses, iou_type="segm", **options):
    ground_truth = parse_ground_truth(truth, "truth.json")
    placed = align_predictions(parse_predictions(guesses, "labels.json"), ground_truth)
    return match_instances(ground_truth, placed, iou_type, **options)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_a_draw_is_a_ground_truth_with_copies_of_its_images(seed, iou_type):
    truth, guesses = random_case(seed)
    rng = np.random.default_rng(seed)
    for guess, score in zip(guesses, rng.permutation(len(guesses)), strict=True):
        guess["score"] = float(score)
    matches = _matches(truth, guesses, iou_type)
    draws = rng.multinomial(12, [1 / 12] * 12, 3)
    for draw, figures in zip(draws, matches.figures(draws), strict=True):
        copies = {**truth, "images": [], "annotations": []}
        copied = []
        for image_id, count in zip(matches.image_ids, draw, strict=True):
            image = next(image for image in truth["images"] if image["id"] == image_id)
            for _ in range(count):
                new = {"image_id": len(copies["images"]) + 1}
                copies["images"].append({**image, "id": new["image_id"]})
                for record in truth["annotations"]:
                    if record["image_id"] == image_id:
                        new_id = {"id": len(copies["annotations"]) + 1}
                        copies["annotations"].append({**record, **new, **new_id})
                copied += [{**guess, **new} for guess in guesses if guess["image_id"] == image_id]
        expected = plain_pycocotools(copies, copied, iou_type)
        assert np.nan_to_num(figures, nan=-1).tolist() == list(expected.values())


def test_interval_of_a_recall_by_hand(coco):
    # 100 images of one object, 40 found: the recall of a draw is binomial(100, 0.4) / 100,
    # whose 2.5 and 97.5 per cent points are 0.31 and 0.50
    truth = coco([(i, *HIT) for i in range(1, 101)], images=range(1, 101))
    found = coco([(i, *HIT) for i in range(1, 41)], images=range(1, 101))
    result = bootstrap(_matches(truth, found), resamples=4000)
    (recall,) = result["AR100"]
    assert recall.value == pytest.approx(40)
    assert recall.low == pytest.approx(31, abs=1)
    assert recall.high == pytest.approx(50, abs=1)
    assert result["APs"][0].value is None
    assert list(result) == list(METRICS)
    assert "| mask APs   | - " in format_bootstrap({"segm": result})


def test_the_paired_difference_is_surer_than_its_sides(coco):
    images = range(1, 101)
    truth = coco([(i, *HIT) for i in images], images=images)
    first = _matches(truth, coco([(i, *HIT) for i in range(1, 51)], images=images))
    second = _matches(truth, coco([(i, *HIT) for i in range(1, 46)], images=images))
    one, other, difference = bootstrap(first, second)["AR100"]
    assert (one.value, other.value) == pytest.approx((50, 45))
    assert difference.value == pytest.approx(5)
    # five images decide: a draw has binomial(100, 0.05) of them, 1 to 10 with 95 %
    assert 0 < difference.low <= 2
    assert 9 <= difference.high <= 10
    assert difference.high - difference.low < (one.high - one.low) / 1.5
    assert bootstrap(first, second) == bootstrap(first, second)
    assert bootstrap(first, second, seed=1) != bootstrap(first, second)


def test_the_same_run_twice_differs_by_nothing(coco):
    truth, guesses = random_case(3)
    matches = _matches(truth, guesses)
    for name, (one, other, difference) in bootstrap(matches, matches, resamples=50).items():
        assert one == other, name
        assert difference.value in (None, 0)
        assert difference.low == difference.high
        assert one.value is None or one.low <= one.high


def test_what_cannot_be_compared_is_refused(coco):
    one = _matches(coco([(1, *HIT)]), coco([(1, *HIT)]))
    other = _matches(coco([(1, *HIT), (1, *MISS)]), coco([(1, *HIT)]))
    more = _matches(coco([(1, *HIT)]), coco([(1, *HIT)]), max_detections=300)
    for second in (other, more):
        with pytest.raises(UserError, match="same ground truth"):
            bootstrap(one, second)
    with pytest.raises(UserError, match=r"resamples.*\b0\b"):
        bootstrap(one, resamples=0)


def test_many_images_at_once_change_nothing(monkeypatch, coco):
    truth, guesses = random_case(2)
    whole = _matches(truth, guesses)
    monkeypatch.setattr("promerge_d2.evaluation.matches._IMAGES_AT_ONCE", 5)
    parts = _matches(truth, guesses)
    assert metrics_of(parts) == metrics_of(whole)
    draws = np.random.default_rng(0).multinomial(12, [1 / 12] * 12, 20)
    figures = whole.figures(draws)
    monkeypatch.setattr("promerge_d2.evaluation.matches._CELLS_AT_ONCE", 1)
    assert np.array_equal(whole.figures(draws), figures, equal_nan=True)


def test_more_than_100_detections(coco):
    grid = [(1, 15 * (k % 13), 10 * (k // 13), 12, 8) for k in range(120)]
    truth = coco(grid)
    metrics = metrics_of(_matches(truth, truth, max_detections=1000))
    assert metrics["AR1000"] == 100
    assert metrics["AR100"] == pytest.approx(100 * 100 / 120)
    assert {k: v for k, v in metrics.items() if k != "AR1000"} == metrics_of(_matches(truth, truth))


def test_the_tool_prints_both_and_their_difference(monkeypatch, capsys, coco, save, tmp_path):
    images = range(1, 21)
    truth = save("truth.json", coco([(i, *HIT) for i in images], images=images))
    labels = save("labels.json", coco([(i, *HIT) for i in range(1, 16)], images=images))
    other = save("other.json", coco([(i, *HIT) for i in range(1, 11)], images=images))
    code = run_tool(
        monkeypatch,
        "evaluate_labels.py",
        *("--predictions", labels, "--ground-truth", truth, "--against", other),
        *("--json", tmp_path / "s.json", "--iou-types", "segm"),
    )
    assert code == 0
    scores = json.loads((tmp_path / "s.json").read_text())
    row = scores["intervals"]["segm.AR100"]
    assert [row[side][0] for side in ("this", "other", "difference")] == [75, 50, 25]
    assert row["difference"][1] < 25 < row["difference"][2]
    assert scores["intervals"]["segm.APs"]["this"] == [None, None, None]
    assert scores["against"] == str(other)
    out = capsys.readouterr().out
    assert f"Against {other}:" in out
    assert "| mask AR100 | 75.00 [" in out
