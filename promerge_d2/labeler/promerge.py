"""The ProMerge labeler: stages composed, from an image to scored masks.

Shape letters: C channels, H and W rows and columns of the patch grid, M masks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from pycocotools import mask as mask_utils

from promerge_d2.features import FeatureExtractor
from promerge_d2.labeler.background import vote_background
from promerge_d2.labeler.config import LabelerConfig
from promerge_d2.labeler.filtering import cascade_filter
from promerge_d2.labeler.merging import merge_masks
from promerge_d2.labeler.prompting import normalize, point_prompting
from promerge_d2.labeler.refinement import check_refiner, refine_masks, resize_mask
from promerge_d2.utils.image import ImageLike, load_image, resize_image

REASONS = {
    "no_foreground": "no prompt made a foreground mask",
    "no_background": "no prompt's mask covers two sides of the image",
    "small_background": "the background voted for is too small a share of the image",
    "all_pruned": "every mask resembles the background",
    "all_rejected_by_refinement": "refinement changed every mask beyond recognition",
}
"""Why an image has no mask."""


@dataclass
class Stages:
    """What each stage made on the patch grid; what was not reached is None.

    Attributes:
        foreground: (M, H, W) bool, components of the prompts' masks.
        candidates: (B, H, W) bool, background candidates.
        background: (H, W) bool, the vote.
        pruned: (P, H, W) bool after the cascade filter, in order of acceptance.
        merged: (M, H, W) bool, final masks on the grid, by descending area.
        reason: a key of ``REASONS`` when there are none.
    """

    foreground: np.ndarray
    candidates: np.ndarray
    background: np.ndarray | None = None
    pruned: np.ndarray | None = None
    merged: np.ndarray | None = None
    reason: str | None = None


@dataclass
class LabelResult:
    """The masks of one image.

    Attributes:
        height, width: of the upright image, in pixels.
        records: see ``ProMergeLabeler.__call__``.
        reason: a key of ``REASONS`` when there are no records, else None.
        seconds: wall-clock time by stage: ``features``, ``masks``, ``refinement``, ``encoding``.
    """

    height: int
    width: int
    records: list[dict] = field(default_factory=list)
    reason: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Prepared:
    """An image between the two halves of the work.

    Attributes:
        pixels: (h, w, 3) uint8 RGB, upright.
        merged: (M, H, W) bool on the patch grid, or None where there is no mask.
        result: what is known so far.
    """

    pixels: np.ndarray
    merged: np.ndarray | None
    result: LabelResult


def grid_masks(features: torch.Tensor, config: LabelerConfig) -> Stages:
    """Run the stages on the patch grid: prompts, vote, cascade filter, merging.

    Args:
        features: (C, H, W) raw float32 features.
        config: thresholds; ``config.grid`` is not used.

    Returns:
        The outcome of every stage reached.
    """
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


class ProMergeLabeler:
    """Training-free instance masks by prompting and merging patch features.

    Example::

        labeler = ProMergeLabeler.from_preset("release", backbone="dino_vitb8")
        for record in labeler("street.jpg"):
            print(record["bbox"], record["area"])

    Args:
        extractor: gives patch features; its backbone, weights and facet decide what is alike.
        config: thresholds and sizes, see ``LabelerConfig``.

    Raises:
        UserError: the refiner asked for cannot run here.
    """

    def __init__(self, extractor: FeatureExtractor, config: LabelerConfig | None = None) -> None:
        self.extractor = extractor
        self.config = config or LabelerConfig()
        check_refiner(self.config.refine)

    @classmethod
    def from_preset(
        cls,
        preset: str = "release",
        backbone: str = "dino_vitb8",
        weights: str | os.PathLike | None = None,
        facet: str = "key",
        center: bool | None = None,
        device: str | torch.device = "cpu",
        **overrides: object,
    ) -> ProMergeLabeler:
        """Build a labeler by names.

        Args:
            preset: ``"release"`` (225 prompts, the released code's rules) or ``"paper"``
                (100 prompts). Fewer prompts are faster and find fewer small objects.
            backbone: a name of the registry; its weights are fetched on first use.
            weights: a local weights file instead.
            facet: ``"key"`` (ProMerge's), ``"query"``, ``"value"`` or ``"token"``.
            center: subtract the image's mean feature; None as the backbone's entry says.
            device: where features and affinities are computed.
            **overrides: settings of ``LabelerConfig``, such as ``grid=34`` (the cost of features
                grows with its square) or ``refine="none"``.

        Raises:
            UserError: unknown names, bad values, weights that are missing or wrong.
        """
        config = LabelerConfig.from_preset(preset, **overrides)
        check_refiner(config.refine)  # before the weights are fetched
        extractor = FeatureExtractor.from_name(backbone, weights, facet, center, device)
        return cls(extractor, config)

    def __call__(self, image: ImageLike) -> list[dict]:
        """Find the objects of one image.

        Args:
            image: a file's path, a PIL image, or an RGB array (H, W, 3) uint8.

        Returns:
            One record an object, by descending area on the patch grid:

            * ``segmentation``: COCO RLE of the upright image, ``{"size": [H, W], "counts": str}``;
            * ``area``: pixels in the mask, int;
            * ``bbox``: ``[x, y, width, height]`` in pixels, floats;
            * ``score``: 1.0 (the release ranks no mask above another).

            Empty when there is none; ``label`` then says why.

        Raises:
            ImageError: the image cannot be read.
        """
        return self.label(image).records

    def label(self, image: ImageLike) -> LabelResult:
        """Like calling, with the image's size and the reason when there are no masks."""
        return finish(self.prepare(image), self.config)

    def label_batch(self, images: Iterable[ImageLike]) -> Iterator[LabelResult]:
        """Label images one after another, lazily, in their order.

        Each image goes through the network alone, so that its masks do not depend on its
        neighbours.
        """
        for image in images:
            yield self.label(image)

    def prepare(self, image: ImageLike) -> Prepared:
        """The first half of the work, which needs the network: masks on the patch grid.

        Raises:
            ImageError: the image cannot be read.
        """
        pixels = load_image(image, self.config.apply_exif)
        started = time.perf_counter()
        features = self.features(pixels)
        found = time.perf_counter()
        stages = grid_masks(features, self.config)
        result = LabelResult(*pixels.shape[:2], reason=stages.reason)
        result.seconds = {"features": found - started, "masks": time.perf_counter() - found}
        return Prepared(pixels, None if stages.reason else stages.merged, result)

    def features(self, pixels: np.ndarray) -> torch.Tensor:
        """Raw features (C, H, W) float32 of an image (h, w, 3) uint8 on the configured grid."""
        return self.extractor(self.extractor.preprocess(pixels, self.config.grid)[None])[0]


def finish(prepared: Prepared, config: LabelerConfig) -> LabelResult:
    """The second half of the work, which any process can do: refinement and records.

    Args:
        prepared: of ``ProMergeLabeler.prepare``.
        config: the labeler's.

    Returns:
        The image's masks.
    """
    pixels, merged, result = prepared.pixels, prepared.merged, prepared.result
    if merged is None:
        return result
    started = time.perf_counter()
    height, width = (side * config.pixels_per_patch for side in merged.shape[1:])
    working = resize_image(pixels, height, width)
    masks, _ = refine_masks(working, merged, config.refine, config.refine_min_iou)
    masks = [resize_mask(mask, *pixels.shape[:2]) for mask in masks]
    refined = time.perf_counter()
    result.records = [mask_record(mask) for mask in masks if mask.any()]
    result.seconds["refinement"] = refined - started
    result.seconds["encoding"] = time.perf_counter() - refined
    if not result.records:
        result.reason = "all_rejected_by_refinement"
    return result


def mask_record(mask: np.ndarray, score: float = 1.0) -> dict:
    """The record of a mask.

    Example: the mask ``[[0, 1], [0, 1]]`` has area 2 and bbox ``[1.0, 0.0, 1.0, 2.0]``.

    Args:
        mask: (h, w) bool, not empty.
        score: how likely it is an object, in [0, 1].

    Returns:
        See ``ProMergeLabeler.__call__``.
    """
    rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
        "area": int(mask_utils.area(rle)),
        "bbox": [float(side) for side in mask_utils.toBbox(rle)],
        "score": score,
    }
