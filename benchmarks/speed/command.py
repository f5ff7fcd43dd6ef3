"""The command ``tools/benchmark.py``: its options, and what it writes."""

from __future__ import annotations

import importlib
from pathlib import Path

from benchmarks.report import write_blocks
from benchmarks.speed import BENCHMARKS
from promerge_d2.cli.parser import ArgumentParser
from promerge_d2.features import BACKBONES
from promerge_d2.features.weights import OFFLINE_BACKBONE
from promerge_d2.utils.errors import EXIT_OK, UserError
from promerge_d2.utils.files import check_writable, write_json


def main() -> int:
    """Parse, measure, write."""
    parser = ArgumentParser(
        description="Measure the labeler beside the released way and beside normalised cuts."
    )
    which = parser.add_mutually_exclusive_group()
    for name, text in BENCHMARKS.items():
        which.add_argument(
            f"--{name}",
            dest="benchmark",
            action="store_const",
            const=name,
            default="labelers",
            help=text,
        )
    parser.add_argument("--json", type=Path, help="every figure under its name")
    parser.add_argument(
        "--markdown", type=Path, help="tables; in a file that has a block of them, it is replaced"
    )
    parser.add_argument("--plot", type=Path, help="picture (.png or .svg), of the labelers only")
    parser.add_argument("--images", help="folder, 'glob' or .txt list (the sample photographs)")
    parser.add_argument("--count", type=int, default=10, help="images, spread over the list (10)")
    parser.add_argument("--backbone", default=OFFLINE_BACKBONE, help=", ".join(BACKBONES))
    parser.add_argument("--weights", help="local weights file instead of the official one")
    parser.add_argument(
        "--random-weights", action="store_true", help="the network's speed without its weights"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (cpu)")
    parser.add_argument("--full", action="store_true", help="sweep grids, prompts, masks, workers")
    parser.add_argument("--labels", type=Path, help="COCO JSON of --images, for --training")
    parser.add_argument(
        "--stream", type=int, help="images through the pipeline, for --pipeline (60)"
    )
    parser.add_argument(
        "--rate", type=float, help="images/s of the network in --pipeline (as many as it is given)"
    )
    parser.add_argument(
        "--features",
        type=Path,
        help="folder of NAME.npz, for --pipeline: 'key' (C, H, W) of each photograph (computed)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a labeler setting, such as grid=34; can be repeated",
    )
    args = parser.parse_args()
    for file in filter(None, (args.json, args.markdown, args.plot)):
        check_writable(file)
    if args.labels and args.benchmark != "training":
        raise UserError("--labels is for --training")
    for option in ("stream", "rate", "features"):
        if getattr(args, option) is not None and args.benchmark != "pipeline":
            raise UserError(f"--{option} is for --pipeline")
    if args.plot and args.benchmark != "labelers":
        raise UserError(f"--plot is for the labelers, not for --{args.benchmark}")
    results = importlib.import_module(f"benchmarks.speed.{args.benchmark}").measure(args)
    text = results.markdown()
    if args.json:
        write_json(args.json, dict(sorted(results.figures.items())), indent=1)
    if args.markdown:
        write_blocks(args.markdown, {"benchmark": text})
    print(text)
    return EXIT_OK
