"""The labeler ``regions``: regions of all scales, scored; its stages composed (our own).

Shape letters: V views of the photograph (the whole, then its tiles), C channels, H and W rows and
columns of the patch grid, M masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from promerge_d2.labeler.base import GridMasks, Labeler
from promerge_d2.labeler.refine import Refiner, refine_masks
from promerge_d2.labeler.refine.holes_and_fragments import drop_fragments, fill_holes
from promerge_d2.labeler.refine.resize import upsample_smoothly
from promerge_d2.labeler.regions.config import RegionsConfig
from promerge_d2.labeler.regions.merge_tree import merge_tree, tree_masks
from promerge_d2.labeler.regions.scoring import Frame, score_masks
from promerge_d2.labeler.regions.tiles import (
    Window,
    cut_sides,
    frame_of_tile,
    on_photograph,
    tile_windows,
)
from promerge_d2.labeler.similarity import l2_normalize
from promerge_d2.labeler.suppression import suppress


@dataclass
class RegionStages(GridMasks):
    """What each stage made on the patch grid.

    Attributes:
        regions: (M, H, W) bool, all regions of the tree that are of a size asked for.
        merged: (M, H, W) bool, the best regions by descending score; with tiles on their canvas.
    """

    regions: np.ndarray | None = None


def scored_regions(features: torch.Tensor, config: RegionsConfig) -> RegionStages:
    """Run the stages on the patch grid: merge tree, scores, suppression.

    Args:
        features: (V, C, H, W) raw float32 features, V = 1 or 1 + ``config.tiles`` squared; their
            mean is taken off, for the models whose features share a large one.
        config: sizes and thresholds; ``config.grid`` is not used.

    Returns:
        The outcome of every stage.
    """
    whole, *tiles = features
    unit = _centred(whole)
    frame = Frame.of(unit, config.background_quantile)
    regions = _regions(unit, config)
    stages = RegionStages(regions=regions)
    masks, scores = _best(unit, regions, frame, config)
    if tiles:
        rows, columns = unit.shape[1:]
        canvas = (config.tiles * rows, config.tiles * columns)
        found = [(upsample_smoothly(masks, *canvas), scores)]
        for tile, window in zip(tiles, tile_windows(rows, columns, config.tiles), strict=True):
            tile_masks, tile_scores = _best_of_tile(_centred(tile), frame, window, canvas, config)
            height, width = (part.stop - part.start for part in window)
            placed = np.zeros((len(tile_masks), *canvas), bool)
            placed[(slice(None), *window)] = upsample_smoothly(tile_masks, height, width)
            found.append((placed, tile_scores))
        masks, scores = map(np.concatenate, zip(*found, strict=True))
        kept = suppress(masks, scores, config.max_iou, config.max_masks)
        masks, scores = masks[kept], scores[kept]
    if len(masks):
        stages.merged, stages.scores = masks, scores
    else:
        stages.reason = "no_scored_regions" if len(regions) else "no_regions"
    return stages


def _centred(features: torch.Tensor) -> np.ndarray:
    """Return features (C, H, W) without their mean, normalised."""
    return l2_normalize(features - features.mean(dim=(1, 2), keepdim=True)).cpu().numpy()


def _regions(unit: np.ndarray, config: RegionsConfig) -> np.ndarray:
    """Return regions (M, H, W) bool of all scales of unit features (C, H, W)."""
    children, _ = merge_tree(unit)
    _, height, width = unit.shape
    return tree_masks(children, height, width, config.min_patches, config.max_share)


def _best(
    unit: np.ndarray, regions: np.ndarray, frame: Frame, config: RegionsConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return the regions of a score above 0 that no better one overlaps much, and the scores."""
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
    config: RegionsConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``_best`` of a tile, without the regions that its cut goes through."""
    cut = cut_sides(window, canvas, *unit.shape[1:])
    regions = _regions(unit, config)
    regions = regions[~regions[:, cut].any(axis=1)]
    return _best(unit, regions, frame_of_tile(whole, window, canvas), config)


class RegionsLabeler(Labeler[RegionsConfig]):
    """Training-free instance masks: a merge tree's regions of all scales, scored (our own).

    Example::

        labeler = RegionsLabeler.from_preset("best", backbone="dino_vitb8")
        for record in labeler("street.jpg"):
            print(record["bbox"], record["score"])

    Its only preset is ``"best"``. Records come by descending score.
    """

    name = "regions"
    title = "Scored region"
    config_class = RegionsConfig
    reasons: ClassVar[dict[str, str]] = {
        "no_regions": "no region is of a size asked for; lower min_patches or raise max_share",
        "no_scored_regions": "no region stands out from its surroundings; lower min_patches, or "
        "raise grid",
        **Labeler.reasons,
    }

    @staticmethod
    def grid_masks(features: torch.Tensor, config: RegionsConfig) -> RegionStages:
        """Find masks on the patch grid, see ``scored_regions``."""
        return scored_regions(features, config)

    @staticmethod
    def refine(
        image: np.ndarray, masks: np.ndarray, config: RegionsConfig, refiner: Refiner | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Refine the masks of an image; those not confirmed stay, as they were before.

        Holes are filled, small fragments dropped, and of masks that have grown into each other
        the better one stays.

        Args:
            image: see ``Labeler.refine``.
            masks: (M, H, W) bool by descending score, M at least 1.
            config: the labeler's.
            refiner: see ``Labeler.refine``.

        Returns:
            Kept masks (K, h, w) bool and their indices (K,) in ``masks``.
        """
        before = upsample_smoothly(masks, *image.shape[:2])
        name, min_iou = config.refine, config.refine_min_iou
        refined, confirmed = refine_masks(image, before, refiner or name, min_iou)
        refined[~confirmed] = fill_holes(before[~confirmed])
        if config.min_fragment > 0:
            refined = drop_fragments(refined, config.min_fragment)
        # in the order given, on every other pixel: overlaps need no more
        alike = np.zeros(len(refined))
        kept = suppress(refined[:, ::2, ::2], alike, config.max_iou, len(refined))
        return refined[kept], kept

    @classmethod
    def tile_count(cls, config: RegionsConfig) -> int:
        """Count the tiles: their number along a side, squared, or none."""
        return config.tiles**2 if config.tiles > 1 else 0

    @classmethod
    def tiles(
        cls, pixels: np.ndarray, rows: int, columns: int, config: RegionsConfig
    ) -> list[np.ndarray]:
        """Cut the tiles out of the photograph, see ``Labeler.tiles`` and ``tile_windows``."""
        canvas = (config.tiles * rows, config.tiles * columns)
        return [
            pixels[on_photograph(window, canvas, *pixels.shape[:2])]
            for window in tile_windows(rows, columns, config.tiles)
        ]
