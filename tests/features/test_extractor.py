"""Features against a Vision Transformer written out in numpy from its equations."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from promerge_d2.features import FACETS, FeatureExtractor, get_backbone
from promerge_d2.features.extractor import build_vit, load_weights, resample_position_embedding
from promerge_d2.features.weights import WeightsError
from promerge_d2.utils.errors import UserError

HEADS = 6  # of every ViT-S


def cubic(distance, a=-0.75):
    """Keys' cubic convolution kernel."""
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    if x < 2:
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return 0.0


def bicubic_matrix(side, size, added=0.1):
    """(size, side) weights of one axis: scale (size + 0.1) / side, border cells repeated."""
    scale = (size + added) / side
    matrix = np.zeros((size, side))
    for target in range(size):
        source = (target + 0.5) / scale - 0.5
        base = math.floor(source)
        for tap in range(base - 1, base + 3):
            matrix[target, min(max(tap, 0), side - 1)] += cubic(source - tap)
    return matrix


def resample_by_hand(positions, height, width, added=0.1):
    """(side * side, C) to (height * width, C)."""
    side = math.isqrt(len(positions))
    if (height, width) == (side, side):
        return positions
    square = positions.reshape(side, side, -1)
    rows, columns = (bicubic_matrix(side, size, added) for size in (height, width))
    return np.einsum("ys,xt,stc->yxc", rows, columns, square).reshape(height * width, -1)


def layer_norm(x, weight, bias):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6) * weight + bias


def gelu(x):
    return 0.5 * x * (1 + torch.special.erf(torch.from_numpy(x / math.sqrt(2))).numpy())


