import numpy as np
import pytest
import torch

from promerge_d2.labeler.promerge.prompting import (
    covers_sides,
    point_prompting,
    prompt_grid,
    prompt_masks,
    split_components,
)
from promerge_d2.labeler.similarity import l2_normalize
from tests.labeler.helpers import as_bytes, blob_features, grid
from tests.labeler.reference import covered_sides, split, unit_keys

RULES = ("more_than_half", "at_least_half")


def test_normalize_by_hand():
    features = torch.tensor([[[3.0, 0.0, 0.001]], [[4.0, 0.0, 0.0]]])
    unit = l2_normalize(features)
    assert unit[:, 0, 0].tolist() == pytest.approx([3 / 5.00001, 4 / 5.00001], rel=1e-6)
    assert unit[:, 0, 1].tolist() == [0, 0]
    assert unit[0, 0, 2].item() == pytest.approx(0.001 / 0.00101, rel=1e-5)


def test_normalize_as_reference():
    features = blob_features(np.random.default_rng(0), 5, 7)
    assert np.allclose(l2_normalize(torch.from_numpy(features)), unit_keys(features), atol=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "stride", "expected"),
    [
        (6, 6, 3, [[0, 0], [0, 3], [3, 0], [3, 3]]),
        (3, 4, 2, [[0, 0], [0, 2], [2, 0], [2, 2]]),
        (2, 5, 4, [[0, 0], [0, 4]]),
        (5, 2, 4, [[0, 0], [4, 0]]),
        (6, 6, 7, [[0, 0]]),
        (2, 2, 1, [[0, 0], [0, 1], [1, 0], [1, 1]]),
    ],
)
def test_prompt_grid(height, width, stride, expected):
    assert prompt_grid(height, width, stride).tolist() == expected


def test_prompt_counts_of_the_presets():
    assert len(prompt_grid(60, 60, 4)) == 225
    assert len(prompt_grid(60, 60, 6)) == 100
    assert prompt_grid(60, 60, 4).max() == 56


def test_prompt_masks_are_strict_and_by_prompt():
    unit = torch.zeros(2, 2, 3)
    unit[:, 0, 0] = torch.tensor([1.0, 0.0])
    unit[:, 0, 1] = torch.tensor([0.5, 0.0])  # cosine with (0, 0) exactly 0.5
    unit[:, 0, 2] = torch.tensor([0.0, 1.0])
    unit[:, 1, 0] = torch.tensor([-1.0, 0.0])
    unit[:, 1, 2] = torch.tensor([0.75, 0.5])
    prompts = np.array([[0, 0], [0, 2]])
    masks = prompt_masks(unit, prompts, 0.5)
    assert masks.tolist() == [
        [[True, False, False], [False, False, True]],
        [[False, False, True], [False, False, False]],
    ]
    assert prompt_masks(unit, prompts, 0.499)[0, 0, 1]
    assert prompt_masks(unit, prompts, 0.499)[1, 1, 2]


def test_prompt_masks_do_not_depend_on_the_company():
    unit = l2_normalize(torch.from_numpy(blob_features(np.random.default_rng(1), 8, 9)))
    prompts = prompt_grid(8, 9, 2)
    together = prompt_masks(unit, prompts, 0.2)
    order = np.random.default_rng(2).permutation(len(prompts))
    assert np.array_equal(prompt_masks(unit, prompts[order], 0.2), together[order])
    for index in (0, 7, len(prompts) - 1):
        alone = prompt_masks(unit, prompts[index : index + 1], 0.2)[0]
        assert np.array_equal(alone, together[index])


SIDES = [
    # mask, sides covered by more than half, sides covered by at least half
    (grid("####..", "......", "......", "......", "......", "......"), 1, 1),
    (grid("######", "#.....", "#.....", "#.....", "......", "......"), 2, 2),
    # half of the top, half of the bottom
    (grid("###...", "......", "......", "......", "......", "###..."), 0, 2),
    # left and right, exactly half each, touching no more than corners of the others
    (grid("#....#", "#....#", "#....#", "......", "......", "......"), 0, 2),
    # a top of more than half and half of the bottom
    (grid("..####", "......", "......", "......", "......", "..###."), 1, 2),
    # four of six on each side, in two runs
    (grid("##..##", "#....#", "......", "......", "#....#", "##..##"), 4, 4),
    # two of six on each side
    (grid("#....#", "......", "......", "......", "......", "#....#"), 0, 0),
    # the middle alone touches nothing
    (grid("......", ".####.", ".####.", ".####.", ".####.", "......"), 0, 0),
    (np.ones((6, 6), bool), 4, 4),
    (np.zeros((6, 6), bool), 0, 0),
    # a corner: its cell counts for both sides
    (grid("####..", "#.....", "#.....", "#.....", "......", "......"), 2, 2),
    (grid("###...", "#.....", "#.....", "......", "......", "......"), 0, 2),
    # not square, 3 rows of 8: the top is covered from 5, the left from 2
    (grid("#####...", "#.......", "........"), 2, 2),
    (grid("####....", "#.......", "........"), 1, 2),
    (grid("###.....", "#.......", "........"), 1, 1),
    # 8 rows of 3
    (grid("##.", "#..", "#..", "#..", "#..", "...", "...", "..."), 2, 2),
    (grid("##.", "#..", "#..", "#..", "...", "...", "...", "..."), 1, 2),
    (grid("##.", "#..", "#..", "...", "...", "...", "...", "..."), 1, 1),
    # 5 of 10 rows and 2 of 3 columns
    (grid(*["#.."] * 5, *["..."] * 4, "##."), 2, 2),
]


