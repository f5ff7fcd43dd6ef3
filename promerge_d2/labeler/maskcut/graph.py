"""The graph of alike patches, and the eigenvector that shows its best normalised cut.

The weight W_ij of two patches is 1 where the cosine of their features reaches tau, else 1e-5
(CutLER, section 3.1). The cut is read from the eigenvector of the second smallest eigenvalue of
(D - W) x = lambda D x, D the diagonal of W's row sums.

Shape letters: C channels, H and W rows and columns of the patch grid, n = H * W patches row by row.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import linalg
from scipy.sparse.linalg import LinearOperator, eigsh

UNLIKE = 1e-5  # weight between patches that are not alike
TOLERANCE = 1e-12  # of eigenvalues between -1 and 1; far below what ``object_mask`` tells apart
PANEL = 512  # rows of the graph that are computed at a time: half of its matrix is never touched


def alike_graph(features: torch.Tensor, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """Find which patches are alike.

    Args:
        features: (C, H, W) raw float32 features.
        tau: cosine from which on two patches are alike (paper: tau^ncut).

    Returns:
        (n, n) float64 of 0 and 1, of which only the upper triangle is filled, and the patches
        that have a feature at all, (n,) bool.
    """
    flat = features.cpu().flatten(1).numpy()
    norms = np.linalg.norm(flat, axis=0)
    active = norms > 0
    unit = flat / np.where(active, norms, 1)
    alike = np.zeros((unit.shape[1], unit.shape[1]))
    for start in range(0, len(alike), PANEL):
        alike[start : start + PANEL, start:] = (
            unit[:, start : start + PANEL].T @ unit[:, start:] >= tau
        )
    return alike, active


def sum_alike(alike: np.ndarray, active: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sum values over the active patches that each active patch is like.

    Example: with ``alike`` ``[[1, 1], [_, 1]]`` the values ``[2, 3]`` give ``[5, 5]``, or
    ``[2, 0]`` if only the first patch is active.

    Args:
        alike: (n, n) float64, upper triangle.
        active: (n,) bool.
        values: (n,) float64.

    Returns:
        (n,) float64, 0 for patches that are not active.
    """
    # the transpose, for BLAS, lies in memory as it wants it; and it reads one triangle only
    return active * linalg.blas.dsymv(1.0, alike.T, active * values, lower=1)


def second_eigenvector(alike: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Compute the second smallest eigenvector by ARPACK, in some 20 products with the graph.

    With z = D^1/2 x the problem is N z = (1 - lambda) z for N = D^-1/2 W D^-1/2, whose largest
    eigenpair is known: 1 and D^1/2 1, which is moved to -1, out of the way. W is never made: it
    is a constant plus (1 - 1e-5) times the graph. The start is fixed, so that the result depends
    on the input alone. At 60 x 60 patches it takes 0.05 s of a core.

    Args:
        alike: (n, n) float64, upper triangle.
        active: (n,) bool.

    Returns:
        (n,) float64, of any sign and length.
    """
    count = len(active)

    def apply_weights(values: np.ndarray) -> np.ndarray:
        return UNLIKE * values.sum() + (1 - UNLIKE) * sum_alike(alike, active, values)

    root = np.sqrt(apply_weights(np.ones(count)))  # D^1/2 1
    known = root / np.linalg.norm(root)

    def product(values: np.ndarray) -> np.ndarray:
        return apply_weights(values / root) / root - 2 * known * (known @ values)

    start = np.cos(np.arange(count))  # no symmetry of a grid leaves it as it is
    start -= known * (known @ start)
    operator = LinearOperator((count, count), matvec=product, dtype=np.float64)
    _, vectors = eigsh(operator, k=1, which="LA", v0=start, tol=TOLERANCE)
    return vectors[:, 0] / root
