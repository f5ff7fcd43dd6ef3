"""Features to scored masks: ProMerge's stages, each a pure function, and the class around them."""

from promerge_d2.labeler.config import PRESETS, LabelerConfig
from promerge_d2.labeler.promerge import REASONS, LabelResult, ProMergeLabeler, grid_masks

__all__ = ["PRESETS", "REASONS", "LabelResult", "LabelerConfig", "ProMergeLabeler", "grid_masks"]
