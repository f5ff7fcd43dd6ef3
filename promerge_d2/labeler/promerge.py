"""The ProMerge labeler: its stages on the patch grid, composed.

Shape letters: C channels, H and W rows and columns of the patch grid, M masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from promerge_d2.labeler.background import vote_background
from promerge_d2.labeler.config import LabelerConfig
from promerge_d2.labeler.filtering import cascade_filter
from promerge_d2.labeler.labeler import Labeler
from promerge_d2.labeler.merge_tree import merge_tree, tree_masks
from promerge_d2.labeler.merging import merge_masks
from promerge_d2.labeler.prompting import normalize, point_prompting
from promerge_d2.labeler.scoring import score_masks, suppress


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


def grid_masks(features: torch.Tensor, config: LabelerConfig) -> Stages:
    """Run the stages on the patch grid: prompts, vote, cascade filter, merging; or the tree's.

    Args:
        features: (C, H, W) raw float32 features.
        config: thresholds; ``config.grid`` is not used.

    Returns:
        The outcome of every stage reached.
    """
    if config.proposals == "tree":
        return scored_regions(features, config)
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


def scored_regions(features: torch.Tensor, config: LabelerConfig) -> Stages:
    """The stages on the patch grid without point prompts: merge tree, scores, suppression.

    Args:
        features: (C, H, W) raw float32 features; their mean is taken off, for the models whose
            features share a large one.
        config: its settings for ``proposals = "tree"``.

    Returns:
        The outcome of every stage; ``merged`` by descending score.
    """
    unit = normalize(features - features.mean(dim=(1, 2), keepdim=True)).cpu().numpy()
    children, _ = merge_tree(unit)
    regions = tree_masks(children, *unit.shape[1:], config.min_patches, config.max_share)
    stages = Stages(regions)
    if not len(regions):
        stages.reason = "no_foreground"
        return stages
    scores = score_masks(unit, regions, config.background_quantile)["score"]
    kept = suppress(regions, scores, config.max_iou, config.max_masks)
    kept = kept[scores[kept] > 0]
    stages.merged, stages.scores = regions[kept], scores[kept]
    if not len(kept):
        stages.reason = "all_pruned"
    return stages


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
