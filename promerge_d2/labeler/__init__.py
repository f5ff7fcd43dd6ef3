"""Features to scored masks: labelers, each made of stages that are pure functions."""

from promerge_d2.labeler.config import GridConfig, LabelerConfig, MaskCutConfig
from promerge_d2.labeler.labeler import Decoded, Labeler, LabelResult, MaskSource, Prepared
from promerge_d2.labeler.maskcut import MaskCutLabeler
from promerge_d2.labeler.promerge import ProMergeLabeler, grid_masks

LABELERS: dict[str, type[Labeler]] = {
    labeler.name: labeler for labeler in (ProMergeLabeler, MaskCutLabeler)
}

__all__ = [
    "LABELERS",
    "Decoded",
    "GridConfig",
    "LabelResult",
    "Labeler",
    "LabelerConfig",
    "MaskCutConfig",
    "MaskCutLabeler",
    "MaskSource",
    "Prepared",
    "ProMergeLabeler",
    "grid_masks",
]
