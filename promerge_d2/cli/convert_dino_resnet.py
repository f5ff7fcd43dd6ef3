"""Fetch DINO's published ResNet-50 and write it in detectron2's names.

DINO's network is torchvision's: RGB in ImageNet's normalisation, stride in the 3x3 convolution
(``MODEL.RESNETS.STRIDE_IN_1X1: False``).
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from promerge_d2.cli.parser import ArgumentParser
from promerge_d2.features import get_backbone
from promerge_d2.features.extractor import build_vit, load_weights
from promerge_d2.features.weights import check_hash, fetch, read_state_dict
from promerge_d2.utils.errors import EXIT_OK, UserError
from promerge_d2.utils.files import atomic_path, check_writable

NAMES = (  # torchvision's, detectron2's
    (r"^(conv|bn)1", r"stem.\g<1>1"),
    (r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}"),
    (r"downsample\.0", "shortcut"),
    (r"downsample\.1", "shortcut.norm"),
    (r"bn(\d)", r"conv\1.norm"),
)


def convert_resnet(state: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """Rename torchvision's ResNet-50 to ``build_resnet_fpn_backbone``'s names.

    Args:
        state: torchvision's names to tensors; a classifier is dropped.
        source: of the weights, for the message.

    Returns:
        detectron2's names to the same tensors.

    Raises:
        UserError: keys that are no ResNet-50's, or that are missing, are named.
    """
    network = build_vit(get_backbone("dino_resnet50"))
    load_weights(network, {k: v for k, v in state.items() if not k.startswith("fc.")}, source)
    renamed = {}
    for key, tensor in network.state_dict().items():
        for theirs, ours in NAMES:
            key = re.sub(theirs, ours, key)
        renamed[f"backbone.bottom_up.{key}"] = tensor
    return renamed


def make_parser() -> ArgumentParser:
    """Describe the command line."""
    backbone = get_backbone("dino_resnet50")
    parser = ArgumentParser(
        prog="promerge convert-dino-resnet", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--weights", type=Path, help=f"local copy of {backbone.url}")
    parser.add_argument(
        "--output",
        default="weights/dino_resnet50_d2.pkl",
        help="file to write (weights/dino_resnet50_d2.pkl, where the configs look)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch (or read --weights), convert, write."""
    args = make_parser().parse_args(argv)
    backbone = get_backbone("dino_resnet50")
    check_writable(args.output)
    if args.weights is None:
        assert backbone.url is not None
        file = fetch(
            backbone.url,
            f"DINO's ResNet-50 ({backbone.training}; {backbone.licence})",
            "or pass a copy of it with --weights FILE",
        )
    elif args.weights.is_file():
        file = args.weights
    else:
        raise UserError(f"the weights file {args.weights} does not exist")
    sha256 = check_hash(file, None)
    state = convert_resnet(read_state_dict(file), str(file))
    model = {name: tensor.numpy() for name, tensor in state.items()}
    with atomic_path(args.output) as part, open(part, "wb") as stream:
        pickle.dump(
            {"model": model, "__author__": "DINO ResNet-50", "source_sha256": sha256}, stream
        )
    print(f"{len(model)} tensors of {file} (SHA-256 {sha256}): {args.output}")
    return EXIT_OK
