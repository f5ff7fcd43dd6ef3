"""Features to scored masks: labelers, each made of stages that are pure functions."""

from __future__ import annotations

from promerge_d2.labeler.base import GridMasks, ImageFeatures, Labeler, PreprocessedImage
from promerge_d2.labeler.config import GridConfig
from promerge_d2.labeler.mask_generator import LabelResult, MaskGenerator, Processor
from promerge_d2.labeler.maskcut.config import MaskCutConfig
from promerge_d2.labeler.maskcut.labeler import MaskCutLabeler
from promerge_d2.labeler.promerge.config import ProMergeConfig
from promerge_d2.labeler.promerge.labeler import ProMergeLabeler, grid_masks
from promerge_d2.labeler.regions.config import RegionsConfig
from promerge_d2.labeler.regions.labeler import RegionsLabeler
from promerge_d2.utils.errors import UserError

LABELERS: dict[str, type[Labeler]] = {
    labeler.name: labeler for labeler in (ProMergeLabeler, RegionsLabeler, MaskCutLabeler)
}

PRESETS: dict[str, type[Labeler]] = {
    preset: labeler for labeler in LABELERS.values() for preset in labeler.config_class.presets
}


def labeler_of_preset(preset: str) -> type[Labeler]:
    """Find the labeler that a preset belongs to; preset names are unique over labelers.

    Args:
        preset: a name of ``PRESETS``.

    Returns:
        The labeler's class.

    Raises:
        UserError: no preset has this name; the known ones are listed.
    """
    if preset not in PRESETS:
        raise UserError(f"no preset is named {preset!r}; known: {', '.join(PRESETS)}")
    return PRESETS[preset]


__all__ = [
    "LABELERS",
    "PRESETS",
    "GridConfig",
    "GridMasks",
    "ImageFeatures",
    "LabelResult",
    "Labeler",
    "MaskCutConfig",
    "MaskCutLabeler",
    "MaskGenerator",
    "PreprocessedImage",
    "ProMergeConfig",
    "ProMergeLabeler",
    "Processor",
    "RegionsConfig",
    "RegionsLabeler",
    "grid_masks",
    "labeler_of_preset",
]
