import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import ImageList
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from promerge_d2 import add_promerge_config
from promerge_d2.features import BACKBONES, FeatureExtractor, get_backbone
from promerge_d2.modeling import FrozenViT
from promerge_d2.modeling.frozen_vit import check_cacheable
from promerge_d2.modeling.relations import count_relations, relate
from promerge_d2.modeling.token_cache import TokenCache
from promerge_d2.utils.errors import UserError
from tests.helpers import ROOT, TINY, save_random_vit, use_tiny


def extractor(patch=16, sha256="0" * 64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = VisionTransformer(
            img_size=4 * patch, patch_size=patch, embed_dim=16, depth=2, num_heads=2, num_classes=0
        )
    backbone = dataclasses.replace(TINY, patch=patch, width=16)
    return FeatureExtractor(backbone, vit, facet="token", weights_sha256=sha256)


def images(count=2, height=64, width=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, height, width, generator=generator)


@pytest.mark.parametrize(("patch", "stride"), [(8, 8), (14, 16), (16, 16)])
def test_one_token_for_stride_pixels(patch, stride):
    backbone = FrozenViT(extractor(patch))
    assert backbone.size_divisibility == stride
    assert backbone.output_shape() == {"tokens": ShapeSpec(channels=16, stride=stride)}
    tokens = backbone(images(height=4 * stride, width=6 * stride))["tokens"]
    assert tokens.shape == (2, 16, 4, 6)
    assert tokens.dtype == torch.float32


def test_tokens_are_the_final_ones_of_the_vit():
    source = extractor(16)
    picture = images(height=64, width=64)  # the ViT's own size: positions need no resampling
    wanted = source.vit.forward_features(picture)[:, 1:].transpose(1, 2).reshape(2, 16, 4, 4)
    found = FrozenViT(source)(picture)["tokens"]
    assert torch.allclose(found, wanted, atol=1e-5)


def test_a_patch_of_14_sees_the_image_at_14_16ths():
    source = extractor(14)
    picture = images()
    smaller = F.interpolate(picture, (56, 84), mode="bicubic", align_corners=False, antialias=True)
    wanted = source.facets(smaller, ("token",))["token"]
    assert torch.equal(FrozenViT(source)(picture)["tokens"], wanted)


def deep_extractor():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = VisionTransformer(
            img_size=64, patch_size=16, embed_dim=16, depth=4, num_heads=2, num_classes=0
        )
    return FeatureExtractor(dataclasses.replace(TINY, width=16), vit, weights_sha256="0" * 64)


def test_tokens_of_earlier_layers_go_beside_the_final_ones():
    source = deep_extractor()
    backbone = FrozenViT(source, layers=[3, 1])
    assert backbone.output_shape() == {"tokens": ShapeSpec(channels=48, stride=16)}
    picture = images(height=64, width=64)
    inner = source.vit.get_intermediate_layers(picture, n=[0, 2], reshape=True)
    found = backbone(picture)["tokens"]
    assert torch.equal(found[:, :16], FrozenViT(source)(picture)["tokens"])
    for place, tokens in enumerate(inner, start=1):  # of blocks 1 and 3
        wanted = F.layer_norm(tokens.permute(0, 2, 3, 1), (16,)).permute(0, 3, 1, 2)
        assert torch.allclose(found[:, 16 * place : 16 * place + 16], wanted, atol=1e-5)
    assert not any(block._forward_hooks for block in source.vit.blocks)
    keys = backbone.facets(picture, ("key",))
    assert torch.equal(keys["key"], source.facets(picture, ("key",))["key"])


@pytest.mark.parametrize("layers", [[0], [4], [1, 5]])
def test_a_layer_that_the_vit_lacks_is_refused(layers):
    with pytest.raises(UserError, match=rf"LAYERS \[.*{layers[-1]}\].* 1 to 3"):
        FrozenViT(deep_extractor(), layers=layers)


def test_layers_are_in_the_key_and_in_the_checkpoint(tmp_path):
    source, picture = deep_extractor(), images(1)
    plain, other, third = (
        FrozenViT(source, TokenCache(str(tmp_path / "c"), "0" * 64, layers=layers), layers)
        for layers in ([], [1], [2])
    )
    widths = [len(net(picture)["tokens"][0]) for net in (plain, other, third, plain, other, third)]
    assert widths == [16, 32, 32] * 2
    assert len(files(tmp_path / "c")) == 3
    with pytest.raises(UserError, match=r"LAYERS 1.*LAYERS 2"):
        third.load_state_dict(other.state_dict())


def test_relations_go_behind_the_tokens_and_are_0_in_padding():
    source, picture = deep_extractor(), images(2, height=64, width=64)
    picture[0, :, :, 48:] = 0  # padded by a patch
    net = FrozenViT(source, layers=[2], relations=True)
    found = net(picture)["tokens"]
    assert net.output_shape()["tokens"].channels == found.shape[1] == 32 + count_relations(2)
    plain = FrozenViT(source, layers=[2])(picture)["tokens"]
    assert torch.equal(found[:, :32], plain)
    inside = torch.ones(2, 4, 4, dtype=torch.bool)
    inside[0, :, 3] = False
    for tokens, mask, related in zip(plain, inside, found[:, 32:], strict=True):
        assert torch.equal(related, relate(tokens.split(16), mask))


def test_relations_are_in_the_key_and_in_the_checkpoint(tmp_path):
    source, picture = deep_extractor(), images(1, 64, 64)
    nets = [
        FrozenViT(source, TokenCache(str(tmp_path / "c"), "0" * 64, relations=on), relations=on)
        for on in (False, True)
    ]
    widths = [len(net(picture)["tokens"][0]) for net in (*nets, *nets)]
    assert widths == [16, 16 + count_relations(1)] * 2
    assert len(files(tmp_path / "c")) == 2
    with pytest.raises(UserError, match=r"trained on .* RELATIONS"):
        nets[0].load_state_dict(nets[1].state_dict())


def test_nothing_of_the_vit_is_trained_or_saved():
    backbone = FrozenViT(extractor())
    parent = nn.Sequential(backbone, nn.Conv2d(16, 4, 1))
    assert list(backbone.parameters()) == []
    assert set(backbone.state_dict()) == {"network"}  # which it was, in 160 bytes
    assert set(parent.state_dict()) == {"0.network", "1.weight", "1.bias"}
    parent.train()
    assert not backbone.extractor.vit.training
    tokens = backbone(images().requires_grad_())["tokens"]
    assert not tokens.requires_grad
    assert not any(p.requires_grad for p in backbone.extractor.parameters())


def test_the_vit_follows_to():
    parent = nn.Sequential(FrozenViT(extractor())).to(torch.float64)
    assert {p.dtype for p in parent[0].extractor.parameters()} == {torch.float64}
    parent.to("meta")
    assert {p.device.type for p in parent[0].extractor.parameters()} == {"meta"}
    assert parent[0].extractor.device.type == "meta"


# The cache


def cache(tmp_path, sha256="0" * 64, precision="fp32"):
    return TokenCache(str(tmp_path / "cache"), sha256, precision)


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """A cached backbone and the sizes of the batches that reach its network."""
    backbone = FrozenViT(extractor(), cache(tmp_path))
    calls = []
    real = backbone.extractor.facets

    def facets(batch, names):
        calls.append(len(batch))
        return real(batch, names)

    monkeypatch.setattr(backbone.extractor, "facets", facets)
    return backbone, calls


def files(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_an_image_seen_before_skips_the_network(counted, tmp_path):
    backbone, calls = counted
    batch = images(2)
    first = backbone(batch)["tokens"]
    assert calls == [1, 1]
    assert torch.equal(first, FrozenViT(extractor())(batch)["tokens"])
    assert len(files(tmp_path / "cache")) == 2
    again = backbone(batch.flip(0))["tokens"]  # in another order
    assert calls == [1, 1]
    assert torch.equal(again, first.flip(0))
    another = FrozenViT(extractor(), cache(tmp_path))  # another run
    assert torch.equal(another(batch)["tokens"], first)
    assert len(files(tmp_path / "cache")) == 2


def test_content_shape_and_weights_make_the_key(counted, tmp_path):
    backbone, calls = counted
    picture = images(1)
    first = backbone(picture)["tokens"]
    changed = picture.clone()
    changed[0, 2, -1, -1] += 1e-3
    assert not torch.equal(backbone(changed)["tokens"], first)
    same_bytes = picture.reshape(1, 3, 96, 64)
    assert backbone(same_bytes)["tokens"].shape == (1, 16, 6, 4)
    assert calls == [1, 1, 1]
    other = FrozenViT(extractor(sha256="1" * 64), cache(tmp_path, "1" * 64))
    other(picture)
    assert len(files(tmp_path / "cache")) == 4
    halves = FrozenViT(extractor(), cache(tmp_path, precision="fp16"))
    halves(picture)
    assert len(files(tmp_path / "cache")) == 5


def test_half_precision_is_half_as_large_and_the_same_at_first_sight(tmp_path):
    backbone = FrozenViT(extractor(), cache(tmp_path, precision="fp16"))
    exact = FrozenViT(extractor())(images())["tokens"]
    first = backbone(images())["tokens"]
    assert first.dtype == torch.float32
    assert torch.equal(first, exact.half().float())
    assert 0 < (first - exact).abs().max() <= exact.abs().max() / 2**11
    assert torch.equal(backbone(images())["tokens"], first)
    for file in (tmp_path / "cache").rglob("*.npy"):
        assert file.stat().st_size == 128 + 2 * 16 * 4 * 6  # numpy's head; 16 channels, 4 x 6


def test_another_precision_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"CACHE_PRECISION .*fp32.*fp16.*bf16"):
        cache(tmp_path, precision="bf16")


def test_a_broken_file_is_named(counted, tmp_path):
    backbone, _ = counted
    backbone(images(1))
    (file,) = (tmp_path / "cache").rglob("*.npy")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=rf"{file}: "):
        backbone(images(1))


