import dataclasses
import pickle

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from torch import nn
from torchvision.models import resnet50

from promerge_d2 import add_promerge_config
from promerge_d2.cli.convert_dino_resnet import convert_resnet
from promerge_d2.features import BACKBONES
from promerge_d2.utils.errors import UserError
from tests.helpers import ROOT, run_tool


@pytest.fixture(scope="module")
def network():
    """torchvision's ResNet-50 with random weights and statistics, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = resnet50()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.data.uniform_(0.5, 1.0)
                module.bias.data.normal_(std=0.1)
    return model.eval()


class Holder(nn.Module):
    """A detector's place for a backbone."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


def detectron2_backbone():
    cfg = get_cfg()
    add_promerge_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / "promerge_cascade.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = "BN"
    return Holder(build_backbone(cfg)).eval()


def load(file):
    """Load through detectron2's checkpointer; the model, and what did not fit."""
    model = detectron2_backbone()
    wrong = []
    checkpointer = DetectionCheckpointer(model)
    checkpointer._log_incompatible_keys = wrong.append
    checkpointer.load(str(file))
    return model, wrong


def check_loaded(network, file):
    model, wrong = load(file)
    # what is missing is the pyramid alone, and nothing is left over
    assert len(wrong) == 1
    for report in wrong:
        assert not report.unexpected_keys
        assert not report.incorrect_shapes
        assert all(key.startswith("backbone.fpn_") for key in report.missing_keys)
    pixels = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model.backbone.bottom_up(pixels)
        x = network.maxpool(network.relu(network.bn1(network.conv1(pixels))))
        for stage in range(1, 5):
            x = getattr(network, f"layer{stage}")(x)
            assert found[f"res{stage + 1}"].shape == x.shape
            assert torch.allclose(found[f"res{stage + 1}"], x, rtol=1e-4, atol=1e-4)
    assert x.shape == (1, 2048, 3, 4)
    assert x.abs().max() > 0.1


def test_every_key_finds_its_place(network):
    own = {
        key for key in detectron2_backbone().state_dict() if key.startswith("backbone.bottom_up.")
    }
    converted = convert_resnet(network.state_dict(), "a.pth")
    assert set(converted) == own
    assert len(converted) == 318  # 53 convolutions, 53 norms of five tensors
    for theirs, ours in (
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.bias", "stem.conv1.norm.bias"),
        ("layer2.0.conv2.weight", "res3.0.conv2.weight"),
        ("layer4.0.downsample.0.weight", "res5.0.shortcut.weight"),
        ("layer4.0.downsample.1.running_var", "res5.0.shortcut.norm.running_var"),
    ):
        moved = converted[f"backbone.bottom_up.{ours}"]
        assert torch.equal(moved, network.state_dict()[theirs])


def test_the_tool_writes_what_detectron2_computes_the_same_with(
    network, tmp_path, monkeypatch, capsys
):
    source, target = tmp_path / "dino.pth", tmp_path / "made" / "dino_resnet50_d2.pkl"
    torch.save(network.state_dict(), source)
    code = run_tool(monkeypatch, "convert_dino_resnet.py", "--weights", source, "--output", target)
    assert code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"318 tensors of {source} (SHA-256 ")
    assert out.rstrip().endswith(str(target))
    with open(target, "rb") as file:
        assert len(pickle.load(file)["model"]) == 318
    check_loaded(network, target)


def test_wrong_and_missing_keys_are_named(network):
    state = network.state_dict()
    del state["layer4.2.conv3.weight"]
    state["layer9.0.conv1.weight"] = state["conv1.weight"]
    state["layer2.4.conv1.weight"] = state["conv1.weight"]  # ResNet-101 has such, 50 has not
    with pytest.raises(UserError) as caught:
        convert_resnet(state, "a.pth")
    assert str(caught.value) == (
        "a.pth: these weights do not fit: layer4.2.conv3.weight is missing; "
        "layer9.0.conv1.weight is unknown; layer2.4.conv1.weight is unknown"
    )


def test_a_missing_statistic_is_named(network):
    state = network.state_dict()
    for key in list(state):
        if key.startswith("layer1.0.bn1.running"):
            del state[key]
    with pytest.raises(UserError, match=r"layer1\.0\.bn1\.running_mean is missing"):
        convert_resnet(state, "a.pth")


def test_the_tool_refuses_other_weights(tmp_path, monkeypatch, capsys):
    source = tmp_path / "vit.pth"
    torch.save({f"blocks.{i}.w": torch.zeros(1) for i in range(5)}, source)
    target = tmp_path / "out.pkl"
    code = run_tool(monkeypatch, "convert_dino_resnet.py", "--weights", source, "--output", target)
    assert code == 3
    err = capsys.readouterr().err
    assert "vit.pth: these weights do not fit: conv1.weight is missing" in err
    assert "blocks.0.w is unknown; blocks.1.w is unknown; blocks.2.w is unknown and 2 more" in err
    assert not target.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "gone.pth"], "gone.pth"),
        (["--output", "."], "write .:"),
        (["--wights", "x"], "unrecognized arguments: --wights x"),
    ],
)
def test_bad_requests(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run_tool(monkeypatch, "convert_dino_resnet.py", *arguments) == 3
    assert message in capsys.readouterr().err


def test_a_closed_network_says_what_to_do(tmp_path, monkeypatch, capsys):
    url = "http://127.0.0.1:9/dino_resnet50_pretrain.pth"  # nobody listens there
    entry = dataclasses.replace(BACKBONES["dino_resnet50"], url=url)
    monkeypatch.setitem(BACKBONES, entry.name, entry)
    monkeypatch.setenv("PROMERGE_D2_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    target = tmp_path / "out.pkl"
    assert run_tool(monkeypatch, "convert_dino_resnet.py", "--output", target) == 3
    err = capsys.readouterr().err
    assert (
        "cannot fetch DINO's ResNet-50 (DINO: self-supervised on ImageNet-1K; Apache-2.0) "
        f"from {url}" in err
    )
    assert (
        f"Put the file at {tmp_path / 'cache' / 'dino_resnet50_pretrain.pth'}, or pass a copy "
        in err
    )
    assert "--weights FILE" in err
    assert not target.exists()


def test_a_file_in_the_cache_needs_no_network(network, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PROMERGE_D2_CACHE", str(tmp_path))
    torch.save(network.state_dict(), tmp_path / "dino_resnet50_pretrain.pth")
    target = tmp_path / "out.pkl"
    assert run_tool(monkeypatch, "convert_dino_resnet.py", "--output", target) == 0
    assert target.is_file()
    assert "318 tensors" in capsys.readouterr().out
