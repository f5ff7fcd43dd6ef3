"""Class-agnostic AP and AR with pycocotools' ``COCOeval``, box and mask.

The protocol is COCO's with one class: IoU 0.50 to 0.95, at most 100 predictions an image (1 and
10 for AR1 and AR10), size classes split at 32^2 and 96^2 pixels. Where it leaves a choice:

* Equal scores: within an image the earlier record of the prediction file comes first; across
  images the one with the lower image id (``COCOeval`` sorts by score with a stable sort).
* The size of an object is its ``area`` in the ground truth; the size of a prediction is the area
  of its mask for mask figures, of its box for box figures. detectron2 does the same;
  ``COCO.loadRes`` alone takes the box area for both if the records have boxes.
* Objects and predictions without a mask count for boxes; among others that have masks, they are
  left out of the mask figures, with a warning.
* Crowd regions of the ground truth are ignored as COCO does, not counted as objects.

P5, our own, is no COCO figure: of the five best predictions of each image, the share that COCO's
matching gives an object at IoU 0.5.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from promerge_d2.coco.ground_truth import GroundTruth
from promerge_d2.evaluation.align import Predictions
from promerge_d2.evaluation.matches import IOU_TYPES, KINDS, Matches, match_instances
from promerge_d2.utils.errors import UserError

logger = logging.getLogger(__name__)

PROTOCOL = (
    "COCO, one class, per cent; max detections 100 (AR1: 1, AR10: 10); crowds of the ground truth "
    "ignored; ties by file order, across images by ascending id; P5: share of hits "
    "at IoU 0.5 among each image's five best"
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
        predictions: from ``align_predictions`` with this ground truth.
        iou_types: some of ``bbox`` and ``segm``; None means ``bbox``, and ``segm`` unless one
            side has no masks at all.

    Returns:
        For each IoU type the ``METRICS``, in per cent; -1 where the ground truth has no object
        (of that size).

    Raises:
        UserError: masks are asked for, but a side has none.
    """
    return {
        iou_type: metrics_of(match_instances(ground_truth, predictions, iou_type))
        for iou_type in check_iou_types(ground_truth, predictions, iou_types)
    }


def check_iou_types(
    ground_truth: GroundTruth, predictions: Predictions, iou_types: Sequence[str] | None = None
) -> Sequence[str]:
    """Return the IoU types to score; arguments and errors as of ``evaluate_class_agnostic``."""
    if iou_types is None:
        sides = (ground_truth.objects, predictions.instances)
        box_only = any(0 < len(side) == len(side.without_mask) for side in sides)
        iou_types = IOU_TYPES[:1] if box_only else IOU_TYPES
    for iou_type in iou_types:
        if iou_type not in IOU_TYPES:
            raise UserError(f"unknown IoU type {iou_type!r}; choose from {', '.join(IOU_TYPES)}")
    for side in (ground_truth.objects, predictions.instances) if "segm" in iou_types else ():
        if not (rows := side.without_mask):
            continue
        if len(rows) == len(side):
            raise UserError(
                f"{side[rows[0]].where}: it has no mask, and no other record has one; evaluate "
                "boxes only (--iou-types bbox)"
            )
        logger.warning(
            "%s: %d objects without a mask are left out of the mask figures, the first: %s",
            side.name,
            len(rows),
            side[rows[0]].where,
        )
    return iou_types


def metrics_of(matches: Matches) -> dict[str, float]:
    """Return the figures of all images in per cent, -1 where there is no object (of that size)."""
    values = matches.figures()[0]
    return {
        name: -1.0 if np.isnan(value) else float(value)
        for name, value in zip(matches.metrics, values, strict=True)
    }


def flat_metrics(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Join keys by a dot: ``{"segm": {"AP": 1.0}}`` becomes ``{"segm.AP": 1.0}``."""
    return {
        f"{iou_type}.{name}": value
        for iou_type, metrics in results.items()
        for name, value in metrics.items()
    }


def format_table(results: dict[str, dict[str, float]]) -> str:
    """Format results as an aligned Markdown table, one row for boxes and one for masks."""
    names = list(next(iter(results.values())))
    rows = [["", *names], ["----", *["-----:"] * len(names)]]
    for iou_type, metrics in results.items():
        rows.append([KINDS[iou_type], *(f"{metrics[name]:.2f}" for name in names)])
    return "\n".join(
        f"| {row[0]:<4} | " + " | ".join(f"{cell:>6}" for cell in row[1:]) + " |" for row in rows
    )
