"""Class-agnostic AP and AR of detections and of raw pseudo-labels, box and mask.

The core needs numpy and pycocotools only; ``ClassAgnosticEvaluator`` needs detectron2 and is
imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from promerge_d2.evaluation.evaluator import ClassAgnosticEvaluator

__all__ = [
    "MATCH_MODES",
    "METRICS",
    "PROTOCOL",
    "ClassAgnosticEvaluator",
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


def __getattr__(name: str) -> Any:
    """Import the one name that needs detectron2 on its first use."""
    if name != "ClassAgnosticEvaluator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from promerge_d2.evaluation.evaluator import ClassAgnosticEvaluator
    except ModuleNotFoundError as error:
        if error.name != "detectron2":
            raise
        raise ImportError(
            f"{__name__}.{name} needs detectron2, which is not installed: "
            "run `python tools/install_detectron2.py`"
        ) from error
    return ClassAgnosticEvaluator
