"""The ProMerge labeler: its stages on the patch grid, composed.

Shape letters: C channels, H and W rows and columns of the patch grid, M masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from promerge_d2.labeler.base import GridMasks, Labeler
from promerge_d2.labeler.promerge.background import vote_background
from promerge_d2.labeler.promerge.config import ProMergeConfig
from promerge_d2.labeler.promerge.filtering import cascade_filter
from promerge_d2.labeler.promerge.merging import merge_masks
from promerge_d2.labeler.promerge.prompting import point_prompting
from promerge_d2.labeler.refine import NUMBA
from promerge_d2.labeler.similarity import l2_normalize


@dataclass
class Stages(GridMasks):
    """What each stage made on the patch grid; what was not reached, or is not used, is None.

    Attributes:
        foreground: (M, H, W) bool, components of the prompts' masks.
        candidates: (B, H, W) bool, background candidates.
        background: (H, W) bool, the vote.
        pruned: (P, H, W) bool after the cascade filter, in order of acceptance.
        left: how many masks left there, by test.
        merged: (M, H, W) bool, final masks on the grid, by descending area.
    """

    foreground: np.ndarray | None = None
    candidates: np.ndarray | None = None
    background: np.ndarray | None = None
    pruned: np.ndarray | None = None
    left: dict[str, int] | None = None


def grid_masks(features: torch.Tensor, config: ProMergeConfig) -> Stages:
    """Run the stages on the patch grid: prompts, vote, cascade filter, merging.

    Args:
        features: (C, H, W) raw float32 features.
        config: thresholds; ``config.grid`` is not used.

    Returns:
        The outcome of every stage reached.
    """
    if config.masks_device != NUMBA:
        features = features.to(config.masks_device)
    unit = l2_normalize(features)
    foreground, candidates = point_prompting(
        unit, config.stride, config.tau_b, config.side_rule, config.component_share
    )
    stages = Stages(foreground=foreground, candidates=candidates)
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
    stages.pruned, stages.left = cascade_filter(
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


class ProMergeLabeler(Labeler[ProMergeConfig]):
    """Training-free instance masks by prompting and merging patch features.

    For example:

        labeler = ProMergeLabeler.from_preset("release", backbone="dino_vitb8")
        for record in labeler("street.jpg"):
            print(record["bbox"], record["area"])

    Presets: ``"release"`` (225 prompts, the released code's rules) and ``"paper"`` (100 prompts;
    fewer prompts are faster and find fewer small objects). Records come by descending area on the
    patch grid.
    """

    name = "promerge"
    title = "ProMerge"
    config_class = ProMergeConfig
    reasons: ClassVar[dict[str, str]] = {
        "no_foreground": "no prompt made a foreground mask; raise tau_b, so that masks get "
        "smaller and cover fewer sides",
        "no_background": "no prompt's mask covers two sides of the image; lower tau_b, so that "
        "masks get larger, or side_rule=at_least_half",
        "small_background": "the background voted for is too small a share of the image; lower "
        "background_vote or min_background",
        "all_pruned": "every mask resembles the background; raise tau_f or tau_ioa",
        **Labeler.reasons,
    }

    @staticmethod
    def grid_masks(features: torch.Tensor, config: ProMergeConfig) -> Stages:
        """Find masks on the patch grid, see the function ``grid_masks``."""
        return grid_masks(features[0], config)
