import cv2
import numpy as np
import pytest
from PIL import Image

from promerge_d2.labeler.refine.resize import resize_box, resize_mask, upsample, upsample_smoothly
from tests.labeler.helpers import grid


def test_upsample_by_whole_factors():
    mask = grid("#.", ".#")
    assert np.array_equal(upsample(mask[None], 4, 6)[0], np.kron(mask, np.ones((2, 3), bool)))


def test_upsample_by_other_factors():
    """Pixel r shows row floor(r * 2 / 5): 0 0 0 1 1; column floor(c * 3 / 4): 0 0 1 2."""
    up = upsample(grid("#.#", ".#.")[None], 5, 4)[0]
    assert np.array_equal(up, grid("##.#", "##.#", "##.#", "..#.", "..#."))


def test_upsample_equals_pil_nearest_at_the_release_size():
    mask = np.random.default_rng(0).random((60, 60)) < 0.5
    pil = np.asarray(Image.fromarray(mask).resize((480, 480), Image.Resampling.NEAREST))
    assert np.array_equal(upsample(mask[None], 480, 480)[0], pil)


def test_resize_mask_same_size_is_the_same():
    mask = grid("#..#", ".##.", "....")
    assert np.array_equal(resize_mask(mask, 3, 4), mask)


def test_resize_mask_keeps_straight_edges():
    """Halving an edge that lies on a block border, and doubling one, moves nothing."""
    half = np.zeros((8, 12), bool)
    half[:, :6] = True
    assert np.array_equal(resize_mask(half, 4, 6), grid(*["###..."] * 4))
    assert np.array_equal(resize_mask(half, 16, 24), np.kron(half, np.ones((2, 2), bool)))
    assert resize_mask(np.ones((5, 5), bool), 7, 3).all()
    assert not resize_mask(np.zeros((5, 5), bool), 7, 3).any()


def test_resize_mask_is_rows_then_columns():
    assert resize_mask(np.ones((4, 5), bool), 2, 9).shape == (2, 9)


def test_resize_mask_is_not_fatter_than_the_mask():
    """The release draws everything above 0; here the area of a square stays its share."""
    mask = np.zeros((480, 480), bool)
    mask[100:220, 100:220] = True  # a quarter of each side
    resized = resize_mask(mask, 427, 640)
    assert resized.sum() == pytest.approx(mask.mean() * 427 * 640, rel=0.01)


@pytest.mark.parametrize("size", [(24, 90), (90, 24), (47, 49), (48, 90), (24, 24), (90, 90)])
def test_resizing_a_box_is_resizing_all(size):
    rng = np.random.default_rng(0)
    masks = np.zeros((4, 48, 48), bool)
    masks[0, 10:25, 5:40] = rng.random((15, 35)) > 0.5
    masks[1, :3, -3:] = True
    masks[2] = rng.random((48, 48)) > 0.5
    for mask in masks:
        resized = resize_box(mask, *size)
        assert np.array_equal(resized, resize_mask(mask, *size))
        assert resized.flags.f_contiguous


@pytest.mark.parametrize("factor", [2, 3, 8, 14])
def test_linear_upsampling_of_a_box_is_that_of_all(factor):
    rng = np.random.default_rng(factor)
    masks = np.zeros((40, 20, 30), bool)
    for mask in masks:
        y, x, h, w = rng.integers((0, 0, 1, 1), (18, 28, 12, 12))
        mask[y : y + h, x : x + w] = rng.random(mask[y : y + h, x : x + w].shape) > 0.3
    side = (30 * factor, 20 * factor)
    for mask, large in zip(masks, upsample_smoothly(masks, *side[::-1]), strict=True):
        assert np.array_equal(large, cv2.resize(mask.astype(np.float32), side) > 0.5)


def test_linear_upsampling_cuts_between_patches():
    """Between the centres of patches 1 and 2 the value falls from 1 to 0: the cut is half-way."""
    mask = np.zeros((1, 1, 4), bool)
    mask[0, 0, :2] = True
    assert upsample_smoothly(mask, 4, 16)[0, 0].tolist() == [True] * 8 + [False] * 8
    corner = np.zeros((1, 3, 3), bool)
    corner[0, 1, 1] = True
    soft = upsample_smoothly(corner, 30, 30)[0]
    assert 0 < soft.sum() < upsample(corner, 30, 30)[0].sum()  # rounded
    assert not soft[10, 10]
