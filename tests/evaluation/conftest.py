"""What the evaluation's tests share."""

from __future__ import annotations

import pytest

from promerge_d2.evaluation import align_predictions, evaluate_class_agnostic
from tests.helpers import parse_ground_truth, parse_predictions


@pytest.fixture
def score():
    """``score(ground_truth, predictions)``: the results of two parsed JSON contents."""

    def run(truth, predictions, match="auto", iou_types=None):
        ground_truth = parse_ground_truth(truth, "truth.json")
        file = parse_predictions(predictions, "labels.json")
        placed = align_predictions(file, ground_truth, match)
        return evaluate_class_agnostic(ground_truth, placed, iou_types)

    return run
