"""Class-agnostic AP and AR of detections and of raw pseudo-labels, box and mask.

This needs numpy and pycocotools only; detectron2's evaluator is in ``evaluator.py``.
"""

from promerge_d2.evaluation.align import MATCH_MODES, Predictions, align_predictions
from promerge_d2.evaluation.bootstrap import Estimate, bootstrap, format_bootstrap
from promerge_d2.evaluation.matches import METRICS, Matches, match_instances
from promerge_d2.evaluation.metrics import (
    PROTOCOL,
    check_iou_types,
    evaluate_class_agnostic,
    flat_metrics,
    format_table,
    metrics_of,
)

__all__ = [
    "MATCH_MODES",
    "METRICS",
    "PROTOCOL",
    "Estimate",
    "Matches",
    "Predictions",
    "align_predictions",
    "bootstrap",
    "check_iou_types",
    "evaluate_class_agnostic",
    "flat_metrics",
    "format_bootstrap",
    "format_table",
    "match_instances",
    "metrics_of",
]
