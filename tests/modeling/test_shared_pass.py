"""A labeler and a detector on one pass of the network."""

import dataclasses

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from timm.models.vision_transformer import VisionTransformer

from promerge_d2 import add_promerge_config
from promerge_d2.features import FeatureExtractor
from promerge_d2.modeling import FrozenViT
from promerge_d2.modeling.shared_pass import SharedExtractor
from promerge_d2.utils.errors import UserError
from tests.helpers import TINY


@pytest.fixture
def extractor():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = VisionTransformer(
            img_size=56, patch_size=14, embed_dim=16, depth=2, num_heads=2, num_classes=0
        )
    return FeatureExtractor(dataclasses.replace(TINY, patch=14, width=16), vit)


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    add_promerge_config(cfg)
    vit = cfg.MODEL.FROZEN_VIT
    vit.BACKBONE, vit.SQUARE_PAD, vit.CACHE_DIR = TINY.name, 64, str(tmp_path / "cache")
    return cfg


def picture(height=64, width=64):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("layers", [[], [1]])
def test_features_of_the_resampled_image_and_the_detectors_tokens(extractor, cfg, tmp_path, layers):
    cfg.MODEL.FROZEN_VIT.LAYERS = layers
    shared = SharedExtractor.from_config(extractor, cfg)
    assert shared.backbone.patch == 16
    (features,) = shared.features([picture()])

    seen = extractor.normalise(torch.from_numpy(picture())[None]).contiguous()
    plain = FrozenViT(extractor, layers=layers)
    keys = extractor.facets(plain.resample(seen), ("key",))["key"][0]
    assert torch.equal(features, keys - keys.mean(dim=(1, 2), keepdim=True))
    kept = shared.cache.read(shared.cache.file(seen[0]))
    assert torch.equal(kept, plain(seen)["tokens"][0])
    assert len(kept) == 16 * (1 + len(layers))
    assert len([*tmp_path.glob("cache/*/*.npy")]) == 1
    final = FrozenViT(extractor)(seen)["tokens"]  # what a labeler on tokens sees
    assert torch.equal(shared.facets(seen, ("token",))["token"], final)


def test_what_the_detector_would_pad_is_not_kept(extractor, cfg, tmp_path):
    shared = SharedExtractor.from_config(extractor, cfg)
    (features,) = shared.features([picture(48, 80)])
    assert features.shape == (16, 3, 5)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("CACHE_DIR", ""), ("SQUARE_PAD", 0), ("BACKBONE", "x")]
)
def test_refused(extractor, cfg, key, value):
    cfg.MODEL.FROZEN_VIT[key] = value
    with pytest.raises(UserError, match=f"MODEL.FROZEN_VIT.{key}"):
        SharedExtractor.from_config(extractor, cfg)
