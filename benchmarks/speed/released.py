"""The labeler computed as the release computes it: what the fast code is measured against.

It is written from a description of the released code's steps and of what makes it slow, not from
the code. These things are slow: features are normalised again for each prompt; each prompt has its
own cosine map and its own component labelling; the filter and merging take masks one by one; each
mask has a CRF object with a lattice of its own; attention is written out in a full pass, from which
a hook picks the keys. The rest is ordinary code. The release leaves a hook behind with every image;
that leak is left out, so that the last image costs as much as the first. The masks are those of the
fast code.

Shape letters: C channels, H and W rows and columns of the patch grid, K prompts, M masks, h and w
of the working image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import timm
import torch
from scipy import linalg, ndimage

from promerge_d2.features import FeatureExtractor
from promerge_d2.labeler import (
    GridConfig,
    GridMasks,
    Labeler,
    MaskCutConfig,
    MaskCutLabeler,
    ProMergeConfig,
    ProMergeLabeler,
)
from promerge_d2.labeler.maskcut.graph import UNLIKE
from promerge_d2.labeler.maskcut.labeler import maskcut_masks
from promerge_d2.labeler.promerge.labeler import Stages
from promerge_d2.labeler.refine import Refiner, refine_masks
from promerge_d2.labeler.refine.resize import upsample
from promerge_d2.utils.errors import UserError


class ReleasedExtractor(FeatureExtractor):
    """Takes features as the releases do.

    Attention is softmax(q k^T / sqrt(d)) v with all its weights in memory, every block is run to
    its end, and a hook on the last one picks queries, keys and values.

    Args:
        args: of ``FeatureExtractor``; the transformer given is changed.
        kwargs: likewise.

    Raises:
        UserError: the network is no plain ViT.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.vit, timm.models.VisionTransformer):
            raise UserError(
                f"the benchmark's released-style features are for plain ViTs, which "
                f"{self.backbone.name} is not"
            )
        for block in self.vit.blocks:
            block.attn.fused_attn = False  # timm then writes attention out

    def facets(self, images: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Compute several facets of one pass, see ``FeatureExtractor``."""
        patch, prefix = self.backbone.patch, self.backbone.prefix_tokens
        height, width = images.shape[2] // patch, images.shape[3] // patch
        found: dict[str, torch.Tensor] = {}

        def pick(_module: torch.nn.Module, _inputs: tuple, output: torch.Tensor) -> None:
            found.update(zip(("query", "key", "value"), output.chunk(3, dim=2), strict=True))

        hook = self.vit.blocks[-1].attn.qkv.register_forward_hook(pick)
        x = self.embed(images, height, width)
        for block in self.vit.blocks:
            x = block(x)
        hook.remove()
        found["token"] = self.vit.norm(x)
        return {
            name: found[name][:, prefix:].transpose(1, 2).unflatten(2, (height, width)).float()
            for name in names
        }


class ReleasedRefinement(Labeler):
    """Refines one mask at a time, each with a CRF object and a lattice of its own."""

    @staticmethod
    def refine(
        image: np.ndarray, masks: np.ndarray, config: GridConfig, refiner: Refiner | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Refine the masks of an image, see ``Labeler``; with ``dense_crf`` unless it is off."""
        name = "none" if config.refine == "none" else "dense_crf"
        return refine_one_by_one(image, masks, refiner or name, config.refine_min_iou)


def refine_one_by_one(
    image: np.ndarray, masks: np.ndarray, refiner: str | Refiner, min_iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Refine and drop as ``Labeler.refine`` does, with nothing shared between masks.

    Args:
        image: (h, w, 3) uint8 RGB, the working image.
        masks: (M, H, W) bool on the patch grid, M at least 1.
        refiner: as of ``refine_masks``.
        min_iou: in [0, 1].

    Returns:
        Kept masks (K, h, w) bool and their indices (K,) in ``masks``.
    """
    large = upsample(masks, *image.shape[:2])
    found = [refine_masks(image, mask[None], refiner, min_iou) for mask in large]
    refined, confirmed = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return refined[confirmed], np.flatnonzero(confirmed)


def released_grid_masks(features: torch.Tensor, config: ProMergeConfig) -> Stages:
    """Find masks as ``grid_masks``, by loops over prompts, components, masks and clusters.

    Args:
        features: (C, H, W) raw float32 features.
        config: thresholds.

    Returns:
        The outcome of every stage reached; ``merged`` in the order of ``grid_masks``.
    """
    features = features.contiguous()
    shape = features.shape[1:]
    foreground: list[torch.Tensor] = []
    candidates: list[torch.Tensor] = []
    for row in range(0, shape[0], config.stride):
        for column in range(0, shape[1], config.stride):
            mask = prompt_mask(features, row, column, config.tau_b)
            if count_sides(mask, config.side_rule) > 1:
                candidates.append(mask)
            else:
                foreground += components(mask, row, column, config.component_share)
    stages = Stages(foreground=stack(foreground, shape), candidates=stack(candidates, shape))
    if not foreground:
        stages.reason = "no_foreground"
        return stages
    background = None
    if config.background_filter != "none":
        if not candidates:
            stages.reason = "no_background"
            return stages
        background = torch.stack(candidates).double().mean(dim=0) > config.background_vote
        stages.background = background.numpy()
        if background.double().mean() < config.min_background or not background.any():
            stages.reason = "small_background"
            return stages
    unit = normalize(features)
    pruned = filter_masks(unit, foreground, background, config)
    stages.pruned = stack(pruned, shape)
    clusters = merge(unit, pruned, config)
    # the release keeps clusters in a hash set; a fixed order makes runs comparable
    clusters.sort(key=lambda mask: (-int(mask.sum()), int(mask.flatten().int().argmax())))
    stages.merged = stack(clusters, shape)
    if not clusters:
        stages.reason = "all_pruned"
    return stages


def normalize(features: torch.Tensor) -> torch.Tensor:
    """Divide each feature of (C, H, W) by its norm plus 1e-5."""
    return features / (features.norm(dim=0) + 1e-5)


def prompt_mask(features: torch.Tensor, row: int, column: int, tau_b: float) -> torch.Tensor:
    """Find the patches (H, W) bool that resemble one prompt, from raw features (C, H, W)."""
    unit = normalize(features)
    return torch.tensordot(unit[:, row, column], unit, dims=1) > tau_b


def count_sides(mask: torch.Tensor, side_rule: str) -> int:
    """Count the sides of a mask (H, W) that are covered."""
    shares = [float(side.double().mean()) for side in (mask[0], mask[-1], mask[:, 0], mask[:, -1])]
    if side_rule == "at_least_half":
        return sum(share >= 0.5 for share in shares)
    return sum(round(share) for share in shares)  # half goes to even, that is to 0


def components(mask: torch.Tensor, row: int, column: int, share: float) -> list[torch.Tensor]:
    """List the components (H, W) of a prompt's mask that have ``share`` of the prompt's own one."""
    labels, count = ndimage.label(mask.numpy())  # 4-connected
    own = labels[row, column]
    if not own:
        return []
    parts = [labels == label for label in range(1, count + 1)]
    own_area = parts[own - 1].sum()
    return [torch.from_numpy(part) for part in parts if part.sum() >= share * own_area]


def mean_key(unit: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Average the unit features (C, H, W) inside a mask (H, W): (C,)."""
    return unit[:, mask].mean(dim=1)


def filter_masks(
    unit: torch.Tensor,
    foreground: list[torch.Tensor],
    background: torch.Tensor | None,
    config: ProMergeConfig,
) -> list[torch.Tensor]:
    """Filter as the cascade does, one mask after another by ascending area.

    Args:
        unit: (C, H, W) normalised features.
        foreground: masks (H, W) bool.
        background: (H, W) bool; None keeps every mask.
        config: thresholds.

    Returns:
        The masks kept, in order of acceptance.
    """
    foreground = sorted(foreground, key=lambda mask: int(mask.sum()))
    if background is None:
        return foreground
    background_key = mean_key(unit, background)
    kept: list[torch.Tensor] = []
    union = torch.zeros_like(background)
    kind = config.background_filter
    for mask in foreground:
        new = mask & ~union
        # both tests are computed for every mask; where nothing is new, NaN compares false
        ioa = (new & background).sum() / new.sum()
        similarity = mean_key(unit, mask) @ background_key
        brings = ioa < config.tau_ioa or (kind == "feature" and new.any())
        if brings and (kind == "ioa" or similarity < config.tau_f):
            kept.append(mask)
            union |= mask
    return kept


def merge(
    unit: torch.Tensor, masks: list[torch.Tensor], config: ProMergeConfig
) -> list[torch.Tensor]:
    """Unite masks (H, W) with the clusters that they overlap, by descending area, in one pass."""
    clusters: list[torch.Tensor] = []
    for mask in sorted(masks, key=lambda mask: -int(mask.sum())):
        joined, rest = mask, []
        for cluster in clusters:
            overlap = int((mask & cluster).sum()) / int(mask.sum())
            if overlap > config.tau_merge_ioa or (
                overlap > config.tau_merge_gate
                and float(mean_key(unit, mask) @ mean_key(unit, cluster)) >= config.tau_merge_f
            ):
                joined = joined | cluster
            else:
                rest.append(cluster)
        clusters = [*rest, joined]
    return clusters


def stack(masks: list[torch.Tensor], shape: Sequence[int]) -> np.ndarray:
    """Stack masks (H, W) into one array (M, H, W) bool; M may be 0."""
    return np.array([mask.numpy() for mask in masks], bool).reshape(-1, *shape)


class ReleasedLabeler(ReleasedRefinement, ProMergeLabeler):
    """ProMerge by loops."""

    @staticmethod
    def grid_masks(features: torch.Tensor, config: ProMergeConfig) -> Stages:
        """Find masks on the patch grid, see ``released_grid_masks``."""
        return released_grid_masks(features[0], config)


class ReleasedMaskCut(ReleasedRefinement, MaskCutLabeler):
    """Normalised cuts by a dense solver, refined mask by mask."""

    @staticmethod
    def grid_masks(features: torch.Tensor, config: MaskCutConfig) -> GridMasks:
        """Find masks on the patch grid, see ``maskcut_masks``."""
        return maskcut_masks(features[0], config, dense_eigenvector)


def dense_eigenvector(alike: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Compute the second smallest eigenvector by a dense solver of the generalised problem.

    As the papers' releases compute it.

    Args:
        alike: (n, n) float64, upper triangle, see ``alike_graph``.
        active: (n,) bool.

    Returns:
        (n,) float64, of any sign and length.
    """
    joined = np.triu(alike).astype(bool) & active & active[:, None]
    weights = np.where(joined | joined.T, 1.0, UNLIKE)
    degrees = np.diag(weights.sum(axis=1))
    _, vectors = linalg.eigh(degrees - weights, degrees, subset_by_index=[1, 1])
    return vectors[:, 0]
