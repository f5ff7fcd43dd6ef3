"""Every backbone from a file in its authors' layout to features, against timm's own forward pass.

The reference is built for one image size (timm's blocks then know their grid themselves), its
position embeddings resampled as the authors' code does it, and a hook catches what enters the last
attention. ResNets are held to torchvision's.
"""

import argparse
import dataclasses

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from scipy.interpolate import RegularGridInterpolator
from scipy.optimize import brentq
from torchvision.models.resnet import Bottleneck

from promerge_d2.features import BACKBONES, FACETS, FeatureExtractor, get_backbone
from promerge_d2.features.checkpoints import find_network, to_timm
from promerge_d2.features.extractor import build_vit, load_weights, relative_position_bias
from promerge_d2.features.weights import WeightsError
from promerge_d2.utils.errors import UserError

GIANTS = {name for name, entry in BACKBONES.items() if 1024 < entry.width != 2048}
GRID = (3, 5)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Networks without their random start, which would take half the time: tests set all values."""
    for draw in ("uniform_", "normal_", "erfinv_"):
        monkeypatch.setattr(torch.Tensor, draw, lambda tensor, *args, **kwargs: tensor)


@pytest.fixture
def shallow(monkeypatch):
    """Register a backbone with its real width and a block or two."""

    def shorten(name, **options):
        entry = BACKBONES[name]
        depth = {"depth": 2 if entry.width < 768 else 1}
        if entry.architecture == "resnet50":
            depth = {"layers": (1, 1, 1, 1)}
        options = {**depth, **entry.options, **options}
        # no file of ours has the official hash
        entry = dataclasses.replace(entry, options=options, sha256=None, package=None)
        monkeypatch.setitem(BACKBONES, name, entry)
        return entry

    return shorten


def lively(state):
    """Random values of which each matters, in the place of timm's (its zeros and ones)."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for key, value in state.items():
        noise = torch.randn(value.shape, generator=generator)
        if key == "rope.periods" or not value.is_floating_point():
            made[key] = value
        elif key.endswith("running_var") or (value.ndim == 1 and key.endswith("weight")):
            made[key] = 1 + 0.2 * noise.clamp(-2, 2)
        elif "gamma" in key:
            made[key] = 0.5 + 0.2 * noise
        elif value.ndim == 1:
            made[key] = 0.2 * noise
        elif "token" in key or "pos" in key:
            made[key] = 0.5 * noise
        else:
            made[key] = noise / value[0].numel() ** 0.5
    return made


def officially(name, state):
    """What the authors' file for these weights holds. ``state``: timm's names to tensors."""
    some = next(iter(state.values()))
    junk = some.new_zeros(2, 3)

    def prefixed(prefix, tensors):
        return {prefix + key: value for key, value in tensors.items()}

    def renamed(tensors, **names):
        for old, new in names.items():
            old, new = old.replace("__", "."), new.replace("__", ".")
            tensors = {key.replace(old, new): value for key, value in tensors.items()}
        return tensors

    family = name.split("_")[0]
    if family == "dinov2":
        own = renamed(state, mlp__fc1="mlp.w12", mlp__fc2="mlp.w3") if "vitg" in name else state
        if name.endswith("_reg"):
            own = renamed(own, reg_token="register_tokens")
            half = own["cls_token"] / 2  # whose double is exact
            own["cls_token"] = half
            own["pos_embed"] = torch.cat([half, own["pos_embed"]], dim=1)
        return {**own, "mask_token": junk}
    if family == "dinov3":
        own = renamed(
            state,
            reg_token="storage_tokens",
            gamma_1="ls1.gamma",
            gamma_2="ls2.gamma",
            rope__periods="rope_embed.periods",
        )
        if "mlp.fc1_g" in "".join(own):
            own = renamed(own, mlp__fc1_g="mlp.w1", mlp__fc1_x="mlp.w2", mlp__fc2="mlp.w3")
        for key in [key for key in own if key.endswith("q_bias")]:
            query, value = own.pop(key), own.pop(key.replace("q_bias", "v_bias"))
            stem = key.removesuffix("q_bias") + "qkv."
            ones = torch.ones_like(query)
            own[stem + "bias"] = torch.cat([query, torch.full_like(query, torch.nan), value])
            own[stem + "bias_mask"] = torch.cat([ones, 0 * ones, ones])
        if "7b" in name:
            own |= {"local_cls_norm.weight": junk, "local_cls_norm.bias": junk}
        return {**own, "mask_token": junk}
    if family == "mae":
        return {"model": dict(state)}
    if family == "ibot":
        return {"state_dict": dict(state)}
    if family == "beit":
        more = dict.fromkeys(
            [
                "mask_token",
                "lm_head.weight",
                "lm_head.bias",
                "rel_pos_bias.relative_position_index",
            ],
            junk,
        )
        return {"model": {**state, **more}}
    if family == "mocov3":
        wrong = {key: -value for key, value in state.items()}
        encoders = prefixed("base_encoder.", {**state, "head.0.weight": junk}) | prefixed(
            "momentum_encoder.", {**wrong, "head.0.weight": junk}
        )
        networks = prefixed("module.", {**encoders, "predictor.0.weight": junk})
        return {
            "epoch": 300,
            "arch": "vit",
            "state_dict": networks,
            "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"params": [0]}]},
            "scaler": {"scale": 65536.0},
        }
    return dict(state)  # DINO, ResNets


