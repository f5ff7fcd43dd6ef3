"""Background vote (paper, section 3; docs/algorithm.md).

Shape letters: B background candidates, H and W rows and columns of the patch grid.
"""

from __future__ import annotations

import numpy as np


def vote_background(candidates: np.ndarray, vote: float = 0.5) -> np.ndarray:
    """Find the patches that more than a share ``vote`` of the candidates call background.

    Example: of the candidates ``[[[1, 1, 0]], [[1, 0, 0]]]`` the vote at 0.5 keeps ``[[1, 0, 0]]``.

    Args:
        candidates: (B, H, W) bool, B at least 1.
        vote: in [0, 1], strict.

    Returns:
        (H, W) bool.
    """
    return candidates.mean(axis=0, dtype=np.float64) > vote
