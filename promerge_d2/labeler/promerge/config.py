"""Settings of the labeler ``promerge``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from promerge_d2.labeler.config import Check, GridConfig
from promerge_d2.labeler.promerge.filtering import FILTERS
from promerge_d2.labeler.promerge.prompting import SIDE_RULES
from promerge_d2.labeler.refine import NUMBA


@dataclass(frozen=True)
class ProMergeConfig(GridConfig):
    """Settings of ``promerge``. The defaults are the released ones (docs/algorithm.md).

    Attributes:
        stride: patches between prompts. 4 on a 60x60 grid makes K = 225 prompts, 6 makes 100.
        tau_b: cosine above which a patch belongs to a prompt's mask (paper: tau_b). Raise it for
            smaller, tighter masks.
        side_rule: when a side counts as covered by a mask: ``more_than_half`` or
            ``at_least_half`` of its patches.
        component_share: a component stays if it has this share of the prompt's own component.
        background_vote: share of the candidates that must call a patch background.
        min_background: an image whose background is a smaller share of the grid gets no masks.
        background_filter: ``cascade``, ``ioa``, ``feature`` or ``none``.
        tau_ioa: a mask leaves when this share of its new patches is background.
        tau_f: a mask leaves when its mean feature times the background's is this or more.
        tau_merge_ioa: masks merge above this overlap share (paper: tau_merge^IoA).
        tau_merge_gate: below this overlap share, features are not asked.
        tau_merge_f: masks that pass the gate merge at this product of mean features or more
            (paper: tau_merge^f).
        masks_device: where affinities and mean features are computed: ``numba`` for the CPU's own
            code, or a device of torch such as ``cuda``: the same masks but for ties of rounding.
            What is sequential stays on the CPU. Each worker process opens the device.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # K = 100 evenly spaced prompts, and a side is covered by "at least half" of it.
        "paper": {"stride": 6, "side_rule": "at_least_half"},
        # What the released code does: 225 prompts, a side is covered by more than half of it.
        "release": {},
    }

    stride: int = 4
    tau_b: float = 0.2
    side_rule: str = "more_than_half"
    component_share: float = 0.5
    background_vote: float = 0.5
    min_background: float = 0.1
    background_filter: str = "cascade"
    tau_ioa: float = 0.8
    tau_f: float = 0.1
    tau_merge_ioa: float = 0.5
    tau_merge_gate: float = 0.1
    tau_merge_f: float = 0.1
    masks_device: str = NUMBA

    def _checks(self) -> list[Check]:
        shares = (
            *("component_share", "background_vote", "min_background"),
            *("tau_ioa", "tau_merge_ioa", "tau_merge_gate"),
        )
        return [
            *super()._checks(),
            self._at_least("stride", 1),
            self._one_of("side_rule", SIDE_RULES),
            self._one_of("background_filter", FILTERS),
            *(self._between(name, -1, 1) for name in ("tau_b", "tau_f", "tau_merge_f")),
            *(self._between(name, 0, 1) for name in shares),
        ]
