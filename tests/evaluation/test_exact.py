"""The same figures as detectron2's COCOEvaluator and hotcoco, and figures worked out by hand."""

from __future__ import annotations

import copy
import json
import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_api

from promerge_d2.coco.rle import to_rle
from promerge_d2.evaluation import METRICS, align_predictions, match_instances, metrics_of
from promerge_d2.evaluation.metrics import check_iou_types
from promerge_d2.utils.errors import UserError
from tests.evaluation.helpers import plain_pycocotools, random_case
from tests.helpers import parse_ground_truth, parse_predictions


def _many(seed):
    """One image with 130 objects and 400 tied guesses, one empty, one with a crowd."""
    rng = np.random.default_rng(seed)
    truth, guesses = random_case(seed)
    crowded = truth["images"][0]["id"]
    for _ in range(130):
        x, y = rng.integers(0, 140), rng.integers(0, 100)
        polygon = [[int(v) for v in (x, y, x + 12, y, x + 12, y + 9, x, y + 9)]]
        box = [int(x), int(y), 12, 9]
        truth["annotations"].append(
            {
                "id": len(truth["annotations"]) + 1,
                "image_id": crowded,
                "category_id": 1,
                "segmentation": polygon,
                "bbox": box,
                "area": 108,
                "iscrowd": 0,
            }
        )
        for dx in (0, 1, 3):
            guesses.append(
                {
                    "image_id": crowded,
                    "category_id": 1,
                    "segmentation": [[v + dx * (i % 2 == 0) for i, v in enumerate(polygon[0])]],
                    "bbox": [box[0] + dx, *box[1:]],
                    "score": float(rng.integers(1, 4)) / 4,
                }
            )
    return truth, guesses


def _ours(truth, guesses, iou_type, backend="pycocotools"):
    ground_truth = parse_ground_truth(truth, "truth.json")
    placed = align_predictions(parse_predictions(guesses, "labels.json"), ground_truth)
    return metrics_of(match_instances(ground_truth, placed, iou_type, backend=backend))


@pytest.mark.parametrize("seed", [5, 6])
def test_equal_to_pycocotools_beyond_100_an_image(seed):
    truth, guesses = _many(seed)
    for iou_type in ("bbox", "segm"):
        # loadRes reads masks as RLE
        ready = copy.deepcopy(guesses)
        if iou_type == "segm":
            for guess in ready:
                guess["segmentation"] = to_rle(guess["segmentation"], 120, 160, "guess")
        assert _ours(truth, guesses, iou_type) == plain_pycocotools(truth, ready, iou_type)


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_hotcoco_gives_the_same_figures(seed, iou_type):
    pytest.importorskip("hotcoco", reason="hotcoco is not installed: pip install hotcoco")
    truth, guesses = _many(seed)
    reference = _ours(truth, guesses, iou_type)
    fast = _ours(truth, guesses, iou_type, "hotcoco")
    assert fast == pytest.approx(reference, abs=1e-9)
    assert 0 < reference["AP"] < 100


