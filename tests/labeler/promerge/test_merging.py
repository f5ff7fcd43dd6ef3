import numpy as np
import pytest
import torch

from promerge_d2.labeler.promerge.merging import merge_masks
from tests.labeler.helpers import as_bytes, grid
from tests.labeler.reference import Settings, merge

ALIKE = torch.zeros(2, 6, 6)
ALIKE[0] = 1
APART = torch.eye(36).reshape(36, 6, 6)  # every patch at a right angle to every other


def rows(first: int, last: int, columns: int = 6) -> np.ndarray:
    """Mask of rows first..last-1 and the leftmost columns."""
    mask = np.zeros((6, 6), bool)
    mask[first:last, :columns] = True
    return mask


@pytest.mark.parametrize(
    ("small", "merged"),
    [
        (grid("......", "......", "......", "##....", "##....", "......"), False),  # 2 of 4
        (grid("......", "......", "##....", "##....", "##....", "......"), True),  # 4 of 6
        (grid("......", "......", "......", "......", "......", "######"), False),
        (grid("......", "......", ".##...", "......", "......", "......"), True),  # all of it
    ],
)
def test_overlap_share_is_strict(small, merged):
    """Features of any two patches are at right angles, so that only the overlap can merge."""
    large = rows(0, 4)
    found = merge_masks(APART, np.stack([small, large]), tau_merge_f=0.5)
    assert as_bytes(found) == as_bytes([small | large] if merged else [small, large])


@pytest.mark.parametrize(
    ("height", "gate", "merged"),
    [
        (10, 0.1, False),  # 1 of 10 is not above the gate
        (9, 0.1, True),  # 1 of 9 is
        (9, 0.2, False),
        (4, 0.2, True),
    ],
)
def test_the_gate_before_features(height, gate, merged):
    """All patches are alike; the mask has `height` patches, one of them shared."""
    large = np.zeros((12, 6), bool)
    large[:2] = True  # 12 patches
    small = np.zeros((12, 6), bool)
    small[1 : 1 + height, 0] = True
    unit = torch.zeros(2, 12, 6)
    unit[0] = 1
    found = merge_masks(unit, np.stack([large, small]), tau_merge_gate=gate)
    assert len(found) == (1 if merged else 2)


def test_far_apart_but_alike_stay_apart():
    masks = np.stack([rows(0, 1), rows(4, 5, 3)])
    assert len(merge_masks(ALIKE, masks)) == 2


@pytest.mark.parametrize(("tau", "merged"), [(0.25, True), (0.2501, False), (0.1, True)])
def test_feature_product_may_equal_its_threshold(tau, merged):
    """Means (0.5, 0.5) each in a plane where the product is 0.25 + ... = exactly 0.25."""
    unit = torch.zeros(3, 6, 6)
    large, small = rows(0, 2, 4), rows(1, 3, 2)  # 8 and 4 patches, 2 of 4 shared: q = 0.5
    unit[0, 1, :2] = 1  # the shared patches
    unit[1, 2, :2] = 1  # the rest of the small one: its mean is (0.5, 0.5, 0)
    unit[0, 0, :2] = 1  # two more of the large one: its mean is (0.5, 0, 0.5)
    unit[2, :2, 2:4] = 1
    found = merge_masks(unit, np.stack([large, small]), tau_merge_f=tau)
    assert len(found) == (1 if merged else 2)


def test_chain_of_one_pass():
    """The smallest one touches two clusters that do not touch each other: all become one."""
    a = grid("######", "######", "......", "......", "......", "......")  # 12
    b = grid("......", "......", "......", "......", "######", "####..")  # 10
    c = grid("......", "....##", "....##", "....##", "....##", "......")  # 8: 2 in a, 2 in b
    assert len(merge_masks(APART, np.stack([a, b]), tau_merge_ioa=0.2)) == 2
    found = merge_masks(APART, np.stack([a, b, c]), tau_merge_ioa=0.2)
    assert as_bytes(found) == as_bytes([a | b | c])


