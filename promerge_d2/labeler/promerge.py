"""The ProMerge labeler: its stages on the patch grid, composed.

Shape letters: C channels, H and W rows and columns of the patch grid, M masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import torch

from promerge_d2.labeler.background import vote_background
from promerge_d2.labeler.config import LabelerConfig
from promerge_d2.labeler.filtering import cascade_filter
from promerge_d2.labeler.labeler import Labeler
from promerge_d2.labeler.merge_tree import merge_tree, tree_masks
from promerge_d2.labeler.merging import merge_masks
from promerge_d2.labeler.prompting import normalize, point_prompting
from promerge_d2.labeler.refinement import upsample
from promerge_d2.labeler.scoring import Frame, score_masks, suppress
from promerge_d2.labeler.tiles import Window, cut_sides, tile_windows


@dataclass
class Stages:
    """What each stage made on the patch grid; what was not reached, or is not used, is None.

    Attributes:
        foreground: (M, H, W) bool, components of the prompts' masks, or regions of the tree.
        candidates: (B, H, W) bool, background candidates.
        background: (H, W) bool, the vote.
        pruned: (P, H, W) bool after the cascade filter, in order of acceptance.
        merged: (M, H, W) bool, final masks on the grid: by descending area, or by score.
        scores: (M,) float64 in [0, 1] of ``merged``, where masks are scored.
        reason: a key of ``ProMergeLabeler.reasons`` when there are none.
    """

    foreground: np.ndarray
    candidates: np.ndarray | None = None
    background: np.ndarray | None = None
    pruned: np.ndarray | None = None
    merged: np.ndarray | None = None
    scores: np.ndarray | None = None
    reason: str | None = None


def grid_masks(
    features: torch.Tensor, config: LabelerConfig, tiles: torch.Tensor | None = None
) -> Stages:
    """Run the stages on the patch grid: prompts, vote, cascade filter, merging; or the tree's.

    Args:
        features: (C, H, W) raw float32 features.
        config: thresholds; ``config.grid`` is not used.
        tiles: (T, C, H, W) of ``tile_windows``, where ``config.tiles`` is more than 1.

    Returns:
        The outcome of every stage reached.
    """
    if config.proposals == "tree":
        return scored_regions(features, config, tiles)
    unit = normalize(features)
    foreground, candidates = point_prompting(
        unit, config.stride, config.tau_b, config.side_rule, config.component_share
    )
    stages = Stages(foreground, candidates)
    if not len(foreground):
        stages.reason = "no_foreground"
        return stages
    if config.background_filter != "none":
        if not len(candidates):
            stages.reason = "no_background"
            return stages
        stages.background = vote_background(candidates, config.background_vote)
        if stages.background.mean() < config.min_background or not stages.background.any():
            stages.reason = "small_background"
            return stages
    stages.pruned = cascade_filter(
        unit,
        foreground,
        stages.background,
        config.background_filter,
        config.tau_ioa,
        config.tau_f,
    )
    stages.merged = merge_masks(
        unit, stages.pruned, config.tau_merge_ioa, config.tau_merge_gate, config.tau_merge_f
    )
    if not len(stages.merged):
        stages.reason = "all_pruned"
    return stages


def scored_regions(
    features: torch.Tensor, config: LabelerConfig, tiles: torch.Tensor | None = None
) -> Stages:
    """The stages on the patch grid without point prompts: merge tree, scores, suppression.

    Args:
        features: (C, H, W) raw float32 features; their mean is taken off, for the models whose
            features share a large one.
        config: its settings for ``proposals = "tree"``.
        tiles: (T, C, H, W) of ``tile_windows``, or None.

    Returns:
        The outcome of every stage; ``merged`` by descending score, with tiles on their canvas.
    """
    unit = _centred(features)
    frame = Frame.of(unit, config.background_quantile)
    regions = _regions(unit, config)
    stages = Stages(regions)
    masks, scores = _best(unit, regions, frame, config)
    if tiles is not None:
        rows, columns = unit.shape[1:]
        canvas = (config.tiles * rows, config.tiles * columns)
        found = [(upsample(masks, *canvas, "linear"), scores)]
        for tile, window in zip(tiles, tile_windows(rows, columns, config.tiles), strict=True):
            tile_masks, tile_scores = _best_of_tile(_centred(tile), frame, window, canvas, config)
            height, width = (part.stop - part.start for part in window)
            placed = np.zeros((len(tile_masks), *canvas), bool)
            placed[(slice(None), *window)] = upsample(tile_masks, height, width, "linear")
            found.append((placed, tile_scores))
        masks, scores = map(np.concatenate, zip(*found, strict=True))
        kept = suppress(masks, scores, config.max_iou, config.max_masks)
        masks, scores = masks[kept], scores[kept]
    if len(masks):
        stages.merged, stages.scores = masks, scores
    else:
        stages.reason = "all_pruned" if len(regions) else "no_foreground"
    return stages


def _centred(features: torch.Tensor) -> np.ndarray:
    """Features (C, H, W) without their mean, normalised."""
    return normalize(features - features.mean(dim=(1, 2), keepdim=True)).cpu().numpy()


def _regions(unit: np.ndarray, config: LabelerConfig) -> np.ndarray:
    """Regions (M, H, W) bool of all scales of a map of unit features (C, H, W)."""
    children, _ = merge_tree(unit)
    return tree_masks(children, *unit.shape[1:], config.min_patches, config.max_share)


def _best(
    unit: np.ndarray, regions: np.ndarray, frame: Frame, config: LabelerConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Those regions of a score above 0 that no better one overlaps too much, and their scores."""
    if not len(regions):
        return regions, np.zeros(0)
    scores = score_masks(unit, regions, frame)["score"]
    kept = suppress(regions, scores, config.max_iou, config.max_masks)
    kept = kept[scores[kept] > 0]
    return regions[kept], scores[kept]


