import numpy as np

from promerge_d2.labeler.suppression import suppress


def box(y, x, h, w):
    mask = np.zeros((20, 24), bool)
    mask[y : y + h, x : x + w] = True
    return mask


def test_suppress_by_hand():
    masks = np.stack([box(0, 0, 10, 10), box(0, 0, 10, 9), box(10, 10, 5, 5), box(0, 0, 10, 2)])
    scores = np.array([0.5, 0.9, 0.1, 0.4])
    assert suppress(masks, scores, 0.7, 10).tolist() == [1, 3, 2]  # the first overlaps 0.9
    assert suppress(masks, scores, 0.95, 10).tolist() == [1, 0, 3, 2]
    assert suppress(masks, scores, 0.7, 2).tolist() == [1, 3]
    assert suppress(masks, np.ones(4), 0.7, 10).tolist() == [0, 2, 3]  # equal ones: the first


def test_an_overlap_of_just_the_most_is_allowed():
    masks = np.stack([box(0, 0, 4, 4), box(0, 0, 4, 2)])  # IoU 0.5
    assert suppress(masks, np.array([0.9, 0.5]), 0.5, 10).tolist() == [0, 1]
    assert suppress(masks, np.array([0.9, 0.5]), 0.49, 10).tolist() == [0]
