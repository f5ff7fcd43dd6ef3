import numpy as np
import pytest
import torch

from promerge_d2.labeler.promerge.filtering import (
    FILTERS,
    cascade_filter,
    mean_feature,
    pack,
    unpack,
)
from tests.labeler.helpers import as_bytes, grid

UNIT = torch.zeros(2, 6, 6)
UNIT[0] = 1  # every patch looks like every other unless a test says so


def scene(**directions):
    """Unit features: axis 0 everywhere, axis 1 where `other` is."""
    unit = UNIT.clone()
    other = torch.from_numpy(directions["other"])
    unit[0][other] = 0
    unit[1][other] = 1
    return unit


NONE = np.zeros((6, 6), bool)
BACKGROUND = grid("######", "######", "......", "......", "......", "......")
LOWER = ~BACKGROUND


def keep(masks, background=BACKGROUND, unit=None, **settings):
    unit = scene(other=LOWER) if unit is None else unit
    return cascade_filter(unit, np.stack(masks), background, **settings)[0]


def test_mean_feature_is_not_normalised_again():
    mask = grid("......", "#.....", "#.....", "#.....", "......", "......")
    unit = scene(other=LOWER)
    assert mean_feature(unit, mask).numpy() == pytest.approx([1 / 3, 2 / 3], abs=1e-6)
    assert mean_feature(unit, BACKGROUND).tolist() == [1, 0]


def test_pack_orders_bits_alike():
    masks = np.random.default_rng(0).random((20, 5, 7)) < 0.5
    packed = pack(masks)
    for i in range(20):
        for j in range(20):
            assert (packed[i] & packed[j]).bit_count() == (masks[i] & masks[j]).sum()
            assert (packed[i] & ~packed[j]).bit_count() == (masks[i] & ~masks[j]).sum()
    assert pack(np.zeros((0, 5, 7), bool)) == []


@pytest.mark.parametrize("shape", [(20, 5, 7), (3, 4, 4), (1, 1, 1), (0, 5, 7)])
def test_unpack_undoes_pack(shape):
    masks = np.random.default_rng(0).random(shape) < 0.5
    unpacked = unpack(pack(masks), *shape[1:])
    assert unpacked.dtype == bool
    assert np.array_equal(unpacked, masks)


def test_leading_bits_come_first_in_reading_order():
    """Merging orders masks of equal area by it."""
    first, second = grid("....", ".#..", "....", "...."), grid("....", "..#.", "....", "#...")
    (one,), (two,) = pack(first[None]), pack(second[None])
    assert (one.bit_length(), two.bit_length()) == (16 - 5, 16 - 6)


def test_duplicates_leave():
    mask = grid("......", "......", "......", ".##...", ".##...", "......")
    assert np.array_equal(keep([mask, mask, mask]), mask[None])


def test_a_mask_that_adds_nothing_leaves():
    left = grid("......", "......", "......", ".#....", ".#....", "......")
    right = grid("......", "......", "......", "..##..", "..##..", "......")
    both = left | right
    assert as_bytes(keep([both, left, right])) == as_bytes([left, right])
    # with a patch of its own it stays
    more = both | grid("......", "......", "......", "......", "......", "#.....")
    assert as_bytes(keep([more, left, right])) == as_bytes([left, right, more])


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        # 4 of 5 patches are background: 0.8 is not below 0.8
        (("......", "####..", "#.....", "......", "......", "......"), False),
        # 3 of 4
        (("......", "###...", "#.....", "......", "......", "......"), True),
        (("......", "#####.", "#.....", "......", "......", "......"), False),
        (("......", "......", "#.....", "......", "......", "......"), True),
    ],
)
def test_the_share_of_background_is_strict(rows, kept):
    assert len(keep([grid(*rows)], kind="ioa", tau_ioa=0.8)) == kept


def test_the_share_is_of_the_new_patches():
    """The small mask takes the clean patches; what the large one adds is all background."""
    small = grid("......", "......", "###...", "###...", "......", "......")
    large = small | grid("......", "##....", "......", "......", "......", "......")
    assert len(keep([large], kind="ioa")) == 1  # 2 of 8
    assert as_bytes(keep([large, small], kind="ioa")) == as_bytes([small])  # 2 of 2 new


def test_what_was_rejected_does_not_count_as_seen():
    """A mask that left is no part of the union: the next one is judged on all of its patches."""
    bad = grid("......", "####..", "#.....", "......", "......", "......")  # 0.8
    good = bad | grid("......", "......", ".#####", "......", "......", "......")  # 4 of 10
    assert as_bytes(keep([bad, good], kind="ioa")) == as_bytes([good])