def reference(entry, state, image, grid):
    """Facets (1, C, H, W) float64 of one normalised image; ``state``: timm's names to tensors."""
    state = dict(state)
    if entry.architecture == "resnet50":
        network = torchvision.models.ResNet(Bottleneck, entry.options["layers"])
        network.fc = torch.nn.Identity()
        network.load_state_dict(state)
        stages = torch.nn.Sequential(*list(network.eval().children())[:-2])
        return {"token": stages(image).double()}
    side = tuple(cells * entry.patch for cells in grid)
    vit = timm.create_model(entry.architecture, img_size=side, num_classes=0, **entry.options)
    periods = state.pop("rope.periods", None)
    if periods is not None:
        vit.rope.periods.copy_(periods)
    if "pos_embed" in state:
        kept = 0 if "reg4" in entry.architecture else 1
        positions = state["pos_embed"][:, kept:]
        native = round(positions.shape[1] ** 0.5)
        square = positions.unflatten(1, (native, native)).permute(0, 3, 1, 2)
        if "reg4" in entry.architecture:
            square = F.interpolate(square, grid, mode="bicubic", antialias=True)
        elif entry.name.startswith(("mae", "mocov3")):
            square = F.interpolate(square, grid, mode="bicubic")
        else:
            factors = tuple((cells + 0.1) / native for cells in grid)
            square = F.interpolate(square, scale_factor=factors, mode="bicubic")
        state["pos_embed"] = torch.cat(
            [state["pos_embed"][:, :kept], square.flatten(2).transpose(1, 2)], dim=1
        )
    if entry.name.startswith("beit"):
        key = "rel_pos_bias.relative_position_bias_table"
        state[key] = beit_table(state[key], *grid)
    vit.load_state_dict(state)
    entered = []
    vit.blocks[-1].attn.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    token = vit.eval().forward_features(image)
    last = {k.split("attn.")[1]: v for k, v in state.items() if f".{len(vit.blocks) - 1}.attn" in k}
    found = entered[0].double() @ last["qkv.weight"].double().T
    if "qkv.bias" in last:
        found += last["qkv.bias"]
    elif "q_bias" in last:
        found += torch.cat([last["q_bias"], torch.zeros_like(last["q_bias"]), last["v_bias"]])
    facets = [*found.chunk(3, dim=2), token.double()]
    prefix = facets[0].shape[1] - grid[0] * grid[1]
    return {
        name: facet[:, prefix:].transpose(1, 2).unflatten(2, grid)
        for name, facet in zip(FACETS, facets, strict=True)
    }


def beit_table(table, height, width):
    """BEiT's table for a grid smaller, or on both sides larger, than the 14 by 14 of training."""
    square = table[:-3].unflatten(0, (27, 27)).double()  # the zero distance in the middle
    if max(height, width) < 14:
        square = square[14 - height : 13 + height, 14 - width : 13 + width]
    else:
        known, wanted = [], []
        for size in (height, width):
            growth = brentq(lambda q, size=size: sum(q**n for n in range(13)) - size + 1, 1, 2)
            steps = np.array([sum(growth**n for n in range(count)) for count in range(1, 14)])
            steps[-1] = size - 1
            known.append([*-steps[::-1], 0, *steps])
            wanted.append(range(1 - size, size))
        grid = np.stack(np.meshgrid(*wanted, indexing="ij"), axis=-1)
        square = torch.from_numpy(RegularGridInterpolator(known, square.numpy())(grid))
    return torch.cat([square.flatten(0, 1).float(), table[-3:]])


