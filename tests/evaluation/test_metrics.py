"""Figures worked out by hand, and equality with plain pycocotools."""

from __future__ import annotations

import contextlib
import copy
import io
import subprocess
import sys

import pytest
from pycocotools.coco import COCO

from promerge_d2.evaluation import METRICS, flat_metrics, format_table
from promerge_d2.utils.errors import UserError
from tests.evaluation.helpers import plain_pycocotools, random_case

SMALL, MEDIUM, LARGE = (0, 0, 10, 10), (20, 0, 40, 40), (80, 0, 98, 98)
MISS = (150, 60, 40, 30)  # medium, meets none of the others but LARGE, IoU below 0.5


def _one_object_and_two_guesses(hit_score, miss_score, hit_first=True):
    hit, miss = (1, *MEDIUM, {"score": hit_score}), (1, *MISS, {"score": miss_score})
    return [hit, miss] if hit_first else [miss, hit]


@pytest.mark.parametrize(
    ("guesses", "ap"),
    [
        (_one_object_and_two_guesses(0.9, 0.1), 100),
        (_one_object_and_two_guesses(0.1, 0.9), 50),  # precision 1/2 at every recall
        (_one_object_and_two_guesses(0.5, 0.5), 100),  # a tie: the first of the file first
        (_one_object_and_two_guesses(0.5, 0.5, hit_first=False), 50),
    ],
)
def test_hit_and_false_positive(coco, score, guesses, ap):
    results = score(coco([(1, *MEDIUM)]), coco(guesses))
    for metrics in results.values():
        assert [metrics[name] for name in ("AP", "AP50", "APm")] == pytest.approx([ap] * 3)
        assert metrics["AR100"] == metrics["ARm"] == 100
        assert metrics["AR1"] == (100 if ap == 100 else 0)
        assert metrics["APs"] == metrics["APl"] == metrics["ARs"] == metrics["ARl"] == -1
    assert list(results) == ["bbox", "segm"]
    assert all(tuple(metrics) == METRICS for metrics in results.values())


def test_iou_decides_the_thresholds(coco, score):
    # 40 x 40 against 40 x 34 inside it: IoU 0.85, a hit at 8 of the 10 thresholds (0.5 ... 0.85)
    results = score(coco([(1, 20, 0, 40, 40)]), coco([(1, 20, 0, 40, 34)]))
    for metrics in results.values():
        assert metrics["AP"] == metrics["AR100"] == pytest.approx(80)
        assert metrics["AP50"] == metrics["AP75"] == pytest.approx(100)


def test_half_of_the_objects(coco, score):
    # recall 1/2 with precision 1: 51 of the 101 recall points, 0, 0.01, ..., 0.5
    results = score(coco([(1, *SMALL), (1, *MEDIUM)]), coco([(1, *SMALL)]))
    for metrics in results.values():
        assert metrics["AP"] == pytest.approx(100 * 51 / 101)
        assert metrics["AR100"] == 50
        assert metrics["APs"] == pytest.approx(100)
        assert metrics["APm"] == 0


def test_ties_across_images_go_by_ascending_id(coco, score):
    truth = coco([(9, *MEDIUM)], images=(10, 9))
    hit, miss = (9, *MEDIUM), (10, *MEDIUM)
    for guesses in ([hit, miss], [miss, hit]):  # the order of the file does not matter here
        assert score(truth, coco(guesses, images=(10, 9)))["segm"]["AP"] == pytest.approx(100)
    truth = coco([(10, *MEDIUM)], images=(10, 9))
    guesses = [(10, *MEDIUM), (9, *MEDIUM)]
    assert score(truth, coco(guesses, images=(10, 9)))["segm"]["AP"] == pytest.approx(50)


