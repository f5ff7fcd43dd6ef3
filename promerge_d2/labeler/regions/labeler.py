"""The labeler ``regions``: regions of all scales, scored; its stages composed (our own).

Shape letters: V views of the photograph (the whole, then its tiles), C channels, H and W rows and
columns of the patch grid, M masks.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from promerge_d2.labeler.base import GridMasks, ImageFeatures, Labeler
from promerge_d2.labeler.refine import NUMBA, Refiner, refine_or_keep
from promerge_d2.labeler.refine.resize import upsample_smoothly
from promerge_d2.labeler.regions import device as on_device
from promerge_d2.labeler.regions.candidates import (
    Candidates,
    find_candidates,
    remainders,
)
from promerge_d2.labeler.regions.config import RegionsConfig
from promerge_d2.labeler.regions.scoring import (
    CUES,
    Frame,
    score_candidates,
    to_probability,
)
from promerge_d2.labeler.regions.tiles import (
    Window,
    cut_sides,
    frame_of_tile,
    on_photograph,
    tile_windows,
)
from promerge_d2.labeler.similarity import l2_normalize
from promerge_d2.labeler.suppression import suppress, suppress_softly

SURPLUS = 1.25  # masks of the grid for each that is asked for: some grow into others
DECAY = 4.0  # of a score, by the square of the IoU with a better mask
TAKEN_APART = 60  # of the best candidates
SCORED_PER_MASK = 10  # candidates that are scored in full, for each mask that is asked for


@dataclass
class RegionStages(GridMasks):
    """What each stage made on the patch grid.

    Attributes:
        regions: (M, H, W) bool, the candidates of the whole photograph: those of the trees, then
            their remainders.
        resemblance: (H, W) float64, see ``Frame``.
        merged: (K, H, W) bool, the best regions by descending score; with tiles on their canvas.
        cues: (K, Q) float64 of ``merged``, in the order of ``scoring.CUES``.
    """

    regions: np.ndarray | None = None
    resemblance: np.ndarray | None = None
    cues: np.ndarray | None = None


def scored_regions(
    features: torch.Tensor, image: np.ndarray, config: RegionsConfig
) -> RegionStages:
    """Run the stages on the patch grid: candidates, scores, suppression.

    Args:
        features: (V, C, H, W) raw float32 features, V = 1 or 1 + ``config.tiles`` squared; their
            mean is taken off, for the models whose features share a large one.
        image: (h, w, 3) uint8 RGB, the photograph at any size.
        config: sizes and thresholds; ``config.grid`` is not used.

    Returns:
        The outcome of every stage.
    """
    whole, *tiles = features
    rows, columns = whole.shape[1:]
    candidates, norms = _candidates(whole, config)
    frame = Frame.of(candidates.maps[0], norms, image, config.background_quantile)
    masks, products, cues, more = _best(candidates, frame, config)
    regions = np.concatenate([candidates.masks, more])
    stages = RegionStages(regions=regions, resemblance=frame.resemblance)
    if tiles:
        canvas = (config.tiles * rows, config.tiles * columns)
        found = [(upsample_smoothly(masks, *canvas), products, cues)]
        for tile, window in zip(tiles, tile_windows(rows, columns, config.tiles), strict=True):
            tile_masks, tile_products, tile_cues, _ = _best_of_tile(
                tile, frame, window, canvas, config
            )
            height, width = (part.stop - part.start for part in window)
            placed = np.zeros((len(tile_masks), *canvas), bool)
            placed[(slice(None), *window)] = upsample_smoothly(tile_masks, height, width)
            found.append((placed, tile_products, tile_cues))
        masks, products, cues = map(np.concatenate, zip(*found, strict=True))
    kept, products = _suppress_for_refinement(masks, products, config)
    if len(kept):
        stages.merged, stages.cues = masks[kept], cues[kept]
        stages.scores = to_probability(products)
    else:
        stages.reason = "no_scored_regions" if len(candidates.masks) else "no_regions"
    return stages


def _candidates(features: torch.Tensor, config: RegionsConfig) -> tuple[Candidates, np.ndarray]:
    """Return the candidates of raw features (C, H, W), and the features' norms (H, W)."""
    centred = features - features.mean(dim=(1, 2), keepdim=True)
    unit = l2_normalize(centred).cpu().numpy()
    norms = centred.norm(dim=0).cpu().numpy()
    return find_candidates(unit, config.min_patches, config.max_share), norms