def check(extractor, state, grid):
    """Hold all facets at a grid to the reference."""
    entry = extractor.backbone
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, 3, *(cells * entry.patch for cells in grid), generator=generator)
    with torch.no_grad():
        expected = reference(entry, state, image, grid)
        found = extractor.facets(image, entry.facets)
    assert set(found) == set(expected) == set(entry.facets)
    for name, facet in found.items():
        assert facet.shape == (1, entry.width, *grid)
        assert facet.dtype == torch.float32
        assert expected[name].std() > 0.01
        assert (facet - expected[name]).abs().max() < 1e-4 * expected[name].abs().max(), name
    default = extractor(image)
    raw = found[entry.facets[0]]
    mean = raw.mean(dim=(2, 3), keepdim=True) if entry.center else 0
    assert torch.allclose(default, raw - mean, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(BACKBONES) - GIANTS))
def test_official_file(name, shallow, tmp_path):
    entry = shallow(name)
    state = lively(build_vit(entry).state_dict())
    if "rope.periods" in state:  # the authors' are rounded
        state["rope.periods"] = state["rope.periods"].bfloat16().float()
    torch.save(officially(name, state), tmp_path / "official.pth")
    extractor = FeatureExtractor.from_name(name, tmp_path / "official.pth")
    loaded = extractor.vit.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    check(extractor, state, GRID)


@pytest.mark.parametrize("name", sorted(GIANTS))
def test_giants_on_the_meta_device(name):
    entry = get_backbone(name)
    with torch.device("meta"):
        vit = build_vit(entry)
        image = torch.zeros(1, 3, *(cells * entry.patch for cells in GRID))
    load_weights(vit, find_network(officially(name, vit.state_dict())), name)
    found = FeatureExtractor(entry, vit).facets(image, entry.facets)
    assert {facet: f.shape for facet, f in found.items()} == dict.fromkeys(
        FACETS, (1, entry.width, *GRID)
    )


@pytest.mark.parametrize("name", ["dino_resnet50", "vicreg_resnet50"])
def test_a_resnet_has_the_names_of_torchvision(name):
    with torch.device("meta"):
        network, theirs = build_vit(get_backbone(name)), torchvision.models.resnet50()
    theirs.fc = torch.nn.Identity()
    load_weights(network, theirs.state_dict(), name)
    assert network.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("grid", [(16, 19), (6, 2)])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dinov2_vits14_reg", {"embed_dim": 64, "num_heads": 2}),
        ("dinov2_vitg14_reg", {"embed_dim": 48, "num_heads": 3}),
        ("dinov3_vits16", {"embed_dim": 64, "num_heads": 2}),
        ("dinov3_vith16plus", {"embed_dim": 64, "num_heads": 2}),
        ("dinov3_vit7b16", {"embed_dim": 64, "num_heads": 2}),
        ("mae_vith14", {"embed_dim": 64, "num_heads": 2}),
        ("ibot_vits16", {"embed_dim": 64, "num_heads": 2}),
        ("beit_vitb16", {"embed_dim": 96}),
        ("mocov3_vits16", {"embed_dim": 96}),
    ],
)
def test_any_grid(name, options, grid, shallow):
    """Smaller and larger than that of the training; narrow models."""
    entry = shallow(name, depth=2, **options)
    entry = dataclasses.replace(entry, width=options.get("embed_dim", entry.width))
    vit = build_vit(entry)
    state = lively(vit.state_dict())
    load_weights(vit, find_network(officially(name, state)), name)
    check(FeatureExtractor(entry, vit), state, grid)


def test_relative_position_bias_by_hand():
    """On the grid of the training: table rows by (row distance, column distance)."""
    table = torch.arange(4.0 * (5 * 5 + 3)).reshape(-1, 4)  # window 3: distances -2..2, and three
    bias = relative_position_bias(table, 3, 3)
    assert bias.shape == (4, 10, 10)
    for query in range(9):
        for key in range(9):
            rows, columns = query // 3 - key // 3, query % 3 - key % 3
            assert torch.equal(bias[:, 1 + query, 1 + key], table[(rows + 2) * 5 + columns + 2])
    assert torch.equal(bias[:, 0, 1:], table[25][:, None].expand(4, 9))
    assert torch.equal(bias[:, 1:, 0], table[26][:, None].expand(4, 9))
    assert torch.equal(bias[:, 0, 0], table[27])


