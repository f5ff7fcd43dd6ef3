import sys

import numpy as np
import pytest

from promerge_d2.labeler import ProMergeConfig
from promerge_d2.labeler.config import GridConfig
from promerge_d2.labeler.refine import REFINERS, check_refiner, refine_masks, refiners
from promerge_d2.labeler.refine.crf import dense_crf
from promerge_d2.utils.errors import UserError
from tests.labeler.helpers import grid, stub

BLANK = np.zeros((6, 6, 3), np.uint8)


def test_the_refiner_none_leaves_masks_as_they_are():
    masks = np.stack([grid("#..", "..."), grid("..#", "..#")])
    refined, confirmed = refine_masks(np.zeros((2, 3, 3), np.uint8), masks, "none", 1.0)
    assert confirmed.tolist() == [True, True]
    assert np.array_equal(refined, masks)


def nothing_to_refine(image, masks):
    pytest.fail("nothing to refine")


@pytest.mark.parametrize("refiner", ["none", nothing_to_refine])
def test_no_masks(refiner):
    refined, confirmed = refine_masks(BLANK, np.zeros((0, 6, 6), bool), refiner, 0.5)
    assert refined.shape == (0, 6, 6)
    assert len(confirmed) == 0


def test_holes_are_filled_before_the_iou():
    ring = grid("......", ".####.", ".#..#.", ".#..#.", ".####.", "......")
    full = grid("......", ".####.", ".####.", ".####.", ".####.", "......")
    # the IoU of the ring is 12 / 16
    refined, confirmed = refine_masks(BLANK, full[None], lambda *_: ring[None].copy(), 1.0)
    assert np.array_equal(refined, full[None])
    assert confirmed.tolist() == [True]


def test_a_bay_is_no_hole():
    bay = grid("......", ".####.", ".#..#.", ".#..#.", ".#..#.", "......")
    refined, _ = refine_masks(BLANK, bay[None], lambda image, masks: masks.copy(), 0.5)
    assert np.array_equal(refined, bay[None])


@pytest.mark.parametrize(
    ("after", "is_confirmed"),
    [
        (("##....",) + ("......",) * 5, True),  # 2 of 4: exactly 0.5 is enough
        (("#.....",) + ("......",) * 5, False),
        (("######",) + ("##....",) + ("......",) * 4, True),  # 4 of 8
        (("######", "###...") + ("......",) * 4, False),  # 4 of 9
        (("......",) * 6, False),  # emptied
    ],
)
def test_iou_decides(after, is_confirmed):
    before = grid("####..", *["......"] * 5)
    refined, confirmed = refine_masks(BLANK, before[None], lambda *_: grid(*after)[None], 0.5)
    assert confirmed.tolist() == [is_confirmed]
    assert np.array_equal(refined[0], grid(*after))


def test_the_refiner_sees_the_image_and_its_masks(monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    seen = {}

    def look(image, masks):
        seen.update(image=image, masks=masks)
        return masks

    monkeypatch.setitem(REFINERS, "look", look)
    masks = grid("#.", ".#")[None]
    refine_masks(image, masks, "look", 0.5)
    assert np.array_equal(seen["image"], image)
    assert np.array_equal(seen["masks"], masks)


def test_unknown_refiner():
    with pytest.raises(UserError) as caught:
        GridConfig(refine="sam")
    assert "'sam'" in str(caught.value)
    for name in REFINERS:
        assert name in str(caught.value)
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


def test_a_twin_is_asked_where_a_device_is_named(monkeypatch):
    asked = []

    def look(image, masks, device):
        asked.append(device)
        return masks.copy()

    monkeypatch.setitem(refiners.DEVICE_REFINERS, "guided", look)
    refine_masks(BLANK, np.ones((1, 6, 6), bool), "guided", 0.5, "meta")
    refine_masks(BLANK, np.ones((1, 6, 6), bool), "none", 0.5, "meta")
    assert asked == ["meta"]


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(UserError, match="'nowhere'"):
        check_refiner("guided", "nowhere")
    with pytest.raises(UserError, match="'nowhere'"):
        stub(masks_device="nowhere")
    with pytest.raises(UserError, match=r"refine_device.*dense_crf"):
        ProMergeConfig(refine="dense_crf", refine_device="cpu")