def plain_vit(state, image, patch, height, width):
    """Facets of the last block, each (C, H, W), of one normalised image (3, h, w)."""
    p = {key: value.double().numpy() for key, value in state.items()}
    kernel = p["patch_embed.proj.weight"].reshape(len(p["patch_embed.proj.bias"]), -1)
    tokens = []
    for r in range(height):
        for c in range(width):
            window = image[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
            tokens.append(kernel @ window.ravel() + p["patch_embed.proj.bias"])
    positions = p["pos_embed"][0]
    patches = np.array(tokens) + resample_by_hand(positions[1:], height, width)
    x = np.concatenate([p["cls_token"][0] + positions[:1], patches])

    depth = 1 + max(int(key.split(".")[1]) for key in p if key.startswith("blocks."))
    for layer in range(depth):
        b = {
            key.removeprefix(f"blocks.{layer}."): value
            for key, value in p.items()
            if key.startswith(f"blocks.{layer}.")
        }
        y = layer_norm(x, b["norm1.weight"], b["norm1.bias"])
        query, key, value = np.split(y @ b["attn.qkv.weight"].T + b["attn.qkv.bias"], 3, axis=1)
        heads = []
        dim = query.shape[1] // HEADS
        for head in range(HEADS):
            part = slice(head * dim, (head + 1) * dim)
            logits = query[:, part] @ key[:, part].T / math.sqrt(dim)
            attention = np.exp(logits - logits.max(axis=1, keepdims=True))
            attention /= attention.sum(axis=1, keepdims=True)
            heads.append(attention @ value[:, part])
        y = np.concatenate(heads, axis=1) @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        x = x + y * b.get("ls1.gamma", 1.0)
        y = layer_norm(x, b["norm2.weight"], b["norm2.bias"])
        y = gelu(y @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"])
        y = y @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
        x = x + y * b.get("ls2.gamma", 1.0)
    last = layer_norm(x, p["norm.weight"], p["norm.bias"])
    facets = {"query": query, "key": key, "value": value, "token": last}
    return {k: v[1:].T.reshape(-1, height, width) for k, v in facets.items()}


def lively_vit(name):
    """A random model in which no parameter is zero or one, so that each of them matters."""
    torch.manual_seed(0)
    vit = build_vit(get_backbone(name))
    with torch.no_grad():
        for key, parameter in vit.named_parameters():
            noise = torch.randn(parameter.shape)
            if "norm" in key and key.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif key.endswith("gamma"):
                parameter.copy_(0.5 + 0.2 * noise)
            elif "pos_embed" in key or "token" in key:
                parameter.copy_(0.5 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return vit


@pytest.fixture(scope="module")
def vits():
    return {name: lively_vit(name) for name in ("dino_vits16", "dinov2_vits14")}


@pytest.mark.parametrize("grid", [(5, 8), (9, 4)])
@pytest.mark.parametrize("name", ["dino_vits16", "dinov2_vits14"])
def test_all_facets_equal_the_plain_forward_pass(vits, name, grid):
    backbone = get_backbone(name)
    patch = backbone.patch
    rng = np.random.default_rng(0)
    image = rng.normal(size=(3, grid[0] * patch, grid[1] * patch)).astype(np.float32)
    expected = plain_vit(vits[name].state_dict(), image.astype(np.float64), patch, *grid)
    tensor = torch.from_numpy(image)[None]
    together = FeatureExtractor(backbone, vits[name]).facets(tensor, FACETS)
    assert set(together) == set(FACETS)
    for facet in FACETS:
        extractor = FeatureExtractor(backbone, vits[name], facet, center=False)
        ours = extractor(tensor)
        assert ours.shape == (1, 384, *grid)
        assert ours.dtype == torch.float32
        scale = np.abs(expected[facet]).max()
        assert np.abs(ours[0].numpy() - expected[facet]).max() < 1e-4 * scale, facet
        assert torch.allclose(together[facet], ours, atol=1e-5 * scale)
    assert np.abs(expected["query"] - expected["key"]).max() > 0.1


def test_default_facet_is_the_key(vits):
    extractor = FeatureExtractor(get_backbone("dino_vits16"), vits["dino_vits16"])
    images = torch.randn(1, 3, 32, 48)
    assert torch.equal(extractor(images), extractor.facets(images, ["key"])["key"])


@pytest.mark.parametrize(("name", "default"), [("dino_vits16", False), ("dinov2_vits14", True)])
def test_centring(vits, name, default):
    backbone = get_backbone(name)
    images = torch.randn(2, 3, 2 * backbone.patch, 3 * backbone.patch)
    raw = FeatureExtractor(backbone, vits[name], center=False)(images)
    centred = FeatureExtractor(backbone, vits[name], center=True)(images)
    assert raw.mean(dim=(2, 3)).abs().max() > 0.1
    assert centred.mean(dim=(2, 3)).abs().max() < 1e-5
    assert torch.allclose(raw - raw.mean(dim=(2, 3), keepdim=True), centred)
    by_default = FeatureExtractor(backbone, vits[name])(images)
    assert torch.equal(by_default, centred if default else raw)


def test_images_of_a_batch_do_not_meet(vits):
    extractor = FeatureExtractor(get_backbone("dinov2_vits14"), vits["dinov2_vits14"])
    images = torch.randn(2, 3, 28, 42)
    both = extractor(images)
    for index in range(2):
        assert torch.allclose(both[index], extractor(images[index : index + 1])[0], atol=1e-4)


def test_sides_must_be_whole_patches(vits):
    extractor = FeatureExtractor(get_backbone("dino_vits16"), vits["dino_vits16"])
    with pytest.raises(ValueError, match=r"\(32, 40\).* 16"):
        extractor(torch.zeros(1, 3, 32, 40))


def test_frozen_and_without_gradients(vits):
    extractor = FeatureExtractor(get_backbone("dino_vits16"), vits["dino_vits16"]).train()
    assert not any(p.requires_grad for p in extractor.parameters())
    assert not extractor(torch.randn(1, 3, 32, 32)).requires_grad


def test_unknown_facet(vits):
    with pytest.raises(UserError, match=r"'keys'.*query, key, value"):
        FeatureExtractor(get_backbone("dino_vits16"), vits["dino_vits16"], "keys")


def test_normalise_by_hand(vits):
    extractor = FeatureExtractor(get_backbone("dino_vits16"), vits["dino_vits16"])
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    tensor = extractor.normalise(torch.from_numpy(pixels)[None])
    assert tensor.shape == (1, 3, 50, 70)
    assert tensor.dtype == torch.float32
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    expected = (pixels / 255 - mean) / std
    assert np.allclose(tensor[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def pictures(count, height=28, width=42):
    return list(np.random.default_rng(5).integers(0, 256, (count, height, width, 3), np.uint8))


def test_features_of_bytes_do_not_depend_on_their_company(vits):
    extractor = FeatureExtractor(get_backbone("dinov2_vits14"), vits["dinov2_vits14"])
    images = pictures(3)
    together = extractor.features(images)
    assert len(together) == 3
    for image, features in zip(images, together, strict=True):
        assert (features.shape, features.dtype) == ((384, 2, 3), torch.float32)
        assert torch.equal(features, extractor.features([image])[0])
        assert torch.equal(
            features, extractor(extractor.normalise(torch.from_numpy(image)[None]))[0]
        )


def test_bf16_changes_features_a_little(vits):
    backbone = get_backbone("dinov2_vits14")
    exact = FeatureExtractor(backbone, vits["dinov2_vits14"], center=False)
    rough = FeatureExtractor(backbone, vits["dinov2_vits14"], center=False, precision="bf16")
    for image in pictures(2):
        (expected,), (found,) = exact.features([image]), rough.features([image])
        assert found.dtype == torch.float32
        assert torch.equal(found, found.bfloat16().float())  # made by a product in bfloat16
        difference = (found - expected).abs().max() / expected.abs().max()
        assert 1e-4 < difference < 0.1


def test_unknown_precision(vits):
    with pytest.raises(UserError, match=r"'fp16'.*fp32, bf16"):
        FeatureExtractor(get_backbone("dino_vits16"), vits["dino_vits16"], precision="fp16")


def test_compiled_once_a_shape_and_in_every_process(vits, monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append([tuple(t.shape) for t in inputs if isinstance(t, torch.Tensor)])
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, **options: real(model, backend=backend, **options)
    )
    plain = FeatureExtractor(get_backbone("dinov2_vits14"), vits["dinov2_vits14"])
    compiled = FeatureExtractor(get_backbone("dinov2_vits14"), vits["dinov2_vits14"], compiled=True)
    images = pictures(3)
    for image in images:
        (expected,), (found,) = plain.features([image]), compiled.features([image])
        assert torch.allclose(found, expected, atol=1e-4)
    count = len(graphs)
    assert count >= 1
    assert any((1, 3, 28, 42) in shapes for shapes in graphs)
    compiled.features(images)
    assert len(graphs) == count  # nothing was compiled again

    travelled = pickle.loads(pickle.dumps(compiled))
    torch._dynamo.reset()
    assert torch.allclose(travelled.features(images[:1])[0], plain.features(images[:1])[0])
    assert len(graphs) > count


@pytest.mark.slow
def test_compiled_by_inductor(vits):
    torch._dynamo.reset()
    backbone = get_backbone("dinov2_vits14")
    plain = FeatureExtractor(backbone, vits["dinov2_vits14"])
    compiled = FeatureExtractor(backbone, vits["dinov2_vits14"], compiled=True)
    image = pictures(1)
    expected = plain.features(image)[0]
    assert (compiled.features(image)[0] - expected).abs().max() < 1e-3 * expected.abs().max()


def test_a_device_that_is_not_there():
    with pytest.raises(UserError, match="'cuda:99'"):
        FeatureExtractor.from_name("dino_vits16", "/no/weights", device="cuda:99")
    with pytest.raises(UserError, match="'gpu'"):
        FeatureExtractor.from_name("dino_vits16", "/no/weights", device="gpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.01), ("bf16", 0.1)])
@pytest.mark.parametrize("compiled", [False, True])
def test_cuda_gives_the_features_of_the_cpu(vits, precision, tolerance, compiled):
    backbone = get_backbone("dinov2_vits14")
    vit = vits["dinov2_vits14"]
    images = pictures(4)
    expected = FeatureExtractor(backbone, vit).features(images)
    extractor = FeatureExtractor(
        backbone, copy.deepcopy(vit), precision=precision, compiled=compiled
    ).to("cuda")
    waits = [extractor.start(images), extractor.start(images[:2])]  # two in flight
    for wait, count in zip(waits, (4, 2), strict=True):
        found = wait()
        assert len(found) == count
        for ours, theirs in zip(found, expected, strict=False):
            assert (ours.device.type, ours.dtype) == ("cpu", torch.float32)
            assert (ours - theirs).abs().max() < tolerance * theirs.abs().max()


@pytest.mark.parametrize(("side", "height", "width"), [(14, 5, 8), (14, 20, 14), (37, 34, 60)])
def test_position_embedding_as_dino(side, height, width):
    torch.manual_seed(1)
    embedding = torch.randn(1, side * side, 7)
    ours = resample_position_embedding(embedding, height, width)
    assert ours.shape == (1, height * width, 7)
    by_hand = resample_by_hand(embedding[0].double().numpy(), height, width)
    assert np.abs(ours[0].numpy() - by_hand).max() < 2e-4
    # the easy mistakes give another map
    square = embedding.reshape(1, side, side, 7).permute(0, 3, 1, 2)
    for antialias in (False, True):
        sized = F.interpolate(square, size=(height, width), mode="bicubic", antialias=antialias)
        assert (sized.flatten(2).transpose(1, 2) - ours).abs().max() > 0.01
    turned = resample_position_embedding(embedding, width, height)
    assert height == width or not torch.allclose(
        turned.reshape(width, height, 7).transpose(0, 1).reshape(-1, 7), ours[0], atol=1e-2
    )


@pytest.mark.parametrize(("side", "height", "width"), [(14, 5, 8), (14, 20, 14), (16, 34, 60)])
def test_position_embedding_as_mae(side, height, width):
    torch.manual_seed(1)
    embedding = torch.randn(1, side * side, 7)
    ours = resample_position_embedding(embedding, height, width, "size")
    by_hand = resample_by_hand(embedding[0].double().numpy(), height, width, added=0)
    assert np.abs(ours[0].numpy() - by_hand).max() < 2e-4


@pytest.mark.parametrize(("height", "width"), [(5, 8), (60, 34)])
def test_position_embedding_as_dinov2_with_registers(height, width):
    """Pillow's bicubic is the antialiased one."""
    torch.manual_seed(1)
    embedding = torch.randn(1, 37 * 37, 3)
    ours = resample_position_embedding(embedding, height, width, "antialias")
    for channel in range(3):
        plane = Image.fromarray(embedding[0, :, channel].reshape(37, 37).numpy())
        theirs = np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC))
        assert np.abs(ours[0, :, channel].reshape(height, width).numpy() - theirs).max() < 1e-4


def test_native_grid_is_left_alone():
    embedding = torch.randn(1, 49, 5)
    assert torch.equal(resample_position_embedding(embedding, 7, 7), embedding)
    assert resample_position_embedding(embedding, 7, 8).shape == (1, 56, 5)


def test_every_grid_size_comes_out_as_asked():
    """Sampling by factors can miss a size by one; the added 0.1 is there against it."""
    for side in (14, 28, 37):
        embedding = torch.zeros(1, side * side, 1)
        for size in range(2, 121):
            resampled = resample_position_embedding(embedding, size, 122 - size)
            assert resampled.shape[1] == size * (122 - size)


def test_load_weights_errors():
    vit = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    good = {key: torch.randn_like(value) for key, value in vit.state_dict().items()}
    load_weights(vit, {**good, "mask_token": torch.zeros(1, 2)}, "good")
    assert torch.equal(vit[0].weight, good["0.weight"])

    def problem(state):
        with pytest.raises(WeightsError) as caught:
            load_weights(vit, state, "file.pth for x")
        return str(caught.value)

    start = "file.pth for x: these weights do not fit: "
    missing = {key: value for key, value in good.items() if key != "1.bias"}
    assert problem(missing) == start + "1.bias is missing"
    assert problem({**good, "head.bias": good["1.bias"]}) == start + "head.bias is unknown"
    assert problem({**good, "0.bias": torch.zeros(4)}) == start + "0.bias is (4,), not (3,)"
    assert problem({}).endswith(
        "0.weight is missing; 0.bias is missing; 1.weight is missing and 1 more"
    )
    mixed = {"0.weight": torch.zeros(3, 3), "0.bias": good["0.bias"], "a": good["1.bias"]}
    assert problem(mixed) == start + (
        "1.weight is missing; 1.bias is missing; a is unknown; 0.weight is (3, 3), not (3, 2)"
    )
    # nothing was loaded by half
    assert torch.equal(vit[0].weight, good["0.weight"])


def test_from_name_with_a_local_file(vits, tmp_path):
    state = dict(vits["dinov2_vits14"].state_dict())
    state["mask_token"] = torch.zeros(1, 384)  # as in the official file
    torch.save(state, tmp_path / "w.pth")
    extractor = FeatureExtractor.from_name("dinov2_vits14", tmp_path / "w.pth", "value", False)
    assert extractor.facet == "value"
    assert extractor.center is False
    assert len(extractor.weights_sha256) == 64
    assert extractor.device.type == "cpu"
    images = torch.randn(1, 3, 28, 42)
    expected = FeatureExtractor(
        get_backbone("dinov2_vits14"), vits["dinov2_vits14"], "value", False
    )(images)
    assert torch.equal(extractor(images), expected)


def test_from_name_with_the_wrong_file(vits, tmp_path):
    torch.save(vits["dino_vits16"].state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth.*dinov2_vits14"):
        FeatureExtractor.from_name("dinov2_vits14", tmp_path / "w.pth")
