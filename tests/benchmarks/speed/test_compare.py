import numpy as np
import pytest

from benchmarks.speed.compare import agreement, identical, iou, ious
from tests.labeler.helpers import grid


def test_agreement_by_hand():
    a, b, empty = grid("##.."), grid(".##."), grid("....")
    assert iou(a, b) == 1 / 3
    assert iou(a, a) == iou(empty, empty) == 1
    assert iou(a, empty) == 0
    none = np.zeros((0, 1, 4), bool)
    assert ious([np.array([a, b]), none], [np.array([a, a]), none]).tolist() == [1, 1 / 3]
    assert identical([np.array([a, b]), none], [np.array([b, a]), none]) == 2  # in any order
    assert identical([np.array([a]), none], [np.array([b]), np.array([a])]) == 0
    # a and b of one side look for the a of the other, and that a for its like
    assert agreement([np.array([a, b])], [np.array([a])]) == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert agreement([none], [none]) == 1
    assert agreement([np.array([a])], [none]) == 0
