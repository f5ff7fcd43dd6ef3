"""Official checkpoints, each family's own layout, as state dicts under timm's names.

timm has filters for some of them, but they also resample whatever does not fit, and so would load
another model's file without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

_NAMED = 3  # keys of each kind, in messages

# what training scripts save beside optimisers: DINO and iBOT; MoCo v3 and iBOT; MAE and BEiT
_NETWORKS = ("teacher", "student", "state_dict", "model")
_PREFIXES = ("module.", "backbone.", "base_encoder.")
# mask tokens, BEiT's and MAE's decoders, and buffers that follow from the network's shape
_UNUSED = re.compile(
    r"mask_token|masked_embed|lm_head\..*|decoder_.*|local_cls_norm\..*"
    r"|.*\.(relative_position_index|bias_mask)"
)
_NAMES = {  # DINOv2 and DINOv3: timm
    "register_tokens": "reg_token",
    "storage_tokens": "reg_token",
    "rope_embed.": "rope.",
    ".mlp.w12.": ".mlp.fc1.",
    ".mlp.w1.": ".mlp.fc1_g.",
    ".mlp.w2.": ".mlp.fc1_x.",
    ".mlp.w3.": ".mlp.fc2.",
}


def find_network(checkpoint: object) -> dict[str, torch.Tensor] | None:
    """Find the backbone in what a training script saved.

    Args:
        checkpoint: what ``torch.load`` gives: a state dict, or a dict that holds one under
            ``teacher``, ``student``, ``state_dict`` or ``model``.

    Returns:
        Name to tensor, without prefixes of wrappers and projection heads; None if there is none.
    """
    if not isinstance(checkpoint, dict):
        return None
    found = [key for key in _NETWORKS if isinstance(checkpoint.get(key), dict)]
    state = checkpoint[found[0]] if found else checkpoint
    if not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()):
        return None
    for prefix in _PREFIXES:
        inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        state = inside or state
    if found and found[0] != "model":  # a "model" with a head is a classifier, to be refused
        state = {key: value for key, value in state.items() if not key.startswith("head.")}
    return state


def to_timm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename what timm names otherwise, and leave out what inference has no use for.

    Args:
        state: official names to tensors; timm's names stay as they are.

    Returns:
        timm's names to tensors. Names that belong to no known layout are kept, to be refused.
    """
    named: dict[str, torch.Tensor] = {}
    dinov3 = "storage_tokens" in state
    for key, value in state.items():
        if _UNUSED.fullmatch(key):
            continue
        for theirs, ours in _NAMES.items():
            key = key.replace(theirs, ours)
        if not dinov3:
            named[key] = value
        elif key.endswith(".qkv.bias"):  # that of the keys is masked: always zero
            query, _, of_value = value.chunk(3)
            named[key.replace("qkv.bias", "q_bias")] = query
            named[key.replace("qkv.bias", "v_bias")] = of_value
        else:
            named[re.sub(r"\.ls(\d)\.gamma$", r".gamma_\1", key)] = value
    if {"register_tokens", "cls_token", "pos_embed"} <= state.keys():
        # timm's has positions for patches only: the class token's is constant, registers have none
        named["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        named["pos_embed"] = state["pos_embed"][:, 1:]
    return named


def describe_misfits(
    missing: Iterable[str], unknown: Iterable[str], shapes: Iterable[tuple]
) -> str:
    """Return which keys of a state dict do not fit, the first of each kind; "" if all do.

    Args:
        missing: keys that the network has alone.
        unknown: keys that the file has alone.
        shapes: key, the file's shape and the network's, where they differ.
    """
    kinds = (
        [f"{key} is missing" for key in missing],
        [f"{key} is unknown" for key in unknown],
        [f"{key} is {tuple(has)}, not {tuple(wants)}" for key, has, wants in shapes],
    )
    return "; ".join(
        "; ".join(kind[:_NAMED]) + (f" and {len(kind) - _NAMED} more" * (len(kind) > _NAMED))
        for kind in kinds
        if kind
    )
