import sys

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_fill_holes

from promerge_d2.labeler.refine import refinement
from promerge_d2.labeler.refine.refinement import (
    check_refiner,
    dense_crf,
    drop_fragments,
    fill_holes,
    refine_masks,
    resize_mask,
    upsample,
)
from promerge_d2.utils.errors import UserError
from tests.labeler.helpers import grid

BLANK = np.zeros((6, 6, 3), np.uint8)


def fake(monkeypatch, function):
    monkeypatch.setitem(refinement.REFINERS, "fake", function)


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


def test_refiner_none_upsamples():
    masks = np.stack([grid("#..", "..."), grid("..#", "..#")])
    kept, index = refine_masks(np.zeros((4, 6, 3), np.uint8), masks, "none", 1.0)
    assert index.tolist() == [0, 1]
    assert np.array_equal(kept, upsample(masks, 4, 6))


@pytest.mark.parametrize("refiner", ["none", "fake"])
def test_no_masks(monkeypatch, refiner):
    fake(monkeypatch, lambda image, masks: pytest.fail("nothing to refine"))
    kept, index = refine_masks(BLANK, np.zeros((0, 3, 3), bool), refiner, 0.5)
    assert kept.shape == (0, 6, 6)
    assert len(index) == 0


def test_holes_are_filled_before_the_iou(monkeypatch):
    ring = grid("......", ".####.", ".#..#.", ".#..#.", ".####.", "......")
    full = grid("......", ".####.", ".####.", ".####.", ".####.", "......")
    fake(monkeypatch, lambda image, masks: ring[None].copy())
    kept, index = refine_masks(BLANK, full[None], "fake", 1.0)  # IoU of the ring is 12 / 16
    assert np.array_equal(kept, full[None])
    assert index.tolist() == [0]


def test_a_bay_is_no_hole(monkeypatch):
    bay = grid("......", ".####.", ".#..#.", ".#..#.", ".#..#.", "......")
    fake(monkeypatch, lambda image, masks: bay[None].copy())
    kept, _ = refine_masks(BLANK, bay[None], "fake", 0.5)
    assert np.array_equal(kept, bay[None])


@pytest.mark.parametrize(
    ("after", "kept"),
    [
        (("##....",) + ("......",) * 5, True),  # 2 of 4: exactly 0.5 stays
        (("#.....",) + ("......",) * 5, False),
        (("########"[:6],) + ("##....",) + ("......",) * 4, True),  # 4 of 8
        (("######", "###...") + ("......",) * 4, False),  # 4 of 9
        (("......",) * 6, False),  # emptied
    ],
)
def test_iou_decides(monkeypatch, after, kept):
    before = grid("####..", *["......"] * 5)
    fake(monkeypatch, lambda image, masks: grid(*after)[None].copy())
    masks, index = refine_masks(BLANK, before[None], "fake", 0.5)
    assert len(masks) == len(index) == kept


def test_indices_of_the_kept(monkeypatch):
    def drop_the_second(image, masks):
        masks = masks.copy()
        masks[1] = False
        return masks

    fake(monkeypatch, drop_the_second)
    masks = np.stack(
        [grid("#..", "#..", "..."), grid(".#.", "...", "..."), grid("..#", "..#", "...")]
    )
    kept, index = refine_masks(BLANK, masks, "fake", 0.5)
    assert index.tolist() == [0, 2]
    assert np.array_equal(kept, upsample(masks[[0, 2]], 6, 6))


