"""Read the ViT inside an ONNX export of Hugging Face's DINOv2 as timm's state dict.

The export keeps names of vectors but not of matrices: those are constants of the ``MatMul`` nodes,
whose node names tell the layer. The two position embeddings were folded into constants.
"""

from __future__ import annotations

from pathlib import Path

import torch

from promerge_d2.utils.errors import UserError

_PREFIX = "backbone."
_VECTORS = {  # Hugging Face's name inside a layer: timm's name inside a block
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_QKV = ("query", "key", "value")


def read_onnx_vit(file: Path) -> dict[str, torch.Tensor]:
    """Read the transformer's weights.

    Args:
        file: the ``.onnx`` file.

    Returns:
        A state dict under timm's names, float32; whatever does not belong to the ViT (a decoder)
        is left out.

    Raises:
        UserError: the ``onnx`` package is missing, or the graph is not such an export.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx import numpy_helper
    except ModuleNotFoundError as error:
        raise UserError(f"reading {file} needs the onnx package: pip install onnx") from error

    try:
        graph = onnx.load(file).graph
    except DecodeError as error:
        raise UserError(f"{file} is no ONNX file: {error}") from error
    tensors = {
        init.name: torch.from_numpy(numpy_helper.to_array(init).copy())
        for init in graph.initializer
    }
    matrices = {
        node.name.removeprefix("/").removesuffix("/MatMul").replace("/", "."): tensors[name].T
        for node in graph.node
        if node.op_type == "MatMul"
        for name in node.input
        if name in tensors
    }
    try:
        return _to_timm(tensors, matrices)
    except (KeyError, StopIteration) as error:
        raise UserError(f"{file} is not an export of a DINOv2 ViT: {error} is missing") from error


def _to_timm(
    tensors: dict[str, torch.Tensor], matrices: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    cls_token = tensors[_PREFIX + "embeddings.cls_token"]
    patches = _PREFIX + "embeddings.patch_embeddings.projection"
    positions = [
        next(
            t
            for name, t in tensors.items()
            if not name.startswith(_PREFIX) and t.ndim == 3 and (t.shape[1] == 1) == is_class
        )
        for is_class in (True, False)
    ]
    state = {
        "cls_token": cls_token,
        "pos_embed": torch.cat(positions, dim=1),
        "patch_embed.proj.weight": tensors[patches + ".weight"],
        "patch_embed.proj.bias": tensors[patches + ".bias"],
        "norm.weight": tensors[_PREFIX + "layernorm.weight"],
        "norm.bias": tensors[_PREFIX + "layernorm.bias"],
    }
    layer = 0
    while f"{_PREFIX}encoder.layer.{layer}.norm1.weight" in tensors:
        source, target = f"{_PREFIX}encoder.layer.{layer}.", f"blocks.{layer}."
        for theirs, ours in _VECTORS.items():
            if theirs.endswith("lambda1"):
                state[target + ours] = tensors[source + theirs]
                continue
            state[f"{target}{ours}.bias"] = tensors[f"{source}{theirs}.bias"]
            is_matrix = not theirs.startswith("norm")
            weight = matrices[source + theirs] if is_matrix else tensors[f"{source}{theirs}.weight"]
            state[f"{target}{ours}.weight"] = weight.contiguous()
        attention = source + "attention.attention."
        state[target + "attn.qkv.weight"] = torch.cat([matrices[attention + n] for n in _QKV])
        state[target + "attn.qkv.bias"] = torch.cat([tensors[f"{attention}{n}.bias"] for n in _QKV])
        layer += 1
    return state