def _best_of_tile(
    unit: np.ndarray,
    whole: Frame,
    window: Window,
    canvas: tuple[int, int],
    config: LabelerConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """``_best`` of a tile, without the regions that its cut goes through.

    What looks like background is asked of the whole photograph: the tile alone may be one object.
    """
    rows, columns = unit.shape[1:]
    cut = cut_sides(window, canvas, rows, columns)
    resemblance = cv2.resize(whole.resemblance.reshape(rows, columns), canvas[::-1])[window]
    edge = whole.edge & ~cut
    share = np.prod(
        [(part.stop - part.start) / side for part, side in zip(window, canvas, strict=True)]
    )
    frame = Frame(cv2.resize(resemblance, (columns, rows)).ravel(), edge, float(share))
    regions = _regions(unit, config)
    return _best(unit, regions[~regions[:, cut].any(axis=1)], frame, config)


class ProMergeLabeler(Labeler):
    """Training-free instance masks by prompting and merging patch features.

    Example::

        labeler = ProMergeLabeler.from_preset("release", backbone="dino_vitb8")
        for record in labeler("street.jpg"):
            print(record["bbox"], record["area"])

    Presets: ``"release"`` (225 prompts, the released code's rules), ``"paper"`` (100 prompts;
    fewer prompts are faster and find fewer small objects) and ``"best"`` (our own: regions of all
    scales with scores, in place of prompts). Records come by descending area on the patch grid,
    with ``"best"`` by descending score.
    """

    name = "promerge"
    title = "ProMerge"
    config_class = LabelerConfig
    reasons: ClassVar[dict[str, str]] = {
        "no_foreground": "no prompt made a foreground mask, or no region is of a size asked for",
        "no_background": "no prompt's mask covers two sides of the image",
        "small_background": "the background voted for is too small a share of the image",
        "all_pruned": "every mask resembles the background, or stands out from nothing",
        **Labeler.reasons,
    }
    grid_masks = staticmethod(grid_masks)
