#!/usr/bin/env python
"""Pseudo-label images: a folder, a glob, a list, tars or one image to a COCO JSON.

Every finished image is kept in OUTPUT.parts: after a stop of any kind, the same command goes on.
Several processes share the work with --num-shards and --shard-id; see docs/scaling.md.

Exit code: 0 all images processed (an image without masks counts as processed), 1 not finished,
2 finished but some images failed (named), 3 refused.
"""

from __future__ import annotations

import os

from promerge_d2.cli.engine_arguments import (
    add_engine_arguments,
    check_engine_arguments,
    engine_from,
    shard_of,
)
from promerge_d2.cli.labeler_arguments import add_labeler_arguments, labeler_from
from promerge_d2.cli.parser import ArgumentParser, run_tool
from promerge_d2.pseudo_labels import label_images, list_images, print_summary
from promerge_d2.utils.errors import EXIT_FAILURES, EXIT_OK
from promerge_d2.utils.files import check_writable


def main() -> int:
    """Parse, label, say what happened."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--input",
        required=True,
        help="folder, 'glob', .txt list (a path a line), COCO .json, .tar (a WebDataset shard) or "
        "one image; tars count as folders",
    )
    parser.add_argument(
        "--image-root",
        metavar="DIR",
        help="where the names in a .txt or .json start from (default: that file's folder)",
    )
    parser.add_argument("--output", required=True, help="COCO JSON to write")
    add_labeler_arguments(parser)
    parser.add_argument(
        "--overlays",
        nargs="?",
        const="",
        metavar="DIR",
        help="write a picture of each image labelled now, into OUTPUT's name + .overlays or DIR",
    )
    add_engine_arguments(parser)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the network; for long runs"
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="label those again that failed before"
    )
    args = parser.parse_args()

    check_engine_arguments(args)
    shard, shards = shard_of(args)
    images = list_images(args.input, args.image_root)
    check_writable(args.output)  # before the weights are fetched
    engine = engine_from(args, len(images.files) // shards, args.device)
    if args.engine == "ray":
        args.device = "cpu"  # here; the GPUs are elsewhere
    elif args.device == "cuda":
        args.device += f":{os.environ.get('LOCAL_RANK', 0)}"  # torchrun's, of this machine
    labeler = labeler_from(args, args.compile)
    overlays = args.overlays
    if overlays == "":
        overlays = args.output.removesuffix(".json") + ".overlays"
    summary = label_images(
        images,
        args.output,
        labeler,
        args.preset,
        overlays,
        engine,
        shard,
        shards,
        args.retry_failed,
    )

    where = args.output if shards == 1 else f"shard {shard} of {shards} of {args.output}"
    print(f"{summary.masks} masks on {summary.images} images: {where}")
    print_summary(summary, labeler.reasons)
    if shards > 1:
        print(f"when all shards are done: python tools/merge_labels.py {args.output}")
    return EXIT_FAILURES if summary.failures else EXIT_OK


if __name__ == "__main__":
    run_tool(main)
