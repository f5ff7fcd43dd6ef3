"""A normalised-cut baseline: MaskCut as the CutLER paper describes it, written anew.

The patches of an image are the nodes of a graph whose weight W_ij is 1 where the cosine of their
features reaches tau, else 1e-5. Its best normalised cut is read from the eigenvector of the second
smallest eigenvalue of (D - W) x = lambda D x, D the diagonal of W's row sums; the side of the cut
that looks like an object gives a mask, its patches are masked out, and the cut is repeated
(promerge.md B7 has the released numbers).

What the paper leaves open and is decided here ("our own"):

* A patch counts as equal to the largest, or to the mean, within ``TIE`` of the eigenvector's
  largest size, and of equal ones the first in reading order is the seed: rounding decides nothing,
  and neither does the eigenvector's sign, which is arbitrary.
* Masked-out patches stay in the graph, like to nothing, themselves included, whatever tau is; so
  do patches whose features are zero. A later mask may therefore touch an earlier one.
* A void mask is not returned, but its patches are masked out like those of any other, or the next
  cut would repeat it; "the mask before" is the last one that was not void. The first mask is never
  void.
* There is nothing to cut where all patches are alike, or none is like another.
* Where the second eigenvalue is not simple (three equal cliques, say), the eigenvector is the
  solver's choice, and solvers may differ.

Shape letters: C channels, H and W rows and columns of the patch grid, n = H * W patches row by row,
M masks, k steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from scipy import linalg

from promerge_d2.labeler.base import GridMasks, Labeler
from promerge_d2.labeler.components import label_components
from promerge_d2.labeler.maskcut.config import MaskCutConfig

UNLIKE = 1e-5  # weight between patches that are not alike
TIE = 1e-6  # of the eigenvector's largest size
LANCZOS_RESIDUAL = 1e-12  # of eigenvalues between -1 and 1; far below TIE
PANEL = 512  # rows of the graph that are computed at a time: half of its matrix is never touched


def alike_graph(features: torch.Tensor, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """Which patches are alike.

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
    """Sum values over the active patches that each active patch is like: A v.

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


def dense_eigenvector(alike: np.ndarray, active: np.ndarray) -> np.ndarray:
    """The second smallest eigenvector by a dense solver of the generalised problem.

    As the papers' releases compute it; the reference.

    Args:
        alike: (n, n) float64, upper triangle.
        active: (n,) bool.

    Returns:
        (n,) float64, of any sign and length.
    """
    joined = np.triu(alike).astype(bool) & active & active[:, None]
    weights = np.where(joined | joined.T, 1.0, UNLIKE)
    degrees = np.diag(weights.sum(axis=1))
    _, vectors = linalg.eigh(degrees - weights, degrees, subset_by_index=[1, 1])
    return vectors[:, 0]


def lanczos_eigenvector(alike: np.ndarray, active: np.ndarray) -> np.ndarray:
    """The same by the Lanczos iteration, some 20 products with the graph instead of n.

    With z = D^1/2 x the problem is N z = (1 - lambda) z for N = D^-1/2 W D^-1/2, whose largest
    eigenpair is known: 1 and D^1/2 1, which is moved to -1, out of the way. W is never made: it
    is a constant plus (1 - 1e-5) times the graph. The start is fixed, and orthogonality is kept by
    Gram-Schmidt done twice, so that the result depends on the input alone.

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
    step = np.cos(np.arange(count))  # no symmetry of a grid leaves it as it is
    step -= known * (known @ step)
    step /= np.linalg.norm(step)
    basis = np.empty((count, count))  # memory is taken by the rows in use
    diagonal, beside = [], []  # of the tridiagonal matrix
    for k in range(count):
        basis[k] = step
        step = apply_weights(step / root) / root - 2 * known * (known @ step)
        diagonal.append(basis[k] @ step)
        for _ in range(2):
            step -= (basis[: k + 1] @ step) @ basis[: k + 1]
        length = np.linalg.norm(step)
        _, ritz = linalg.eigh_tridiagonal(diagonal, beside, select="i", select_range=(k, k))
        if length * abs(ritz[-1, 0]) <= LANCZOS_RESIDUAL:
            break
        beside.append(length)
        step /= length
    return ritz[:, 0] @ basis[: len(ritz)] / root


