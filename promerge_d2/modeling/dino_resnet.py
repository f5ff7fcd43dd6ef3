"""DINO's ResNet-50 in detectron2's names.

DINO's network is torchvision's: RGB in ImageNet's normalisation, stride in the 3x3 convolution
(``MODEL.RESNETS.STRIDE_IN_1X1: False``).
"""

from __future__ import annotations

import re

import torch

from promerge_d2.utils.errors import UserError

DINO_RESNET50_URL = (
    "https://dl.fbaipublicfiles.com/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth"
)
_BLOCKS = (3, 4, 6, 3)
_FC = ("fc.weight", "fc.bias")
_PREFIX = "backbone.bottom_up."


def convert_resnet(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename torchvision's ResNet-50 to ``build_resnet_fpn_backbone``'s names.

    The classifier is dropped; every other key finds its place.

    Args:
        state: torchvision's names to tensors.

    Returns:
        detectron2's names to the same tensors.

    Raises:
        UserError: keys that are no ResNet-50's, or that are missing, are named.
    """
    renamed, unknown = {}, []
    for key, tensor in state.items():
        if key in _FC:
            continue
        name = _rename(key)
        if name is None:
            unknown.append(key)
        else:
            renamed[name] = tensor
    missing = [name for name in _expected() if name not in renamed]
    if unknown or missing:
        raise UserError(
            "these weights are no torchvision ResNet-50: "
            + "; ".join(
                f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
                for what, keys in (("unknown keys", unknown), ("missing keys", missing))
                if keys
            )
        )
    return renamed


def _rename(key: str) -> str | None:
    if match := re.fullmatch(r"conv1\.(\w+)", key):
        return f"{_PREFIX}stem.conv1.{match[1]}"
    if match := re.fullmatch(r"bn1\.(\w+)", key):
        return f"{_PREFIX}stem.conv1.norm.{match[1]}"
    match = re.fullmatch(r"layer([1-4])\.(\d+)\.(conv|bn|downsample\.)([0-3])\.(\w+)", key)
    if not match:
        return None
    stage, block, kind, index, leaf = match.groups()
    if int(block) >= _BLOCKS[int(stage) - 1]:
        return None
    home = f"{_PREFIX}res{int(stage) + 1}.{block}."
    if kind == "downsample.":
        return f"{home}shortcut.{'norm.' if index == '1' else ''}{leaf}"
    return f"{home}conv{index}.{'norm.' if kind == 'bn' else ''}{leaf}"


def _expected() -> list[str]:
    """Every convolution and norm parameter of the backbone in detectron2's names."""
    layers = [f"{_PREFIX}stem.conv1"]
    for stage, blocks in enumerate(_BLOCKS, start=2):
        layers.append(f"{_PREFIX}res{stage}.0.shortcut")
        layers += [
            f"{_PREFIX}res{stage}.{block}.conv{i}" for block in range(blocks) for i in (1, 2, 3)
        ]
    norms = ("weight", "bias", "running_mean", "running_var")
    return [f"{layer}.weight" for layer in layers] + [
        f"{layer}.norm.{name}" for layer in layers for name in norms
    ]