def test_a_stop_while_writing_leaves_nothing(counted, tmp_path, monkeypatch):
    backbone, calls = counted

    def stop(stream, tokens):
        stream.write(b"half of i")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            backbone(images(1))
    assert files(tmp_path / "cache") == []
    backbone(images(1))
    assert calls == [1, 1]
    assert len(files(tmp_path / "cache")) == 1


def test_what_is_kept_is_what_is_used(counted, tmp_path):
    backbone, _ = counted
    backbone(images(1))
    (file,) = (tmp_path / "cache").rglob("*.npy")
    np.save(file, np.load(file) * 0 + 5)
    assert (backbone(images(1))["tokens"] == 5).all()


def config(**changes):
    cfg = get_cfg()
    add_promerge_config(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    cfg.MODEL.FROZEN_VIT.SQUARE_PAD = 64
    cfg.merge_from_list([item for pair in changes.items() for item in pair])
    return cfg


def test_a_cache_needs_images_that_come_again():
    check_cacheable(config())
    check_cacheable(config(**{"INPUT.MIN_SIZE_TRAIN": (64, 96), "INPUT.RANDOM_FLIP": "horizontal"}))
    for key, value, wanted in (
        ("INPUT.COPY_PASTE.ENABLED", True, "INPUT.COPY_PASTE.ENABLED False"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TRAIN_SAMPLING choice"),
        ("INPUT.CROP.ENABLED", True, "INPUT.CROP.ENABLED False"),
        ("MODEL.FROZEN_VIT.SQUARE_PAD", 0, "MODEL.FROZEN_VIT.SQUARE_PAD above 0"),
    ):
        with pytest.raises(UserError) as caught:
            check_cacheable(config(**{key: value}))
        message = str(caught.value)
        assert message.startswith("MODEL.FROZEN_VIT.CACHE_DIR keeps tokens of images that come ")
        assert message.split("it needs ")[1].startswith(wanted)
    both = config(**{"INPUT.COPY_PASTE.ENABLED": True, "INPUT.CROP.ENABLED": True})
    with pytest.raises(UserError, match=r"COPY_PASTE\.ENABLED False, INPUT\.CROP\.ENABLED False$"):
        check_cacheable(both)


# In detectron2


@pytest.fixture
def base(tmp_path, monkeypatch):
    """configs/Base-Frozen-ViT.yaml with the tiny ViT, as small as it can be."""
    cfg = get_cfg()
    add_promerge_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / "Base-Frozen-ViT.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.FROZEN_VIT.BACKBONE = "tiny"
    cfg.MODEL.FROZEN_VIT.WEIGHTS = str(use_tiny(monkeypatch, tmp_path))
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    return cfg


def test_the_base_config_detects(base):
    model = build_model(base).eval()
    shapes = {name: shape.stride for name, shape in model.backbone.output_shape().items()}
    assert shapes == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    picture = torch.randint(0, 256, (3, 70, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = model.backbone(torch.zeros(1, 3, 96, 128))
        (result,) = model([{"image": picture.to(torch.uint8), "height": 140, "width": 200}])
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        "p2": (1, 32, 24, 32),
        "p3": (1, 32, 12, 16),
        "p4": (1, 32, 6, 8),
        "p5": (1, 32, 3, 4),
        "p6": (1, 32, 2, 2),
    }
    assert result["instances"].image_size == (140, 200)
    assert len(result["instances"]) > 0
    assert not [name for name in model.state_dict() if "vit" in name or "blocks" in name]


def test_a_checkpoint_is_held_to_its_network(base, tmp_path, monkeypatch):
    model = build_model(base)
    checkpointer = DetectionCheckpointer(model, str(tmp_path))
    checkpointer.save("detector")
    checkpointer.load(str(tmp_path / "detector.pth"))
    first = model.backbone.net.extractor.weights_sha256
    base.MODEL.FROZEN_VIT.WEIGHTS = str(save_random_vit(TINY, tmp_path / "others.pth", seed=1))
    other = build_model(base)
    second = other.backbone.net.extractor.weights_sha256
    assert first != second
    with pytest.raises(UserError) as caught:
        DetectionCheckpointer(other).load(str(tmp_path / "detector.pth"))
    assert str(caught.value).startswith(
        f"the checkpoint was trained on tiny (weights SHA-256 {first}), not on tiny (weights "
        f"SHA-256 {second}): set MODEL.FROZEN_VIT.BACKBONE"
    )


def test_a_checkpoint_that_does_not_say_its_network_is_taken_with_a_warning(caplog):
    backbone = FrozenViT(extractor())
    assert backbone.load_state_dict({}).missing_keys == []
    assert "does not say which ViT it was trained on; tiny (weights SHA-256 000" in caplog.text
    assert backbone.load_state_dict(backbone.state_dict()).missing_keys == []
    assert caplog.text.count("does not say") == 1


def test_which_network_it_was_fits_for_all_backbones():
    for name in BACKBONES:
        backbone = dataclasses.replace(TINY, name=name, width=16)
        source = extractor(sha256="f" * 64)
        source.backbone = backbone
        assert FrozenViT(source).network.shape == (160,)


def test_the_default_backbone_has_a_patch_that_fits_the_pyramid():
    cfg = get_cfg()
    add_promerge_config(cfg)
    backbone = get_backbone(cfg.MODEL.FROZEN_VIT.BACKBONE)
    stride = 1 << (backbone.patch - 1).bit_length()
    assert [stride / scale for scale in cfg.MODEL.FROZEN_VIT.SCALE_FACTORS] == [4, 8, 16, 32]
    assert backbone.unsupervised


@pytest.mark.parametrize(("scales", "multiple"), [([4.0, 2.0], 16), ([1.0, 0.5], 32)])
def test_images_are_padded_to_whole_patches(base, scales, multiple):
    base.MODEL.FROZEN_VIT.SCALE_FACTORS = scales
    constraints = build_backbone(base).padding_constraints
    assert constraints == {"size_divisibility": multiple, "square_size": 0}
    batch = ImageList.from_tensors([torch.ones(3, 33, 50)], 0, padding_constraints=constraints)
    assert batch.tensor.shape == (1, 3, 64 if multiple == 32 else 48, 64)


def test_a_square_that_would_cut_images_is_refused(base):
    base.MODEL.FROZEN_VIT.SQUARE_PAD = base.INPUT.MAX_SIZE_TRAIN = 64
    base.INPUT.MAX_SIZE_TEST = 65
    with pytest.raises(UserError, match=r"SQUARE_PAD 64 .*\b65\b"):
        build_backbone(base)


def test_levels_are_the_projected_tokens_resampled(base):
    base.MODEL.FROZEN_VIT.SCALE_FACTORS = [2.0, 1.0, 0.5]
    pyramid = build_backbone(base)
    picture = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    lateral = pyramid.lateral(pyramid.net(picture)["tokens"])
    assert (lateral < 0).any()
    twice = F.interpolate(lateral, scale_factor=2, mode="bilinear")
    wanted = [F.relu(twice), F.relu(lateral), F.relu(F.max_pool2d(lateral, 2))]
    maps = pyramid(picture)
    for name, resampled, level in zip(("p3", "p4", "p5"), wanted, pyramid.levels, strict=True):
        assert torch.equal(maps[name], level(resampled))
    assert torch.equal(maps["p6"], maps["p5"][:, :, ::2, ::2])
    for part in (pyramid.lateral, *pyramid.levels):
        assert isinstance(part.norm, nn.GroupNorm)
        assert part.bias is None  # the norm has one


def test_relations_have_a_projection_of_their_own(base):
    base.MODEL.FROZEN_VIT.RELATIONS = True
    pyramid = build_backbone(base)
    picture = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    tokens, related = pyramid.net(picture)["tokens"].split([TINY.width, count_relations(1)], dim=1)
    both = pyramid.lateral(tokens) + pyramid.lateral_relations(related)
    maps = pyramid(picture)
    for scale, name, level in zip((2, 1), ("p3", "p4"), pyramid.levels[1:3], strict=True):
        resampled = F.interpolate(both, scale_factor=scale, mode="bilinear") if scale > 1 else both
        assert torch.allclose(maps[name], level(F.relu(resampled)), atol=1e-5)


def test_fewer_levels(base):
    base.MODEL.FROZEN_VIT.SCALE_FACTORS = [2.0, 1.0]
    pyramid = build_backbone(base)
    assert {n: s.stride for n, s in pyramid.output_shape().items()} == {"p3": 8, "p4": 16, "p5": 32}
    maps = pyramid(torch.zeros(1, 3, 64, 96))
    assert {n: tuple(m.shape[2:]) for n, m in maps.items()} == {
        "p3": (8, 12),
        "p4": (4, 6),
        "p5": (2, 3),
    }


def test_bgr_is_refused(base):
    base.INPUT.FORMAT = "BGR"
    with pytest.raises(UserError, match=r"INPUT\.FORMAT RGB"):
        build_backbone(base)


def test_pixels_of_another_network_are_refused(base):
    base.MODEL.PIXEL_STD = [1.0, 1.0, 1.0]
    wanted = (
        r'MEAN "\[123\.675, 116\.28, 103\.53\]" MODEL\.PIXEL_STD "\[58\.395, 57\.12, 57\.375\]"'
    )
    with pytest.raises(UserError, match=f"^tiny was trained on other .*{wanted}$"):
        build_backbone(base)


def test_a_cache_is_refused_for_random_images(base, tmp_path):
    base.MODEL.FROZEN_VIT.CACHE_DIR = str(tmp_path / "cache")
    with pytest.raises(UserError, match=r"INPUT\.COPY_PASTE\.ENABLED False, MODEL"):
        build_backbone(base)
    base.INPUT.COPY_PASTE.ENABLED = False
    base.INPUT.MIN_SIZE_TRAIN = (64,)
    base.MODEL.FROZEN_VIT.SQUARE_PAD = base.INPUT.MAX_SIZE_TRAIN = base.INPUT.MAX_SIZE_TEST = 64
    pyramid = build_backbone(base)
    assert pyramid.net.cache.folder == tmp_path / "cache"
    assert pyramid.net.cache.weights_sha256 == pyramid.net.extractor.weights_sha256
    assert pyramid.padding_constraints["square_size"] == 64
