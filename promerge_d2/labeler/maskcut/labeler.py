"""A normalised-cut baseline: MaskCut as the CutLER paper describes it, written anew.

The patches of an image are the nodes of a graph (``graph.py``). Of its best normalised cut, the
side that looks like an object gives a mask, its patches are masked out, and the cut is repeated.
docs/algorithm.md has the released numbers.

What the paper leaves open and is decided here (our own):

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
M masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch

from promerge_d2.labeler.base import GridMasks, Labeler
from promerge_d2.labeler.components import label_components
from promerge_d2.labeler.maskcut.config import MaskCutConfig
from promerge_d2.labeler.maskcut.graph import alike_graph, second_eigenvector, sum_alike

TIE = 1e-6  # of the eigenvector's largest size


def object_mask(eigenvector: np.ndarray) -> np.ndarray:
    """Find the object that a cut shows.

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
    """Find the first of the largest values, in reading order."""
    return np.unravel_index(np.argmax(values >= values.max() - TIE), values.shape)


def is_void(mask: np.ndarray, before: np.ndarray, void_iou: float, min_area: float) -> bool:
    """Decide whether a later mask repeats the one before it or is too small.

    Args:
        mask: (H, W) bool, not empty.
        before: (H, W) bool.
        void_iou: void above this IoU.
        min_area: void at this share of the grid or less.

    Returns:
        Whether it is void.
    """
    iou = np.count_nonzero(mask & before) / np.count_nonzero(mask | before)
    return bool(iou > void_iou or mask.mean() <= min_area)


def maskcut_masks(
    features: torch.Tensor,
    config: MaskCutConfig,
    solve: Callable[[np.ndarray, np.ndarray], np.ndarray] = second_eigenvector,
) -> GridMasks:
    """Cut the patch graph again and again, masking out what was found.

    Args:
        features: (C, H, W) raw float32 features.
        config: thresholds; ``config.grid`` is not used.
        solve: gives the eigenvector, see ``second_eigenvector``.

    Returns:
        At most ``config.masks`` masks.
    """
    shape = features.shape[1:]
    alike, active = alike_graph(features, config.tau)
    masks: list[np.ndarray] = []
    for _ in range(config.masks):
        neighbours = sum_alike(alike, active, np.ones(len(active)))  # of each patch, with itself
        if neighbours.max() <= 1 or neighbours.min() == len(active):
            break  # none is like another, or all are alike
        mask = object_mask(solve(alike, active).reshape(shape))
        if not masks or not is_void(mask, masks[-1], config.void_iou, config.min_area):
            masks.append(mask)
        if not active[mask.ravel()].any():
            break  # nothing more to mask out: the next cut would be the same
        active &= ~mask.ravel()
    merged = np.array(masks, dtype=bool).reshape(-1, *shape)
    return GridMasks(merged, reason=None if masks else "no_cut")


class MaskCutLabeler(Labeler[MaskCutConfig]):
    """Training-free instance masks by iterated normalised cuts, to compare ProMerge with.

    For example:

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
