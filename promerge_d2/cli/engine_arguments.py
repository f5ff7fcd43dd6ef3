"""The command-line options that make a label engine, for every tool that takes them."""

from __future__ import annotations

import argparse
import logging
import os

from promerge_d2.pseudo_labels.local_engine import (
    IMAGES_A_WORKER,
    Engine,
    LocalEngine,
    choose_workers,
)
from promerge_d2.pseudo_labels.shards import shard_from
from promerge_d2.utils.errors import UserError

logger = logging.getLogger(__name__)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``engine_from`` and ``shard_of`` read."""
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
        "--num-shards", type=int, help="processes that share the work (default: of torchrun, SLURM)"
    )
    parser.add_argument("--shard-id", type=int, help="which of them this is, from 0")


def check_engine_arguments(args: argparse.Namespace) -> None:
    """Refuse impossible numbers.

    Raises:
        UserError: with the option's name.
    """
    if args.workers is not None and args.workers < 0:
        raise UserError(f"--workers is {args.workers}; it takes 0 or more")
    if args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}; it takes 1 or more")


def engine_from(args: argparse.Namespace, images: int, device: str) -> Engine:
    """The engine that the options ask for.

    Args:
        args: of a parser with ``add_engine_arguments``, checked.
        images: how many this process has to label.
        device: of the network; a Ray cluster's is elsewhere, and the labeler here stays on a CPU.

    Raises:
        UserError: Ray is asked for and not installed.
    """
    if args.engine == "ray":
        from promerge_d2.pseudo_labels.ray_engine import RayEngine  # an extra

        return RayEngine(args.ray_address, args.workers, args.batch_size, device)
    workers = choose_workers(images) if args.workers is None else args.workers
    return LocalEngine(workers, args.batch_size)


def shard_of(args: argparse.Namespace) -> tuple[int, int]:
    """The shard and the number of shards, as the options or the environment say.

    Raises:
        UserError: one option without the other, or a shard that there is not.
    """
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
