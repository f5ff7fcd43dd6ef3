"""Settings of the labeler ``regions``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from promerge_d2.labeler.config import Check, GridConfig
from promerge_d2.labeler.refine import NUMBA


@dataclass(frozen=True)
class RegionsConfig(GridConfig):
    """Settings of ``regions``; all our own. The defaults are those of preset ``best``.

    Preset ``fast`` has a smaller grid, for machines without a GPU: docs/best.md has the curve of
    quality against seconds.

    Attributes:
        min_patches: regions of the trees with fewer patches are left out.
        max_share: regions of the trees of more than this share of the grid are left out.
        background_quantile: a patch resembles a patch of the border when their product is above
            this quantile of all such products in the image.
        max_iou: of two masks that overlap by a higher IoU than this, the better one stays: on the
            grid, and again after refinement.
        max_masks: the best masks are kept, at most so many (on the grid a quarter more: some grow
            into others when they are refined).
        min_fragment: fragments of a refined mask are dropped below this share of its largest one.
        tiles: more than 1: so many overlapping parts along each side go through the network as
            well, for small objects; with 2 it sees five pictures an image.
        masks_device: where masks are measured and suppressed: ``numba`` for the CPU's own code or a
            device of torch such as ``cuda``: the same masks but for ties of rounding. What is
            sequential stays on the CPU. Each worker process opens the device.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "best": {},
        "fast": {"grid": (34, 34)},
    }

    keep_aspect: bool = True
    refine: str = "guided"
    refine_min_iou: float = 0.5
    min_patches: int = 3
    max_share: float = 0.95
    background_quantile: float = 0.7
    max_iou: float = 0.75
    max_masks: int = 100
    min_fragment: float = 0.1
    tiles: int = 1
    masks_device: str = NUMBA

    def _checks(self) -> list[Check]:
        return [
            *super()._checks(),
            self._at_least("min_patches", 2),
            self._between("max_share", 0, 1),
            self._between("background_quantile", 0, 1),
            self._between("max_iou", 0, 1),
            self._at_least("max_masks", 1),
            self._between("min_fragment", 0, 1),
            self._at_least("tiles", 1),
        ]
