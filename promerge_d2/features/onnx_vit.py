"""Read the ViT inside an ONNX export of Hugging Face's DINOv2 as timm's state dict.

The export keeps names of vectors but not of matrices: those are constants of the ``MatMul`` nodes,
whose node names tell the layer. The two position embeddings were folded into constants.
"""

from __future__ import annotations

from pathlib import Path

import torch

from promerge_d2.utils.errors import UserError

_PREFIX = "backbone."
_NAMES = {  # Hugging Face's: timm's
    _PREFIX: "",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "embeddings.": "",
    "encoder.layer.": "blocks.",
    "attention.output.dense.": "attn.proj.",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "layernorm.": "norm.",
}


def read_onnx_vit(file: Path) -> dict[str, torch.Tensor]:
    """Read the transformer's weights.

    Args:
        file: the ``.onnx`` file.

    Returns:
        A state dict under timm's names, float32, without what is not the ViT's (a decoder).

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
    for node in graph.node:
        if node.op_type == "MatMul":
            module = node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
            found = [tensors[name].T for name in node.input if name in tensors]
            tensors |= {f"{module}.weight": matrix for matrix in found}
    try:
        return _to_timm(tensors)
    except (KeyError, StopIteration) as error:
        raise UserError(f"{file} is not an export of a DINOv2 ViT: {error} is missing") from error


def _to_timm(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state = {}
    for name, tensor in tensors.items():
        if name.startswith(_PREFIX):
            for theirs, ours in _NAMES.items():
                name = name.replace(theirs, ours)
            state[name] = tensor.contiguous()
    for query in [name for name in state if ".attention.query." in name]:
        parts = [state.pop(query.replace("query", part)) for part in ("query", "key", "value")]
        state[query.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
    folded = [t for name, t in tensors.items() if not name.startswith(_PREFIX) and t.ndim == 3]
    positions = [next(t for t in folded if (t.shape[1] == 1) == of_class) for of_class in (1, 0)]
    return {**state, "pos_embed": torch.cat(positions, dim=1)}
