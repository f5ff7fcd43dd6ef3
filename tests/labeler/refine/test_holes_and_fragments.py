import numpy as np
from scipy.ndimage import binary_fill_holes

from promerge_d2.labeler.refine.holes_and_fragments import drop_fragments, fill_holes


def test_holes_are_filled_as_scipy_does():
    masks = np.random.default_rng(0).random((20, 13, 17)) < np.linspace(0.2, 1, 20)[:, None, None]
    masks[3] = False
    expected = [binary_fill_holes(mask) for mask in masks]
    assert np.array_equal(fill_holes(masks), expected)
    assert any((filled != mask).any() for filled, mask in zip(expected, masks, strict=True))


def test_fragments_by_hand():
    masks = np.zeros((3, 6, 12), bool)
    masks[0, :4, :5] = True  # 20
    masks[0, 5, 10:] = True  # 2: a tenth
    masks[1, 0, 0] = True  # alone: stays, however small
    masks[2, 0, :10] = masks[2, 2, :9] = True
    clean = drop_fragments(masks, 0.11)
    assert clean[0].sum() == 20
    assert np.array_equal(clean[1:], masks[1:])
    assert np.array_equal(drop_fragments(masks, 0.1), masks)
    assert drop_fragments(np.zeros((2, 3, 3), bool), 0.5).sum() == 0