@pytest.mark.parametrize("area", ["s", "m"])
def test_figures_by_size_count_100_of_more_detections(area):
    """150 equal objects found by 150 detections: AR by size and AP are those at 100 (COCO's)."""
    side = {"s": 8, "m": 40}[area]
    boxes = [(side * (i % 15), side * (i // 15), side, side) for i in range(150)]
    records = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": box, "area": side**2, "iscrowd": 0}
        for i, box in enumerate(boxes)
    ]
    images = [{"id": 1, "file_name": "a.jpg", "height": 10 * side, "width": 15 * side}]
    truth = {"images": images, "annotations": records, "categories": [{"id": 1, "name": "object"}]}
    ground_truth = parse_ground_truth(truth, "truth.json")
    guesses = parse_predictions([{**record, "score": 1.0} for record in records], "labels.json")
    predictions = align_predictions(guesses, ground_truth)
    figures = metrics_of(match_instances(ground_truth, predictions, "bbox", max_detections=150))
    assert figures["AR150"] == 100
    assert figures["AR100"] == figures[f"AR{area}"] == pytest.approx(100 * 100 / 150)
    assert figures["AP"] == figures[f"AP{area}"] == pytest.approx(_points(2 / 3))


def test_unknown_backend():
    with pytest.raises(UserError, match=r"'fast'.*pycocotools, hotcoco"):
        _ours(*random_case(0), "bbox", "fast")


class KeepsStats(COCOEvaluator):
    """Keeps AR too, which detectron2 only prints."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.stats = {}

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        self.stats[iou_type] = coco_eval.stats
        return super()._derive_coco_results(coco_eval, iou_type, class_names)


@pytest.mark.parametrize(("case", "seed"), [(random_case, 0), (_many, 5)])
def test_equal_to_detectron2s_evaluator(case, seed, tmp_path):
    """The same detections through ``COCOEvaluator``: ties, crowds, empty and crowded images."""
    truth, guesses = case(seed)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({**truth, "info": {}}))
    name = f"exact_{seed}"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(
        json_file=str(path), thing_classes=["object"], thing_dataset_id_to_contiguous_id={1: 0}
    )
    given = []
    try:
        logging.disable(logging.INFO)
        evaluator = KeepsStats(name, ("bbox", "segm"), False, None, use_fast_impl=False)
        evaluator.reset()
        for image in truth["images"]:
            own = [guess for guess in guesses if guess["image_id"] == image["id"]]
            height, width = image["height"], image["width"]
            found = Instances((height, width))
            boxes = torch.tensor([guess["bbox"] for guess in own]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            found.pred_boxes = Boxes(boxes)
            found.scores = torch.tensor([guess["score"] for guess in own])
            found.pred_classes = torch.zeros(len(own), dtype=torch.int64)
            rles = [to_rle(guess["segmentation"], height, width, "guess") for guess in own]
            masks = [mask_api.decode(rle) for rle in rles]
            found.pred_masks = torch.tensor(np.array(masks, bool).reshape(-1, height, width))
            given += instances_to_coco_json(found, image["id"])
            evaluator.process([{"image_id": image["id"]}], [{"instances": found}])
        theirs = evaluator.evaluate()
    finally:
        logging.disable(logging.NOTSET)
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    for iou_type in ("bbox", "segm"):
        ours = _ours(truth, given, iou_type)
        expected = [value * 100 if value >= 0 else -1 for value in evaluator.stats[iou_type]]
        assert list(ours.values())[:12] == expected
        assert 0 < ours["AP"] < 100
        for metric in METRICS[:6]:
            value = ours[metric] if ours[metric] != -1 else float("nan")
            assert theirs[iou_type][metric] == pytest.approx(value, abs=1e-12, nan_ok=True)


# --- worked out by hand ---------------------------------------------------------------------------

BOX = (1, 20, 0, 40, 40)  # one object, 1600 pixels


def _points(recall):
    """AP where precision is 1 up to ``recall`` and 0 beyond: recall points 0, 0.01, ..."""
    return 100 * (np.linspace(0, 1, 101) <= recall).sum() / 101


@pytest.mark.parametrize(
    ("guesses", "ap", "ar"),
    [
        ([(1, 30, 0, 40, 40)], 30, 30),  # shifted by a quarter: IoU 0.6, a hit at 3 of 10
        ([(1, 20, 0, 40, 32)], 70, 70),  # scaled to 4/5: IoU 0.8, a hit at 7 of 10
        ([(1, 20, 0, 40, 20), (1, 20, 20, 40, 20)], 10, 10),  # split: IoU 0.5, at one threshold
        ([(1, 20, 0, 40, 19), (1, 20, 19, 40, 21)], 5, 10),  # the better half second: precision 1/2
        ([BOX, BOX], 100, 100),  # a duplicate after the hit lowers no precision
        ([(1, 150, 60, 20, 20), BOX], 50, 100),  # a miss before the hit
    ],
)
def test_one_object_by_hand(coco, score, guesses, ap, ar):
    for metrics in score(coco([BOX]), coco(guesses)).values():
        assert metrics["AP"] == pytest.approx(ap)
        assert metrics["AR100"] == pytest.approx(ar)


def test_merged_objects_by_hand(coco, score):
    # two neighbours and their union: IoU 1/2 with the first, a hit at 0.50 only, recall 1/2
    truth = coco([(1, 20, 0, 40, 40), (1, 60, 0, 40, 40)])
    for metrics in score(truth, coco([(1, 20, 0, 80, 40)])).values():
        assert metrics["AP50"] == pytest.approx(_points(0.5))
        assert metrics["AP"] == pytest.approx(_points(0.5) / 10)
        assert metrics["AR100"] == pytest.approx(50 / 10)
        assert metrics["AP75"] == 0


def test_every_object_twice_by_hand(coco, score):
    # ranked image by image: hit, duplicate, hit, duplicate; precision at recall 1/2 is 1, at 1 2/3
    truth = coco([(1, *BOX[1:]), (2, *BOX[1:])], images=(1, 2))
    twice = coco([(i, *BOX[1:]) for i in (1, 1, 2, 2)], images=(1, 2))
    expected = _points(0.5) + (100 - _points(0.5)) * 2 / 3
    for metrics in score(truth, twice).values():
        assert metrics["AP"] == pytest.approx(expected)
        assert metrics["AR100"] == 100


def test_iou_types_are_those_of_both_sides(coco):
    truth = parse_ground_truth(coco([BOX]), "truth.json")
    boxes = align_predictions(parse_predictions(coco([BOX], masks=False), "p"), truth)
    assert check_iou_types(truth, boxes) == ("bbox",)
