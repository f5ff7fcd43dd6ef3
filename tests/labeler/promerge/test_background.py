import numpy as np
import pytest

from promerge_d2.labeler.promerge.background import vote_background
from tests.labeler.helpers import grid

A = grid("######", "######", "##....", "......", "......", "......")
B = grid("######", "......", "##....", "##....", "......", "......")
C = grid("......", "######", "#.....", "##....", "......", "......")
D = grid("......", "......", "......", "......", "......", "#.....")


@pytest.mark.parametrize(
    ("candidates", "vote", "expected"),
    [
        ([A], 0.5, A),
        # of three, two are more than half
        ([A, B, C], 0.5, grid("######", "######", "##....", "##....", "......", "......")),
        # of two, one is exactly half: not enough
        ([A, B], 0.5, grid("######", "......", "##....", "......", "......", "......")),
        # of four, two are exactly half; three are needed
        ([A, B, C, D], 0.5, grid("......", "......", "#.....", "......", "......", "......")),
        # a lower bar lets the half pass
        ([A, B], 0.4, A | B),
        ([A, B, C], 0.0, A | B | C),
        # strict: not even all of them are more than all
        ([A, A], 1.0, np.zeros((6, 6), bool)),
    ],
)
def test_vote(candidates, vote, expected):
    voted = vote_background(np.stack(candidates), vote)
    assert voted.dtype == bool
    assert np.array_equal(voted, expected)


def test_many_candidates_do_not_overflow():
    """The release counts in uint8, which wraps at 256."""
    candidates = np.zeros((512, 2, 3), bool)
    candidates[:300, 0, 0] = True
    candidates[:256, 0, 1] = True
    assert vote_background(candidates).tolist() == [[True, False, False], [False] * 3]