@pytest.mark.parametrize(("mask", "more", "least"), SIDES)
def test_covers_sides(mask, more, least):
    assert covers_sides(mask[None], "more_than_half").tolist() == [more >= 2]
    assert covers_sides(mask[None], "at_least_half").tolist() == [least >= 2]
    # the table itself, against the reference
    assert (covered_sides(mask, RULES[0]), covered_sides(mask, RULES[1])) == (more, least)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(6, 6), (5, 8), (9, 4), (2, 2)])
def test_covers_sides_of_many(rule, shape):
    masks = np.random.default_rng(3).random((400, *shape)) < 0.55
    expected = [covered_sides(mask, rule) >= 2 for mask in masks]
    assert any(expected)
    assert not all(expected)
    assert covers_sides(masks, rule).tolist() == expected


TWO_AND_FIVE = grid(
    "##...#",
    "##...#",
    "##....",
    "......",
    ".....#",
    "...###",
)  # components of 6, 2 and 4


@pytest.mark.parametrize(
    ("prompt", "share", "areas"),
    [
        ((0, 0), 0.5, [6, 4]),  # 4 >= 3, 2 < 3
        ((0, 0), 1.0, [6]),
        ((0, 0), 0.0, [6, 2, 4]),
        ((0, 5), 0.5, [6, 2, 4]),  # larger ones stay whatever the share
        ((0, 5), 1.0, [6, 2, 4]),
        ((5, 3), 0.5, [6, 2, 4]),  # 2 is exactly half of 4: stays
        ((5, 3), 0.51, [6, 4]),
        ((3, 0), 0.5, []),  # the prompt is in none
        ((3, 0), 0.0, []),
    ],
)
def test_split_components(prompt, share, areas):
    parts = split_components(TWO_AND_FIVE[None], np.array([prompt]), share)
    assert parts.dtype == bool
    assert parts.shape == (len(areas), 6, 6)
    assert parts.sum(axis=(1, 2)).tolist() == areas
    if areas:
        assert as_bytes(parts) == as_bytes(split(TWO_AND_FIVE, *prompt, share))


def test_split_uses_each_masks_own_prompt():
    masks = np.stack([TWO_AND_FIVE, TWO_AND_FIVE, TWO_AND_FIVE])
    parts = split_components(masks, np.array([[0, 0], [3, 3], [5, 3]]), 0.51)
    assert parts.sum(axis=(1, 2)).tolist() == [6, 4, 6, 4]


def test_split_of_nothing():
    parts = split_components(np.zeros((0, 6, 6), bool), np.zeros((0, 2), np.int64), 0.5)
    assert parts.shape == (0, 6, 6)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_split_together_equals_split_alone(share):
    rng = np.random.default_rng(4)
    masks = rng.random((60, 7, 9)) < 0.5
    prompts = np.stack([rng.integers(0, 7, 60), rng.integers(0, 9, 60)], axis=1)
    expected = [
        part
        for mask, (row, col) in zip(masks, prompts, strict=True)
        for part in split(mask, row, col, share)
    ]
    parts = split_components(masks, prompts, share)
    assert [p.tobytes() for p in parts] == [p.tobytes() for p in expected]


def test_point_prompting_keeps_candidates_whole():
    """A candidate keeps its far component; the object is split off its twin."""
    scene = torch.zeros(2, 6, 6)
    scene[0] = 1
    scene[:, 2:4, 2:4] = torch.tensor([0.0, 1.0])[:, None, None]  # object
    scene[:, 5, 5] = torch.tensor([0.0, 1.0])  # its like, 1 patch, less than half of 4
    foreground, candidates = point_prompting(l2_normalize(scene), 2, 0.5, "more_than_half", 0.5)
    assert foreground.sum(axis=(1, 2)).tolist() == [4]
    assert len(candidates) == 8
    assert {int(c.sum()) for c in candidates} == {31}