def test_classes_are_not_looked_at(coco, score):
    truth = coco([(1, *SMALL), (1, *MEDIUM)])
    guesses = copy.deepcopy(truth["annotations"])
    for guess in guesses:
        guess["category_id"] = 99
    assert score(truth, guesses)["segm"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("counts", [(1, 0, 3), (12, 2, 1, 10), (120, 5)])
def test_truth_scored_as_predictions(coco, score, counts):
    objects, images = [], range(1, len(counts) + 1)
    for image_id, count in zip(images, counts, strict=True):
        objects += [(image_id, 15 * (k % 13), 10 * (k // 13), 12, 8) for k in range(count)]
    truth = coco(objects, images=images)
    for metrics in score(truth, copy.deepcopy(truth)).values():
        for k in (1, 10, 100):
            closed_form = 100 * sum(min(k, n) for n in counts) / sum(counts)
            assert metrics[f"AR{k}"] == pytest.approx(closed_form)
        if max(counts) <= 100:
            assert metrics["AP"] == pytest.approx(100)
            assert metrics["APs"] == metrics["ARs"] == pytest.approx(100)
        assert metrics["APm"] == metrics["APl"] == metrics["ARm"] == metrics["ARl"] == -1


def test_an_annotation_with_id_zero_counts(coco, score):
    truth = coco([(1, *MEDIUM, {"id": 0})])
    assert score(truth, coco([(1, *MEDIUM)]))["segm"]["AP"] == pytest.approx(100)


def test_crowd_regions_are_ignored(coco, score):
    crowd = (1, 100, 0, 100, 100, {"iscrowd": 1})
    inside, outside = (1, 110, 10, 40, 40, {"score": 0.9}), (1, 60, 0, 35, 35, {"score": 0.9})
    hit = (1, *MEDIUM, {"score": 0.5})
    truth = coco([(1, *MEDIUM), crowd])
    # what lies in the crowd is neither right nor wrong; beside it, it is wrong
    assert score(truth, coco([inside, hit]))["segm"]["AP"] == pytest.approx(100)
    assert score(truth, coco([outside, hit]))["segm"]["AP"] == pytest.approx(50)
    # the crowd itself is no object: predicting it is not needed, and a crowd prediction is dropped
    results = score(truth, coco([crowd, hit]))
    assert results["bbox"]["AR100"] == results["segm"]["AR100"] == 100


def test_size_classes(coco, score):
    truth = coco([(1, *SMALL), (2, *MEDIUM), (3, *LARGE)], images=(1, 2, 3))
    results = score(truth, coco([(1, *SMALL), (3, *LARGE)], images=(1, 2, 3)))
    for metrics in results.values():
        assert metrics["APs"] == metrics["APl"] == pytest.approx(100)
        assert metrics["ARs"] == metrics["ARl"] == 100
        assert metrics["APm"] == metrics["ARm"] == 0
        assert metrics["AR100"] == pytest.approx(100 * 2 / 3)


def test_the_size_of_a_prediction_is_that_of_its_mask(coco, score):
    # a miss with a medium box and a small mask: wrong among medium boxes, among small masks
    thin = [[150, 60, 190, 60, 190, 61, 150, 61], [150, 60, 151, 60, 151, 90, 150, 90]]
    miss = (1, *MISS, {"segmentation": thin, "score": 0.9})
    truth = coco([(1, *SMALL), (1, *MEDIUM)])
    guesses = coco([miss, (1, *SMALL, {"score": 0.5}), (1, *MEDIUM, {"score": 0.5})])
    results = score(truth, guesses)
    assert results["bbox"]["APs"] == results["segm"]["APm"] == pytest.approx(100)
    assert results["bbox"]["APm"] == results["segm"]["APs"] == pytest.approx(50)


def test_box_only_sides(coco, score):
    with_masks, boxes = coco([(1, *MEDIUM)]), coco([(1, *MEDIUM)], masks=False)
    assert list(score(boxes, with_masks)) == ["bbox"]
    assert list(score(with_masks, boxes)) == ["bbox"]
    assert list(score(with_masks, with_masks, iou_types=["segm"])) == ["segm"]
    with pytest.raises(UserError, match=r"^labels\.json: annotations\[0\] .*--iou-types bbox"):
        score(with_masks, boxes, iou_types=["segm"])
    with pytest.raises(UserError, match=r"'mask'.*bbox, segm"):
        score(with_masks, boxes, iou_types=["mask"])


def test_records_without_a_mask_count_for_boxes_only(coco, score, caplog):
    maskless = {"segmentation": [], "score": 0.9}
    truth = coco([(1, *SMALL), (1, *MEDIUM, {"segmentation": []})])
    guesses = coco([(1, *MISS, maskless), (1, *SMALL, {"score": 0.5})])
    results = score(truth, guesses)
    assert (results["bbox"]["AR100"], results["segm"]["AR100"]) == (50, 100)
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["bbox"]["AP50"] < 50
    assert "truth.json: 1 objects without a mask" in caplog.text
    assert "labels.json: 1 objects without a mask" in caplog.text


def test_no_predictions_and_no_objects(coco, score):
    for predictions in ([], coco([])):
        results = score(coco([(1, *MEDIUM)]), predictions)
        assert list(results) == ["bbox", "segm"]
        assert results["segm"]["AP"] == results["bbox"]["AR100"] == 0
        assert results["segm"]["APs"] == -1
    for predictions in ([], coco([(1, *MEDIUM)])):
        results = score(coco([]), predictions)
        assert set(results["segm"].values()) == {-1}


@pytest.mark.parametrize("seed", range(4))
def test_equal_toplain_pycocotools_to_the_last_digit(score, seed):
    truth, guesses = random_case(seed)
    results = score(truth, guesses)
    for iou_type in ("bbox", "segm"):
        expected = plain_pycocotools(truth, guesses, iou_type)
        assert results[iou_type] == expected
        assert 0 < expected["AP"] < 100


def test_ids_of_another_kind_change_nothing(score):
    truth, guesses = random_case(0)
    expected = score(truth, guesses)
    for record in truth["images"]:
        record["id"] = float(record["id"])
    for record in (*truth["annotations"], *guesses):
        record["image_id"] = float(record["image_id"])
    assert score(truth, guesses) == expected
    for record in truth["images"]:
        record["id"] = f"frame {record['id']:06.0f}"
    for record in (*truth["annotations"], *guesses):
        record["image_id"] = f"frame {record['image_id']:06.0f}"
    assert score(truth, guesses) == expected


def test_equal_to_pycocotools_on_real_ground_truth(score, shared_data):
    path = shared_data / "data" / "coco" / "annotations" / "lvis_v0.5_val.json"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(path).dataset
    for annotation in truth["annotations"]:
        annotation["category_id"] = 1
    truth["categories"] = [{"id": 1, "name": "object"}]
    guesses = [
        {
            "image_id": annotation["image_id"],
            "category_id": 1,
            "bbox": [value + 2 for value in annotation["bbox"]],
            "score": 1.0,
        }
        for annotation in reversed(truth["annotations"])
    ]
    expected = plain_pycocotools(truth, guesses, "bbox")
    assert 0 < expected["AP"] < 100
    assert score(truth, guesses) == {"bbox": expected}


def test_precision_of_the_five_best_by_hand(coco, score):
    """Of seven predictions of one image and one of another, six count: two are hits."""
    truth = coco([(1, 0, 0, 40, 40), (1, 60, 0, 40, 40), (2, 0, 0, 40, 40)], (1, 2))
    found = [
        (1, 0, 0, 40, 40, {"score": 0.9}),
        (1, 0, 0, 40, 38, {"score": 0.8}),
        *((1, 60, 50, 40, 40, {"score": 0.7}),) * 3,
    ]
    late = [
        (1, 60, 0, 40, 40, {"score": 0.2}),
        (1, 60, 0, 40, 40, {"score": 0.1}),
    ]  # hits, but places 6 and 7
    figures = score(truth, coco([*found, *late, (2, 0, 0, 40, 30, {"score": 0.1})], (1, 2)))
    assert figures["bbox"]["P5"] == pytest.approx(100 * 2 / 6)


def test_nothing_is_printed(coco, score, capsys):
    score(coco([(1, *MEDIUM)]), coco([(1, *MEDIUM)]))
    assert capsys.readouterr().out == ""


def test_table_and_flat_keys():
    metrics = {name: float(n) for n, name in enumerate(METRICS)}
    results = {"bbox": metrics, "segm": {**metrics, "AP": -1.0, "AR100": 100.0}}
    lines = format_table(results).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["|", "|", *(part for name in METRICS for part in (name, "|"))]
    assert lines[2].startswith("| box  |   0.00 |   1.00 |")
    assert lines[3].startswith("| mask |  -1.00 |   1.00 |")
    flat = flat_metrics(results)
    assert flat["segm.AR100"] == 100
    assert flat["bbox.AP50"] == 1
    assert len(flat) == 2 * len(METRICS)


def test_core_imports_without_detectron2():
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'detectron2':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import promerge_d2.evaluation as e\n"
        "assert e.evaluate_class_agnostic\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
