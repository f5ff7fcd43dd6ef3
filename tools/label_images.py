#!/usr/bin/env python
"""Pseudo-label images: a folder, a glob, a list, tars or one image to a COCO JSON.

Every finished image is kept in OUTPUT.parts: after a stop of any kind, the same command goes on.
Several processes share the work with --num-shards and --shard-id; see docs/scaling.md.

Exit code: 0 all images processed (an image without masks counts as processed), 1 not finished,
2 finished but some images failed (named), 3 refused.
"""

from __future__ import annotations

import argparse
import logging
import os

from promerge_d2.labeler.arguments import add_labeler_arguments, labeler_from
from promerge_d2.pseudo_labels import LocalEngine, choose_workers, label_images, list_images
from promerge_d2.pseudo_labels.merge import tell
from promerge_d2.pseudo_labels.pipeline import IMAGES_A_WORKER
from promerge_d2.pseudo_labels.shards import shard_from
from promerge_d2.utils.cli import EXIT_FAILURES, EXIT_OK, ArgumentParser, run_tool
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import check_writable

logger = logging.getLogger(__name__)


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
    parser.add_argument(
        "--workers",
        type=int,
        help="processes; 0 does all in this one; same masks (default: one a core, "
        f"but none with fewer than {IMAGES_A_WORKER} images each); with Ray, networks (default: "
        "one a GPU, or on all CPUs but one)",
    )
    parser.add_argument(
        "--engine",
        default="local",
        choices=("local", "ray"),
        help="where the work is done: processes of this machine, or a Ray cluster (local)",
    )
    parser.add_argument(
        "--ray-address", help="of the cluster, such as auto (default: start one on this machine)"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=8,
        help="images that go through a GPU at once; on a CPU they go one by one (8)",
    )
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the network; for long runs"
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="label those again that failed before"
    )
    parser.add_argument(
        "--num-shards", type=int, help="processes that share the work (default: of torchrun, SLURM)"
    )
    parser.add_argument("--shard-id", type=int, help="which of them this is, from 0")
    args = parser.parse_args()

    if args.workers is not None and args.workers < 0:
        raise UserError(f"--workers is {args.workers}; it takes 0 or more")
    if args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}; it takes 1 or more")
    shard, shards = _shard(args)
    images = list_images(args.input, args.image_root)
    check_writable(args.output)  # before the weights are fetched
    if args.engine == "ray":
        from promerge_d2.pseudo_labels.ray_engine import RayEngine  # an extra

        engine = RayEngine(args.ray_address, args.workers, args.batch_size, args.device)
        args.device = "cpu"  # here; the GPUs are elsewhere
    else:
        workers = args.workers
        if workers is None:
            workers = choose_workers(len(images.files) // shards)
        engine = LocalEngine(workers, args.batch_size)
        if args.device == "cuda":
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
    tell(summary, labeler.reasons)
    if shards > 1:
        print(f"when all shards are done: python tools/merge_labels.py {args.output}")
    return EXIT_FAILURES if summary.failures else EXIT_OK


def _shard(args: argparse.Namespace) -> tuple[int, int]:
    """The shard and the number of shards."""
    if (args.num_shards is None) != (args.shard_id is None):
        raise UserError("--num-shards and --shard-id go together")
    if args.num_shards is None:
        shard, shards, teller = shard_from(os.environ)
        if teller:
            logger.info("shard %d of %d, as %s says", shard, shards, teller)
        return shard, shards
    if not 0 <= args.shard_id < args.num_shards:
        raise UserError(
            f"--shard-id is {args.shard_id}; of {args.num_shards} shards it takes 0 to "
            f"{args.num_shards - 1}"
        )
    return args.shard_id, args.num_shards


if __name__ == "__main__":
    run_tool(main)
