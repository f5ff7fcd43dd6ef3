"""Ceilings: how well the objects are covered by what each stage of ``regions`` hands on.

An object's coverage is the highest IoU of any mask; recall is the share of objects that are covered
to an IoU, AR its mean over 0.5, 0.55, ..., 0.95. Masks are not matched one to one and no score
counts, so a stage's AR bounds what any later choice from it can have.

Shape letters: G objects, H and W rows and columns of the patch grid, N = H * W patches, M masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import cv2
import numpy as np
from pycocotools import mask as mask_api

from benchmarks.ablations.cache import Cache
from benchmarks.ablations.results import Results, Row
from benchmarks.ablations.sweep import KeptFeatures, LabelledImages, load_features
from promerge_d2.coco.ground_truth import GroundTruth
from promerge_d2.coco.records import Instance
from promerge_d2.evaluation.matches import THRESHOLDS
from promerge_d2.labeler import ImageFeatures
from promerge_d2.labeler.regions.candidates import SPECTRA, find_candidates
from promerge_d2.labeler.regions.config import RegionsConfig
from promerge_d2.labeler.regions.labeler import RegionsLabeler
from promerge_d2.labeler.regions.merge_tree import tree_masks
from promerge_d2.labeler.similarity import l2_normalize

FIGURES = ("masks", "AR", "R50", "ARs", "ARm", "ARl")
"""``masks`` an image; the rest in per cent: AR of all objects, their share that is covered to IoU
0.5, and AR by COCO's three sizes."""
GRID = "the objects themselves, rounded to patches"
FIRST = (100, 20, 5)
LAST = f"refined, the first {FIRST[-1]}"
_SIZES = {"ARs": (0, 32**2), "ARm": (32**2, 96**2), "ARl": (96**2, float("inf"))}

Coverage = dict[str, tuple[int, np.ndarray]]
"""By stage: the number of masks, and the coverage of each object (G,)."""


def fill(
    results: Results, config: RegionsConfig, images: LabelledImages, kept: KeptFeatures
) -> None:
    """Add a row for each stage.

    Args:
        results: of the experiment.
        config: of the labeler.
        images: with masks in their ground truth.
        kept: their features.
    """
    objects = list(objects_by_image(images.truth))
    work = partial(_cover, kept.cache, config)
    found = [stages for stages in kept.map("coverage", work, objects) if stages]
    areas = np.array([o.area for one in objects for o in one])
    for stage in found[0] if found else ():
        if results.has({"stage": stage}):  # of a run that was stopped
            continue
        counts, coverage = zip(*(stages[stage] for stages in found), strict=True)
        results.add({"stage": stage, **figures_of(counts, np.concatenate(coverage), areas)})


def _cover(cache: Cache, config: RegionsConfig, key: str, objects: list[Instance]) -> Coverage:
    """Do one image; without objects there is nothing to cover."""
    return coverage_by_stage(load_features(cache, key), objects, config) if objects else {}


def coverage_by_stage(
    image: ImageFeatures, objects: list[Instance], config: RegionsConfig
) -> Coverage:
    """Cover an image's objects by what each stage hands on.

    Args:
        image: after the network, of one view.
        objects: G objects with masks at the photograph's size.
        config: of the labeler.

    Returns:
        The stages in their order: the grid, each kind of candidates and their pool, those that are
        left on the grid after scores and suppression, and the first refined masks.
    """
    height, width = image.features.shape[2:]
    shares = np.stack([_shares(o.rle, height, width) for o in objects])
    found: Coverage = {GRID: (len(objects), np.diag(_iou(shares, shares >= 0.5)))}
    features = image.features[0]
    unit = l2_normalize(features - features.mean(dim=(1, 2), keepdim=True)).numpy()
    candidates = find_candidates(unit, config.min_patches, config.max_share)
    for (count, power), tree in zip(SPECTRA, candidates.trees, strict=True):
        masks = tree_masks(tree, height, width, config.min_patches, config.max_share)
        kind = f"candidates: tree of {count} components, power {power:g}"
        found[kind] = len(masks), _best(shares, masks)
    stages = RegionsLabeler.find_masks(image, config)
    regions = candidates.masks if stages.regions is None else stages.regions
    left = regions[len(candidates.masks) :]
    found["candidates: remainders of the best"] = len(left), _best(shares, left)
    found["candidates, all"] = len(regions), _best(shares, regions)
    kept = candidates.masks[:0] if stages.merged is None else stages.merged
    found["after scores and suppression"] = len(kept), _best(shares, kept)
    records = RegionsLabeler.make_records(image, stages, config).records
    truth = [o.rle for o in objects]
    crowd = [0] * len(truth)
    for count in FIRST:
        first = [record["segmentation"] for record in records[:count]]
        iou = mask_api.iou(first, truth, crowd) if first else np.zeros((1, len(truth)))
        found[f"refined, the first {count}"] = len(first), iou.max(axis=0)
    return found


def _shares(rle: dict | None, height: int, width: int) -> np.ndarray:
    """Return which share of each patch (N,) float32 a mask covers."""
    mask = mask_api.decode(rle).astype(np.float32)
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA).ravel()


def _iou(shares: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the IoU (G, M) of objects (G, N), shares of patches, with masks (M, N) of patches."""
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    common = shares @ flat.T
    whole = shares.sum(axis=1)[:, None] + flat.sum(axis=1) - common
    return common / np.maximum(whole, 1e-9)


def _best(shares: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the coverage (G,) of objects (G, N) by masks (M, H, W)."""
    return _iou(shares, masks).max(axis=1) if len(masks) else np.zeros(len(shares), np.float32)


def objects_by_image(truth: GroundTruth) -> Iterator[list[Instance]]:
    """List the objects that count, those with a mask and no crowds, of each image in its order."""
    by_image: dict = {image_id: [] for image_id in truth.images}
    for item in truth.objects:
        if item.rle is not None and not item.crowd:
            by_image[item.image_id].append(item)
    yield from by_image.values()


def figures_of(counts: Sequence[int], coverage: np.ndarray, areas: np.ndarray) -> Row:
    """Compute ``FIGURES``.

    Args:
        counts: masks of each image.
        coverage: of all objects of all images.
        areas: of these objects, in pixels.

    Returns:
        Each figure as text; empty where there is no object (of that size).
    """

    def recall(chosen: np.ndarray, thresholds: np.ndarray) -> str:
        return f"{100 * (chosen[:, None] >= thresholds).mean():.2f}" if len(chosen) else ""

    sizes = {
        name: recall(coverage[(areas >= low) & (areas < high)], THRESHOLDS)
        for name, (low, high) in _SIZES.items()
    }
    return {
        "masks": f"{np.mean(counts):.1f}",
        "AR": recall(coverage, THRESHOLDS),
        "R50": recall(coverage, THRESHOLDS[:1]),
        **sizes,
    }