def test_relative_position_bias_on_other_grids():
    torch.manual_seed(0)
    table = torch.randn(27 * 27 + 3, 2)
    before = table.clone()
    native = relative_position_bias(table, 14, 14)
    small = relative_position_bias(table, 3, 5)  # a window of the native grid
    inside = [0] + [1 + 14 * row + column for row in range(3) for column in range(5)]
    assert torch.equal(small, native[:, inside][:, :, inside])
    large = relative_position_bias(table, 17, 24)
    size = 17 * 24
    corners = [[1, size], [24, size - 23]]  # the farthest apart keep the bias of the farthest
    for one, other in corners:
        ours = {1: 1, size: 14 * 14, 24: 14, size - 23: 14 * 14 - 13}
        assert torch.allclose(large[:, one, other], native[:, ours[one], ours[other]], atol=1e-5)
    assert torch.equal(table, before)
    assert torch.equal(relative_position_bias(table, 3, 5), small)  # no trace of other grids


@pytest.mark.parametrize("name", ["dino_vits16", "ibot_vits16"])
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_a_whole_training_gives_the_teacher(name, wrapper, shallow, tmp_path):
    state = lively(build_vit(shallow(name)).state_dict())
    head = {wrapper + "head.mlp.0.weight": torch.zeros(2)}

    def networks(sign):
        return {f"{wrapper}backbone.{key}": sign * value for key, value in state.items()} | head

    checkpoint = {
        "student": networks(-1) | {f"{wrapper}backbone.masked_embed": torch.zeros(1, 384)},
        "teacher": networks(1),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "epoch": 800,
        "args": argparse.Namespace(arch="vit_small", patch_size=16),
        "dino_loss": {"center": torch.zeros(1, 3)},
    }
    for content, sign in ((checkpoint, 1), ({"student": checkpoint["student"]}, -1)):
        file = tmp_path / f"{sign}.pth"
        torch.save(content, file)
        loaded = FeatureExtractor.from_name(name, file).vit.state_dict()
        assert all(torch.equal(loaded[key], sign * state[key]) for key in state)


def test_a_whole_training_of_vicreg(shallow, tmp_path):
    state = lively(build_vit(shallow("vicreg_resnet50")).state_dict())
    networks = {f"module.backbone.{key}": value for key, value in state.items()}
    networks["module.projector.0.weight"] = torch.zeros(2)
    torch.save({"epoch": 1000, "model": networks, "optimizer": {}}, tmp_path / "full.pth")
    loaded = FeatureExtractor.from_name("vicreg_resnet50", tmp_path / "full.pth").vit.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_mae_with_its_decoder(shallow):
    vit = build_vit(shallow("mae_vitb16"))
    more = dict.fromkeys(
        ["mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.norm1.bias"],
        torch.zeros(2),
    )
    saved = {name: torch.rand_like(weight) for name, weight in vit.state_dict().items()}
    load_weights(vit, find_network({"model": {**saved, **more}}), "mae")
    assert all(torch.equal(weight, saved[name]) for name, weight in vit.state_dict().items())