EIGENVECTORS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "lanczos": lanczos_eigenvector,
    "dense": dense_eigenvector,
}
"""By the name of ``MaskCutConfig.solver``."""


def object_mask(eigenvector: np.ndarray) -> np.ndarray:
    """The object that a cut shows.

    The patches are split at the eigenvector's mean. The side that holds its largest entry by size
    is the object's, unless it covers two corners of the grid or more: then the other side is.
    Of that side, the component with the side's largest entry stays.

    Args:
        eigenvector: (H, W) float64, not constant.

    Returns:
        (H, W) bool.
    """
    size = np.abs(eigenvector)
    values = eigenvector / size.max()
    seed = _first_largest(size / size.max())
    values *= np.sign(values[seed])
    side = values - values.mean() > TIE
    if side[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= 2:
        side = ~side
        seed = _first_largest(-values)
    labels, _ = label_components(side[None])
    return labels[0] == labels[0][seed]


def _first_largest(values: np.ndarray) -> tuple[np.intp, ...]:
    """Where the first of the largest values is, in reading order."""
    return np.unravel_index(np.argmax(values >= values.max() - TIE), values.shape)


def is_void(mask: np.ndarray, before: np.ndarray, void_iou: float, min_area: float) -> bool:
    """Whether a later mask repeats the one before it or is too small.

    Args:
        mask: (H, W) bool, not empty.
        before: (H, W) bool.
        void_iou: void above this IoU.
        min_area: void at this share of the grid or less.
    """
    iou = np.count_nonzero(mask & before) / np.count_nonzero(mask | before)
    return bool(iou > void_iou or mask.mean() <= min_area)


def maskcut_masks(features: torch.Tensor, config: MaskCutConfig) -> GridMasks:
    """Cut the patch graph again and again, masking out what was found.

    Args:
        features: (C, H, W) raw float32 features.
        config: thresholds; ``config.grid`` is not used.

    Returns:
        At most ``config.masks`` masks.
    """
    shape = features.shape[1:]
    alike, active = alike_graph(features, config.tau)
    masks = []
    for _ in range(config.masks):
        neighbours = sum_alike(alike, active, np.ones(len(active)))  # of each patch, with itself
        if neighbours.max() <= 1 or neighbours.min() == len(active):
            break  # none is like another, or all are alike
        mask = object_mask(EIGENVECTORS[config.solver](alike, active).reshape(shape))
        if not masks or not is_void(mask, masks[-1], config.void_iou, config.min_area):
            masks.append(mask)
        if not active[mask.ravel()].any():
            break  # nothing more to mask out: the next cut would be the same
        active &= ~mask.ravel()
    merged = np.array(masks, dtype=bool).reshape(-1, *shape)
    return GridMasks(merged, reason=None if masks else "no_cut")


class MaskCutLabeler(Labeler):
    """Training-free instance masks by iterated normalised cuts, to compare ProMerge with.

    Example::

        labeler = MaskCutLabeler.from_preset(backbone="dino_vitb8", masks=3)
        for record in labeler("street.jpg"):
            print(record["bbox"], record["area"])

    Its only preset is ``"maskcut"``, with the released numbers. Records come in the
    order in which the cuts found them.
    """

    name = "maskcut"
    title = "MaskCut"
    config_class = MaskCutConfig
    reasons: ClassVar[dict[str, str]] = {
        "no_cut": "the patches are all alike, or none is like another; raise tau in the first "
        "case, lower it in the second",
        **Labeler.reasons,
    }

    @staticmethod
    def grid_masks(features: torch.Tensor, config: MaskCutConfig) -> GridMasks:
        """Find masks on the patch grid, see ``maskcut_masks``."""
        return maskcut_masks(features[0], config)
