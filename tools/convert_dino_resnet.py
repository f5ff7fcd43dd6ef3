#!/usr/bin/env python
"""Fetch DINO's published ResNet-50 and write it in detectron2's names."""

from __future__ import annotations

import pickle
from pathlib import Path

from promerge_d2.cli.parser import ArgumentParser, run_tool
from promerge_d2.features.weights import check_hash, fetch, read_state_dict
from promerge_d2.modeling.dino_resnet import DINO_RESNET50_URL, convert_resnet
from promerge_d2.utils.errors import EXIT_OK, UserError
from promerge_d2.utils.files import atomic_path, check_writable


def main() -> int:
    """Fetch (or read --weights), convert, write."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help=f"local copy of {DINO_RESNET50_URL}")
    parser.add_argument(
        "--output",
        default="weights/dino_resnet50_d2.pkl",
        help="file to write (weights/dino_resnet50_d2.pkl, where the configs look)",
    )
    args = parser.parse_args()
    check_writable(args.output)
    if args.weights is None:
        file = fetch(
            DINO_RESNET50_URL,
            "DINO's ResNet-50 (self-supervised on ImageNet-1K; Apache-2.0)",
            "or pass a copy of it with --weights FILE",
        )
    elif args.weights.is_file():
        file = args.weights
    else:
        raise UserError(f"the weights file {args.weights} does not exist")
    sha256 = check_hash(file, None)
    model = {name: t.numpy() for name, t in convert_resnet(read_state_dict(file)).items()}
    with atomic_path(args.output) as part, open(part, "wb") as stream:
        pickle.dump(
            {"model": model, "__author__": "DINO ResNet-50", "source_sha256": sha256}, stream
        )
    print(f"{len(model)} tensors of {file} (SHA-256 {sha256}): {args.output}")
    return EXIT_OK


if __name__ == "__main__":
    run_tool(main)
