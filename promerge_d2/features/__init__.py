"""Images to patch features (C, H, W): one registry and one interface over all backbones."""

from promerge_d2.features.extractor import FACETS, PRECISIONS, FeatureExtractor
from promerge_d2.features.registry import BACKBONES, Backbone, get_backbone, register_backbone

__all__ = [
    "BACKBONES",
    "FACETS",
    "PRECISIONS",
    "Backbone",
    "FeatureExtractor",
    "get_backbone",
    "register_backbone",
]