def _best(
    candidates: Candidates, frame: Frame, config: RegionsConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the masks that suppression keeps, products of their cues, cues; and ``remainders``.

    What is left of the best candidates without their parts competes with all.
    """
    device, most = config.masks_device, SCORED_PER_MASK * config.max_masks
    scored, cues = score_candidates(candidates, frame, most, device)
    masks = candidates.masks[scored]
    best, _ = _suppress(masks, cues["product"], config, TAKEN_APART)
    more = remainders(masks[best], config.min_patches)
    if len(more):
        _, their_cues = score_candidates(
            dataclasses.replace(candidates, masks=more), frame, len(more), device
        )
        masks = np.concatenate([masks, more])
        cues = {name: np.concatenate([cue, their_cues[name]]) for name, cue in cues.items()}
    kept, _ = _suppress_for_refinement(masks, cues["product"], config)
    found = (masks, cues["product"], np.stack([cues[name] for name in CUES], axis=1))
    masks, products, table = (column[kept] for column in found)
    return masks, products, table, more


def _suppress_for_refinement(
    masks: np.ndarray, products: np.ndarray, config: RegionsConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Keep so many masks of products above 0 that enough are left after refinement.

    Returns:
        See ``suppress_softly``.
    """
    kept, fallen = _suppress(masks, products, config, int(SURPLUS * config.max_masks))
    return kept[fallen > 0], fallen[fallen > 0]


def _suppress(
    masks: np.ndarray, products: np.ndarray, config: RegionsConfig, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """See ``suppress_softly``."""
    args = (masks, products, config.max_iou, most, DECAY)
    if config.masks_device == NUMBA:
        return suppress_softly(*args)
    return on_device.suppress_softly(*args, config.masks_device)


def _best_of_tile(
    features: torch.Tensor,
    whole: Frame,
    window: Window,
    canvas: tuple[int, int],
    config: RegionsConfig,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return ``_best`` of a tile, without the regions that its cut goes through."""
    shape = features.shape[1:]
    candidates, _ = _candidates(features, config)
    is_cut = candidates.masks[:, cut_sides(window, canvas, *shape)].any(axis=1)
    uncut = dataclasses.replace(candidates, masks=candidates.masks[~is_cut])
    return _best(uncut, frame_of_tile(whole, window, canvas, *shape), config)


class RegionsLabeler(Labeler[RegionsConfig]):
    """Training-free instance masks: the regions of merge trees, of all scales, scored (our own).

    For example:

        labeler = RegionsLabeler.from_preset("best", backbone="dino_vitb8")
        for record in labeler("street.jpg"):
            print(record["bbox"], record["score"])

    Its presets are ``"best"`` and ``"fast"``. Records come by descending score.
    """

    name = "regions"
    title = "Regions"
    config_class = RegionsConfig
    reasons: ClassVar[dict[str, str]] = {
        "no_regions": "no region is of a size asked for; lower min_patches or raise max_share",
        "no_scored_regions": "no region stands out from its surroundings; lower min_patches, or "
        "raise grid",
        **Labeler.reasons,
    }

    @staticmethod
    def grid_masks(features: torch.Tensor, config: RegionsConfig) -> RegionStages:
        """Find masks as if the photograph had one colour, see ``scored_regions``."""
        return scored_regions(features, np.zeros((1, 1, 3), np.uint8), config)

    @classmethod
    def find_masks(cls, image: ImageFeatures, config: RegionsConfig) -> RegionStages:
        """Find masks on the patch grid, see ``scored_regions``."""
        return scored_regions(image.features, image.working_image, config)

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
        refined = refine_or_keep(
            image,
            before,
            refiner or config.refine,
            config.refine_min_iou,
            config.min_fragment,
            config.refine_device,
        )
        # in the order given, on every other pixel: overlaps need no more
        alike = np.zeros(len(refined))
        kept = suppress(refined[:, ::2, ::2], alike, config.max_iou, config.max_masks)
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
