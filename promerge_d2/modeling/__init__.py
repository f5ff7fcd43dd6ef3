"""Heads, backbones and detectors, added to detectron2's registries when imported."""

from promerge_d2.modeling.droploss import (
    DropLossCascadeROIHeads,
    DropLossOutputLayers,
    DropLossStandardROIHeads,
    WeightedMaskHead,
)
from promerge_d2.modeling.frozen_vit import FrozenViT, build_frozen_vit_pyramid_backbone
from promerge_d2.modeling.ignoring import IgnoringRPN
from promerge_d2.modeling.refining import RefiningRCNN

__all__ = [
    "DropLossCascadeROIHeads",
    "DropLossOutputLayers",
    "DropLossStandardROIHeads",
    "FrozenViT",
    "IgnoringRPN",
    "RefiningRCNN",
    "WeightedMaskHead",
    "build_frozen_vit_pyramid_backbone",
]
