"""Settings of the labeler ``maskcut``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from promerge_d2.labeler.config import Check, GridConfig


@dataclass(frozen=True)
class MaskCutConfig(GridConfig):
    """Settings of ``maskcut``. The defaults are the released ones (docs/algorithm.md).

    Attributes:
        tau: patches whose cosine is this or more are joined in the graph (CutLER: tau^ncut).
        masks: masks an image, at most (CutLER: N).
        void_iou: a later mask with a higher IoU than this with the one before is void.
        min_area: a later mask of at most this share of the grid is void.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {"maskcut": {}}

    tau: float = 0.15
    masks: int = 3
    void_iou: float = 0.5
    min_area: float = 0.01

    def _checks(self) -> list[Check]:
        return [
            *super()._checks(),
            self._between("tau", -1, 1),
            self._at_least("masks", 1),
            self._between("void_iou", 0, 1),
            self._between("min_area", 0, 1),
        ]