def test_reasons_counted_by_hand():
    """Above, background (feature 1, 0) and below, an object (0, 1)."""
    top = grid("####", "####", "....", "....")
    unit = torch.zeros(2, 4, 4)
    unit[0, :2], unit[1, 2:] = 1, 1
    masks = [
        grid("....", "....", "##..", "...."),  # kept
        grid("....", "....", "##..", "...."),  # the same again
        grid("##..", "....", "....", "...."),  # like the background
        grid("...#", "...#", "...#", "...#"),  # half on it
        grid("....", "....", "##.#", "..##"),  # kept
    ]
    kept, left = cascade_filter(unit, np.stack(masks), top, tau_ioa=0.5, tau_f=0.6)
    assert as_bytes(kept) == as_bytes([masks[0], masks[4]])
    assert left == {"tau_f": 1, "new": 1, "tau_ioa": 1}


@pytest.mark.parametrize(
    ("kind", "tests"),
    [("cascade", "tau_f new tau_ioa"), ("ioa", "new tau_ioa"), ("feature", "tau_f new")],
)
def test_reasons_and_kept_ones_make_all(kind, tests):
    rng, seen = np.random.default_rng(2), set()
    for _ in range(20):
        masks = rng.random((12, 6, 6)) < rng.random((12, 1, 1)) / 2 + 0.1
        masks[:6, 3, 3] = True
        masks[6:] = masks[:6]
        unit = torch.from_numpy(rng.normal(size=(3, 6, 6)))
        kept, left = cascade_filter(unit, masks, BACKGROUND, kind, 0.5, 0.1)
        assert len(kept) + sum(left.values()) == len(masks)
        seen |= {test for test, count in left.items() if count}
    assert seen == set(tests.split())


def test_order_of_acceptance_is_by_area():
    one = grid("......", "......", "......", "......", "......", "#.....")
    two = grid("......", "......", "......", "......", "......", "....##")
    six = grid("......", "......", "######", "......", "......", "......")
    kept = keep([six, one, two])
    assert [int(m.sum()) for m in kept] == [1, 2, 6]


def test_equal_areas_keep_the_order_given():
    """Two rows that share patches; the second one's new patch is background, so order decides."""
    first = grid("......", "......", "##....", "......", "......", "......")
    second = grid("......", "#.....", "#.....", "......", "......", "......")
    assert as_bytes(keep([first, second], kind="ioa")) == as_bytes([first])
    assert as_bytes(keep([second, first], kind="ioa")) == as_bytes([first, second])


def test_feature_test_is_of_the_whole_mask_and_strict():
    # 1 of 4 patches looks like the background: product of means 0.25
    mask = grid("......", "#.....", "#.....", "#.....", "#.....", "......")
    assert len(keep([mask], tau_f=0.26)) == 1
    assert len(keep([mask], tau_f=0.25)) == 0
    assert len(keep([mask], tau_f=0.24)) == 0
    # on the new patches alone (all of them unlike the background) it would pass
    covered = grid("......", "#.....", "......", "......", "......", "......")
    kept = keep([covered, mask], kind="feature", tau_f=0.25)
    assert len(kept) == 0


def test_kinds():
    """One mask for each way of failing, none of them overlapping."""
    unit = scene(other=LOWER)
    unit[:, 5, 4:] = torch.tensor([1.0, 0.0])[:, None]  # looks like the background, is outside it
    unit[:, 0, :2] = torch.tensor([0.0, 1.0])[:, None]  # lies in the background, looks unlike it
    clean = grid("......", "......", "......", "###...", "......", "......")
    alike = grid("......", "......", "......", "......", "......", "....##")
    inside = grid("##....", "......", "......", "......", "......", "......")
    masks = [clean, alike, inside]
    # the background's mean is (10, 2) / 12: products 1/6, 5/6 and 1/6
    for kind, kept in {
        "cascade": [clean],
        "ioa": [clean, alike],
        "feature": [clean, inside],
        "none": masks,
    }.items():
        assert as_bytes(keep(masks, unit=unit, kind=kind, tau_f=0.2)) == as_bytes(kept), kind


def test_kind_none_keeps_duplicates_and_asks_for_no_background():
    mask = grid("......", "......", "......", ".##...", ".##...", "......")
    small = grid("......", "......", "......", ".#....", "......", "......")
    kept = keep([mask, small, mask], background=NONE, kind="none")
    assert [int(m.sum()) for m in kept] == [1, 4, 4]


@pytest.mark.parametrize("kind", FILTERS)
def test_no_masks(kind):
    nothing = np.zeros((0, 6, 6), bool)
    assert cascade_filter(UNIT, nothing, BACKGROUND, kind)[0].shape == (0, 6, 6)


@pytest.mark.parametrize("kind", FILTERS)
def test_visiting_order_does_not_matter_without_ties(kind):
    rng = np.random.default_rng(5)
    compared = 0
    while compared < 10:
        masks = rng.random((6, 6, 6)) < rng.random((6, 1, 1))
        areas = masks.sum(axis=(1, 2))
        if len(set(areas.tolist())) < 6 or areas.min() == 0:
            continue
        unit = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(3, 6, 6))), dim=0)
        first = keep(list(masks), unit=unit, kind=kind)
        second = keep(list(masks[rng.permutation(6)]), unit=unit, kind=kind)
        assert np.array_equal(first, second)
        compared += 1