def test_clusters_grown_later_are_not_compared_again():
    """Half of b ends inside a's cluster, which grew after b was compared."""
    a = rows(0, 2)  # 12
    b = grid("......", "......", "......", "##....", "##....", "##....")  # 6, none in a
    c = grid("......", "###...", "......", "#.....", "#.....", "......")  # 5: 3 in a, 2 in b
    d = grid("......", ".##...", "......", ".#....", "......", "......")  # 3: 2 in a, 1 in b
    found = merge_masks(APART, np.stack([a, b, c, d]), tau_merge_f=0.9)
    assert as_bytes(found) == as_bytes([a | c | d, b])
    # at once, b would join: 3 of its 6 patches are above 0.4
    found = merge_masks(APART, np.stack([a, b, c, d]), tau_merge_ioa=0.45, tau_merge_f=0.9)
    assert as_bytes(found) == as_bytes([a | c | d, b])
    assert len(merge_masks(APART, np.stack([a | c | d, b]), tau_merge_ioa=0.45)) == 1


def test_a_mask_joins_all_clusters_that_it_meets():
    left = grid("##....", "##....", "##....", "##....", "......", "......")  # 8
    right = grid("....##", "....##", "....##", "....##", "......", "......")  # 8
    below = grid("......", "......", "......", "......", "......", "######")  # 6
    bridge = grid("......", "......", "......", ".####.", "......", "......")  # 4: 1 and 1
    masks = np.stack([left, right, below, bridge])
    found = merge_masks(APART, masks, tau_merge_ioa=0.2)
    assert as_bytes(found) == as_bytes([left | right | bridge, below])
    assert as_bytes(merge_masks(ALIKE, masks)) == as_bytes([left | right | bridge, below])
    assert as_bytes(merge_masks(APART, masks, tau_merge_f=0.5)) == as_bytes(masks)


def test_share_is_of_the_smaller_mask_not_of_the_union():
    large, small = rows(0, 5), rows(4, 6, 1)  # 30; 1 of 2 shared
    assert len(merge_masks(APART, np.stack([large, small]), tau_merge_f=0.5)) == 2
    small = rows(3, 6, 1)  # 2 of 3
    assert len(merge_masks(APART, np.stack([large, small]))) == 1


def test_no_masks():
    nothing = np.zeros((0, 6, 6), bool)
    assert merge_masks(ALIKE, nothing).shape == (0, 6, 6)


def test_input_is_left_alone():
    masks = np.stack([rows(0, 2), rows(0, 3)])
    before = masks.copy()
    merge_masks(ALIKE, masks)
    assert np.array_equal(masks, before)


def test_order_by_area_then_first_patch():
    six = grid("......", "......", "######", "......", "......", "......")
    late = grid("......", "......", "......", "..#...", "..#...", "......")
    early = grid(".....#", "......", "......", "......", "......", ".....#")
    left = grid("......", "......", "......", ".#....", "......", "#.....")
    ordered = merge_masks(APART, np.stack([late, left, early, six]), tau_merge_f=0.5)
    assert np.array_equal(ordered, np.stack([six, early, left, late]))


def test_visiting_order_does_not_matter_without_ties():
    rng = np.random.default_rng(6)
    compared = merged = 0
    while compared < 30:
        masks = rng.random((5, 6, 6)) < rng.uniform(0.1, 0.5, (5, 1, 1))
        areas = masks.sum(axis=(1, 2))
        if len(set(areas.tolist())) < 5 or areas.min() == 0:
            continue
        unit = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(3, 6, 6))), dim=0)
        found = merge_masks(unit, masks, tau_merge_f=0.2)
        assert np.array_equal(merge_masks(unit, masks[::-1].copy(), tau_merge_f=0.2), found)
        expected = merge(list(masks), unit.numpy(), Settings(merge_feature=0.2), [])
        assert as_bytes(found) == as_bytes(expected)
        compared += 1
        merged += 1 < len(found) < 5
    assert merged >= 5