def test_names_of_timm_stay(shallow):
    for name in ("dino_vits16", "dinov2_vits14_reg", "dinov3_vits16", "dinov3_vit7b16"):
        entry = dataclasses.replace(
            get_backbone(name), options={"depth": 1, "embed_dim": 64, "num_heads": 2}
        )
        state = build_vit(entry).state_dict()
        again = to_timm(state)
        assert again.keys() == state.keys()
        assert all(again[key] is state[key] for key in state)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        (
            "dino_vits16",
            lambda state: {**state, "head.weight": torch.zeros(1000, 384)},
            "head.weight is unknown",
        ),
        (
            "mae_vitb16",  # a classifier fine-tuned from it
            lambda state: {"model": {**state, "head.bias": torch.zeros(1000)}},
            "head.bias is unknown",
        ),
        (
            "beit_vitb16",  # fine-tuned: a table a block
            lambda state: {
                ("blocks.0.attn." if key.startswith("rel_pos") else "") + key.split("_bias.")[-1]
                if key.startswith("rel_pos")
                else key: value
                for key, value in state.items()
            },
            "rel_pos_bias.relative_position_bias_table is missing; "
            "blocks.0.attn.relative_position_bias_table is unknown",
        ),
        (
            "dino_resnet50",  # torchvision's own, trained on labels
            lambda state: {**state, "fc.weight": torch.zeros(1000, 2048)},
            "fc.weight is unknown",
        ),
        (
            "dinov2_vits14",
            lambda state: {**state, "pos_embed": torch.zeros(1, 197, 384)},
            "pos_embed is (1, 197, 384), not (1, 1370, 384)",
        ),
    ],
)
def test_a_wrong_file_is_refused(name, change, problem, shallow, tmp_path):
    entry = shallow(name)
    torch.save(change(build_vit(entry).state_dict()), tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        FeatureExtractor.from_name(name, tmp_path / "w.pth")
    assert (
        str(caught.value) == f"{tmp_path / 'w.pth'} for {name}: these weights do not fit: {problem}"
    )


def test_another_family_is_refused_with_what_is_missing_and_left_over(shallow, tmp_path):
    state = build_vit(shallow("dinov3_vits16", depth=1)).state_dict()
    torch.save(officially("dinov3_vits16", state), tmp_path / "w.pth")
    shallow("dino_vits16", depth=1)
    with pytest.raises(WeightsError) as caught:
        FeatureExtractor.from_name("dino_vits16", tmp_path / "w.pth")
    said = str(caught.value)
    assert "pos_embed is missing; blocks.0.attn.qkv.bias is missing; " in said
    assert "reg_token is unknown; " in said


def test_gated_weights_say_so():
    with pytest.raises(WeightsError) as caught:
        FeatureExtractor.from_name("dinov3_vitb16")
    assert str(caught.value) == (
        "the weights of dinov3_vitb16 are gated (DINOv3 License (Meta's own terms: read them)): "
        "ask for them at https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/ "
        "and pass the file that you are given with --weights"
    )


def test_no_address():
    with pytest.raises(WeightsError, match="beit_vitl16"):
        FeatureExtractor.from_name("beit_vitl16")


@pytest.mark.parametrize("facet", ["key", "query", "value"])
def test_a_resnet_has_no_keys(facet):
    problem = (
        f"dino_resnet50 has no facet '{facet}': a network without attention has no queries, keys "
        "and values; choose --facet token, its last stage"
    )
    entry = get_backbone("dino_resnet50")
    with torch.device("meta"):
        network = build_vit(entry)
        image = torch.zeros(1, 3, 32, 32)
    for ask in (
        lambda: FeatureExtractor.from_name("dino_resnet50", "/no/weights", facet),
        lambda: FeatureExtractor(entry, network, facet),
        lambda: FeatureExtractor(entry, network).facets(image, [facet]),
    ):
        with pytest.raises(UserError) as caught:
            ask()
        assert str(caught.value) == problem


def test_default_facets():
    for name in ("dino_resnet50", "dino_vits16"):
        entry = get_backbone(name)
        with torch.device("meta"):
            network = build_vit(entry)
        facet = FeatureExtractor(entry, network).facet
        assert facet == ("token" if "resnet" in name else "key")


def test_the_grid_of_a_resnet_is_its_stride(shallow):
    entry = shallow("vicreg_resnet50")
    extractor = FeatureExtractor(entry, build_vit(entry))
    (features,) = extractor.features([np.zeros((64, 96, 3), np.uint8)])
    assert features.shape == (2048, 2, 3)
    with pytest.raises(ValueError, match=r"\(64, 80\).* 32"):
        extractor(torch.zeros(1, 3, 64, 80))


def test_pixels_as_the_network_was_trained(shallow):
    entry = shallow("beit_vitb16", depth=1)
    extractor = FeatureExtractor(entry, build_vit(entry))
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(1, 1, 1, 3)
    assert extractor.normalise(pixels).flatten().tolist() == pytest.approx([-1, -0.6, 1])


@pytest.mark.parametrize("name", ["beit_vitb16", "dinov3_vits16", "vicreg_resnet50"])
def test_bf16_changes_features_a_little(name, shallow):
    entry = shallow(name)
    network = build_vit(entry)
    network.load_state_dict(lively(network.state_dict()))
    image = np.random.default_rng(2).integers(0, 256, (4 * entry.patch, 128, 3), np.uint8)
    exact, rough = (
        FeatureExtractor(entry, network, "token", precision=precision).features([image])[0]
        for precision in ("fp32", "bf16")
    )
    difference = (exact - rough).abs().max() / exact.abs().max()
    assert 1e-4 < difference < 0.1
