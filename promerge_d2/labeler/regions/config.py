"""Settings of the labeler ``regions``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from promerge_d2.labeler.config import Check, GridConfig


@dataclass(frozen=True)
class RegionsConfig(GridConfig):
    """Settings of ``regions``; all our own. The defaults are those of preset ``best``.

    Attributes:
        min_patches: regions of the tree with fewer patches are left out.
        max_share: regions of the tree of more than this share of the grid are left out.
        background_quantile: see ``scoring.score_masks``.
        max_masks: the best regions are kept, at most so many.
        tiles: more than 1: so many overlapping parts along each side go through the network as
            well, for small objects; with 2 it sees five pictures an image.
    """

    presets: ClassVar[dict[str, dict[str, object]]] = {"best": {}}

    keep_aspect: bool = True
    upsampling: str = "linear"
    refine: str = "mean_field_near"
    refine_min_iou: float = 0.7
    unconfirmed: str = "keep"
    min_fragment: float = 0.1
    max_iou: float = 0.7
    min_patches: int = 4
    max_share: float = 0.95
    background_quantile: float = 0.7
    max_masks: int = 100
    tiles: int = 1

    def _checks(self) -> list[Check]:
        return [
            *super()._checks(),
            self._at_least("min_patches", 2),
            self._between("max_share", 0, 1),
            self._between("background_quantile", 0, 1),
            self._at_least("max_masks", 1),
            self._at_least("tiles", 1),
        ]
