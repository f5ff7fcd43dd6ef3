"""Heads and backbones, added to detectron2's registries when imported."""

from promerge_d2.modeling.droploss import DropLossCascadeROIHeads, DropLossOutputLayers
from promerge_d2.modeling.frozen_vit import FrozenViT, build_frozen_vit_pyramid_backbone

__all__ = [
    "DropLossCascadeROIHeads",
    "DropLossOutputLayers",
    "FrozenViT",
    "build_frozen_vit_pyramid_backbone",
]
