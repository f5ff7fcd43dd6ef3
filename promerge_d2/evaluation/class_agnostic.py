"""Class-agnostic AP and AR with pycocotools' ``COCOeval``, box and mask.

The protocol is COCO's with one class: IoU 0.50 to 0.95, at most 100 predictions an image (1 and
10 for AR1 and AR10), size classes split at 32^2 and 96^2 pixels. Where it leaves a choice:

* Equal scores: within an image the earlier record of the prediction file comes first; across
  images the one with the lower image id (``COCOeval`` sorts by score with a stable sort).
* The size of an object is its ``area`` in the ground truth; the size of a prediction is the area
  of its mask for mask figures, of its box for box figures. detectron2 does the same;
  ``COCO.loadRes`` alone takes the box area for both if the records have boxes.
* Crowd regions of the ground truth are ignored as COCO does, not counted as objects.

Objects are numbered anew from 1, because ``COCOeval`` reads the annotation id 0 as "no match".
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from promerge_d2.evaluation.coco_json import GroundTruth, ImageId, Instance
from promerge_d2.evaluation.matching import Predictions
from promerge_d2.utils.errors import UserError

# in the order of COCOeval's stats
METRICS = (
    "AP",
    "AP50",
    "AP75",
    "APs",
    "APm",
    "APl",
    "AR1",
    "AR10",
    "AR100",
    "ARs",
    "ARm",
    "ARl",
)
IOU_TYPES = ("bbox", "segm")
PROTOCOL = (
    "COCO, one class, per cent; max detections 100 (AR1: 1, AR10: 10); crowds of the ground truth "
    "ignored; ties by file order, across images by ascending id"
)


def evaluate_class_agnostic(
    ground_truth: GroundTruth,
    predictions: Predictions,
    iou_types: Sequence[str] | None = None,
) -> dict[str, dict[str, float]]:
    """Score predictions against a ground truth as one class.

    Every image of the ground truth counts, also those without predictions.

    Args:
        ground_truth: from ``read_ground_truth``.
        predictions: from ``place_predictions`` with this ground truth.
        iou_types: some of ``bbox`` and ``segm``; None means ``bbox``, and ``segm`` unless one
            side has no masks at all.

    Returns:
        For each IoU type the ``METRICS``, in per cent; -1 where the ground truth has no object
        (of that size).

    Raises:
        UserError: masks are asked for, or there on both sides, but one record has none.
    """
    if iou_types is None:
        sides = (ground_truth.objects, predictions.instances)
        box_only = any(side and all(item.rle is None for item in side) for side in sides)
        iou_types = IOU_TYPES[:1] if box_only else IOU_TYPES
    for iou_type in iou_types:
        if iou_type not in IOU_TYPES:
            raise UserError(f"unknown IoU type {iou_type!r}; choose from {', '.join(IOU_TYPES)}")
    if "segm" in iou_types:
        for item in (*ground_truth.objects, *predictions.instances):
            if item.rle is None:
                raise UserError(
                    f"{item.where}: it has no mask, so mask figures cannot be computed; add its "
                    "segmentation, or evaluate boxes only (--iou-types bbox)"
                )
    return {iou_type: _evaluate(ground_truth, predictions, iou_type) for iou_type in iou_types}


def _evaluate(
    ground_truth: GroundTruth, predictions: Predictions, iou_type: str
) -> dict[str, float]:
    # ids of any type become 1, 2, ... in ascending order, which is the order of COCOeval
    ranks = {image_id: rank for rank, image_id in enumerate(ground_truth.images, start=1)}
    images = [
        {"id": ranks[image.id], "height": image.height, "width": image.width}
        for image in ground_truth.images.values()
    ]
    truth = (_record(obj, ranks, iou_type, obj.area) for obj in ground_truth.objects)
    detections = (
        _record(
            item, ranks, iou_type, item.area if iou_type == "segm" else item.box[2] * item.box[3]
        )
        for item in predictions.instances
    )
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        engine = COCOeval(_coco(images, truth), _coco(images, detections), iou_type)
        engine.evaluate()
        engine.accumulate()
        engine.summarize()
    stats = [float(value) for value in engine.stats]
    return {
        name: value * 100 if value >= 0 else -1.0
        for name, value in zip(METRICS, stats, strict=True)
    }


def _record(
    item: Instance, ranks: dict[ImageId, int], iou_type: str, area: float
) -> dict[str, Any]:
    record = {
        "image_id": ranks[item.image_id],
        "category_id": 1,
        "bbox": list(item.box),
        "area": area,
        "iscrowd": int(item.crowd),
        "score": item.score,
    }
    if iou_type == "segm":
        record["segmentation"] = item.rle
    return record


def _coco(images: list[dict[str, int]], records: Iterable[dict[str, Any]]) -> COCO:
    api = COCO()
    api.dataset = {
        "images": images,
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [{**record, "id": i} for i, record in enumerate(records, start=1)],
    }
    api.createIndex()
    return api


def flat_metrics(results: dict[str, dict[str, float]]) -> dict[str, float]:
    """``{"segm": {"AP": 1.0}}`` becomes ``{"segm.AP": 1.0}``."""
    return {
        f"{iou_type}.{name}": value
        for iou_type, metrics in results.items()
        for name, value in metrics.items()
    }


def format_table(results: dict[str, dict[str, float]]) -> str:
    """The results as an aligned Markdown table, one row for boxes and one for masks."""
    kinds = {"bbox": "box", "segm": "mask"}
    rows = [["", *METRICS], ["----", *["-----:"] * len(METRICS)]]
    for iou_type, metrics in results.items():
        rows.append([kinds[iou_type], *(f"{metrics[name]:.2f}" for name in METRICS)])
    return "\n".join(
        f"| {row[0]:<4} | " + " | ".join(f"{cell:>6}" for cell in row[1:]) + " |" for row in rows
    )
