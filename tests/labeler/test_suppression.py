import numpy as np
import pytest

from promerge_d2.labeler.suppression import suppress, suppress_softly


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


def softly_by_definition(masks, scores, max_iou, most, decay):
    """Every score anew after every choice."""
    left, kept, final = list(range(len(masks))), [], []
    while left and len(kept) < most:
        fallen = {}
        for i in left:
            ious = [(masks[i] & masks[j]).sum() / (masks[i] | masks[j]).sum() for j in kept]
            if max(ious, default=0) <= max_iou:
                fallen[i] = scores[i] * np.exp(-decay * max(ious, default=0) ** 2)
        if not fallen:
            break
        best = max(fallen, key=lambda i: (fallen[i], -i))
        kept.append(best)
        final.append(fallen[best])
        left = [i for i in fallen if i != best]
    return kept, final


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("decay", "most"), [(0.0, 99), (1.0, 99), (6.0, 99), (3.0, 5)])
def test_soft_suppression_is_its_definition(seed, decay, most):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.integers(0, 9, (30, 2, 2)), axis=1)
    masks = np.zeros((30, 9, 9), bool)
    for mask, (low, high) in zip(masks, corners, strict=True):
        mask[low[0] : high[0] + 1, low[1] : high[1] + 1] = True
    scores = rng.integers(0, 8, 30) / 8  # with ties
    kept, final = suppress_softly(masks, scores, 0.6, most, decay)
    expected, fallen = softly_by_definition(masks, scores, 0.6, most, decay)
    assert kept.tolist() == expected
    assert final == pytest.approx(fallen)
    assert 5 <= len(kept) < 30
    # those kept are kept again, with the same scores
    again, same = suppress_softly(masks[kept], scores[kept], 0.6, most, decay)
    assert again.tolist() == list(range(len(kept)))
    assert same == pytest.approx(final)


def test_soft_suppression_by_hand():
    """Strips of 4, 3 and 2 cells from the left, and one of 2 apart."""
    masks = np.zeros((4, 1, 8), bool)
    masks[0, 0, :4] = masks[1, 0, :3] = masks[2, 0, :2] = masks[3, 0, 6:] = True
    scores = np.array([1.0, 0.9, 0.8, 0.5])
    kept, final = suppress_softly(masks, scores, 0.75, 4, 2.0)
    # IoUs with the first 3/4 (no more than max_iou), 1/2 and 0; of the second with the third 2/3
    assert kept.tolist() == [0, 3, 2, 1]
    expected = [1, 0.5, 0.8 * np.exp(-2 / 4), 0.9 * np.exp(-2 * 9 / 16)]
    assert final == pytest.approx(expected)
    kept, _ = suppress_softly(masks, scores, 0.7, 4, 2.0)
    assert 1 not in kept
    assert len(suppress_softly(masks[:0], scores[:0], 0.7, 4, 2.0)[0]) == 0