def test_the_refiner_sees_the_working_image(monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    seen = {}

    def look(image, masks):
        seen.update(image=image, masks=masks)
        return masks

    fake(monkeypatch, look)
    refine_masks(image, grid("#.", ".#")[None], "fake", 0.5)
    assert np.array_equal(seen["image"], image)
    assert seen["masks"].shape == (1, 6, 9)
    assert seen["masks"].dtype == bool


def test_unknown_refiner():
    with pytest.raises(UserError, match="no refiner is named 'sam'; known: mean_field, mean_field"):
        check_refiner("sam")
    check_refiner("none")


@pytest.mark.parametrize(
    "call",
    [
        lambda: check_refiner("dense_crf"),
        lambda: dense_crf(BLANK, np.zeros((1, 6, 6), bool)),
        lambda: refine_masks(BLANK, np.ones((1, 6, 6), bool), "dense_crf", 0.5),
    ],
)
def test_without_pydensecrf_the_user_is_told(monkeypatch, call):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.delitem(sys.modules, "pydensecrf.densecrf", raising=False)
    with pytest.raises(UserError) as caught:
        call()
    assert "pip install pydensecrf2" in str(caught.value)
    assert "--refine none" in str(caught.value)


def crf_of_one_mask(image, mask):
    """One CRF for one mask, from the table of promerge.md A3."""
    from pydensecrf import densecrf, utils

    height, width = mask.shape
    model = densecrf.DenseCRF2D(width, height, 2)
    exponentials = np.exp(np.stack([~mask, mask]).astype(np.float64))
    model.setUnaryEnergy(utils.unary_from_softmax(exponentials / exponentials.sum(axis=0)))
    model.addPairwiseGaussian(sxy=3, compat=7)
    model.addPairwiseBilateral(sxy=50, srgb=5, rgbim=np.ascontiguousarray(image), compat=10)
    return np.array(model.inference(10)).reshape(2, height, width).argmax(axis=0) == 1


def test_one_lattice_for_all_masks_changes_no_bit():
    pytest.importorskip("pydensecrf")
    data = pytest.importorskip("skimage.data")
    photograph = Image.fromarray(data.astronaut()).resize((160, 120), Image.Resampling.LANCZOS)
    image = np.array(photograph)
    masks = np.zeros((4, 120, 160), bool)
    masks[0, 16:80, 48:96] = True  # head
    masks[1, 64:, 8:120] = True  # suit
    masks[2, :40, 120:] = True  # corner
    masks[3, 30:34, 70:74] = True  # a speck
    refined = dense_crf(image, masks)
    assert refined.dtype == bool
    for mask, ours in zip(masks, refined, strict=True):
        assert np.array_equal(ours, crf_of_one_mask(image, mask))
    assert (refined[0] != masks[0]).any()
    # and neither order nor company matters
    assert np.array_equal(dense_crf(image, masks[::-1])[::-1], refined)
    assert np.array_equal(dense_crf(image, masks[1:2]), refined[1:2])


def test_a_coloured_square_gets_its_edges():
    pytest.importorskip("pydensecrf")
    image = np.full((96, 96, 3), 40, np.uint8)
    image[30:66, 26:70] = (220, 30, 30)
    truth = image[..., 0] == 220
    rough = np.zeros((96, 96), bool)
    rough[24:64, 24:64] = True  # on a patch grid of 8 pixels
    refined = dense_crf(image, rough[None])[0]
    iou = (refined & truth).sum() / (refined | truth).sum()
    assert (rough & truth).sum() / (rough | truth).sum() < 0.81
    assert iou > 0.97
    assert dense_crf(image, np.zeros((0, 96, 96), bool)).shape == (0, 96, 96)


def test_linear_upsampling_cuts_between_patches():
    """Between the centres of patches 1 and 2 the value falls from 1 to 0: the cut is half-way."""
    mask = np.zeros((1, 1, 4), bool)
    mask[0, 0, :2] = True
    assert upsample(mask, 4, 16, "linear")[0, 0].tolist() == [True] * 8 + [False] * 8
    corner = np.zeros((1, 3, 3), bool)
    corner[0, 1, 1] = True
    soft = upsample(corner, 30, 30, "linear")[0]
    assert 0 < soft.sum() < upsample(corner, 30, 30)[0].sum()  # rounded
    assert not soft[10, 10]


def test_unconfirmed_masks_are_dropped_or_kept():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (40, 40, 3)).astype(np.uint8)
    image[8:32, 8:32] = (200, 30, 30)
    masks = np.zeros((2, 10, 10), bool)
    masks[0, 2:8, 2:8] = True  # the square
    masks[1, 4:6, 4:6] = True  # a hole in it, which the CRF fills up
    dropped, kept = refine_masks(image, masks, "mean_field", 0.7)
    assert kept.tolist() == [0]
    both, indices = refine_masks(image, masks, "mean_field", 0.7, unconfirmed="keep")
    assert indices.tolist() == [0, 1]
    assert np.array_equal(both[0], dropped[0])
    assert np.array_equal(both[1], upsample(masks, 40, 40)[1])


def test_kept_masks_have_no_holes(monkeypatch):
    ring = grid(".....", ".###.", ".#.#.", ".###.", ".....")
    fake(monkeypatch, lambda image, masks: np.zeros_like(masks))
    kept, _ = refine_masks(
        np.zeros((5, 5, 3), np.uint8), ring[None], "fake", 0.5, unconfirmed="keep"
    )
    assert np.array_equal(kept[0], grid(".....", ".###.", ".###.", ".###.", "....."))


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
