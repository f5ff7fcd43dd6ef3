import numpy as np
import pytest

from promerge_d2.labeler.components import label_components
from tests.labeler.helpers import grid
from tests.labeler.reference import flood


def test_corners_do_not_connect():
    labels, areas = label_components(
        grid(
            "##....",
            "#.#...",
            "..##..",
            "....#.",
            "....##",
            "#.....",
        )[None]
    )
    assert labels[0].tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 0, 2, 0, 0, 0],
        [0, 0, 2, 2, 0, 0],
        [0, 0, 0, 0, 3, 0],
        [0, 0, 0, 0, 3, 3],
        [4, 0, 0, 0, 0, 0],
    ]
    assert areas[1:].tolist() == [3, 3, 3, 1]


def test_masks_above_each_other_do_not_touch():
    full = np.ones((3, 4, 5), bool)
    labels, areas = label_components(full)
    assert [np.unique(one).tolist() for one in labels] == [[1], [2], [3]]
    assert areas[1:].tolist() == [20, 20, 20]


def test_last_row_of_one_and_first_of_the_next():
    low, high = grid("..", "##"), grid("##", "..")
    labels, _ = label_components(np.stack([low, high]))
    assert labels.tolist() == [[[0, 0], [1, 1]], [[2, 2], [0, 0]]]


def test_no_wrap_around_the_right_edge():
    labels, _ = label_components(grid("..#", "#..")[None])
    assert labels.tolist() == [[[0, 0, 1], [2, 0, 0]]]


def test_empty_mask_among_others():
    labels, areas = label_components(np.stack([grid("..", ".."), grid("#.", "..")]))
    assert labels.tolist() == [[[0, 0], [0, 0]], [[1, 0], [0, 0]]]
    assert areas[1:].tolist() == [1]


def test_no_mask_at_all():
    labels, areas = label_components(np.zeros((0, 4, 5), bool))
    assert labels.shape == (0, 4, 5)
    assert len(areas) == 1


@pytest.mark.parametrize("density", [0.3, 0.5, 0.6])
def test_reading_order_and_areas_as_flood_fill(density):
    """A mosaic tall enough for OpenCV to cut it into stripes for its threads."""
    masks = np.random.default_rng(0).random((300, 9, 11)) < density
    labels, areas = label_components(masks)
    assert labels.dtype == np.int32
    expected = [(i, part) for i, mask in enumerate(masks) for part in flood(mask)]
    assert len(areas) == len(expected) + 1
    for label, (index, part) in enumerate(expected, start=1):
        assert areas[label] == part.sum()
        assert np.array_equal(labels[index] == label, part)
