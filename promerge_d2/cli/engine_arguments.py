"""The command-line options that make a label engine, for every tool that takes them."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping

from promerge_d2.cli.parser import ArgumentParser
from promerge_d2.pseudo_labels.local_engine import (
    IMAGES_A_WORKER,
    Engine,
    LocalEngine,
    choose_workers,
)
from promerge_d2.utils.errors import UserError

logger = logging.getLogger(__name__)


def add_engine_arguments(parser: ArgumentParser) -> None:
    """Add the options that ``engine_from`` and ``shard_of`` read."""
    speed, advanced = parser.group("speed"), parser.group("advanced")
    speed.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes; 0 does all in this one; same masks (default: one a core, "
        f"but none with fewer than {IMAGES_A_WORKER} images each); with Ray, networks (default: "
        "one a GPU, or on all CPUs but one)",
    )
    speed.add_argument(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="images that go through a GPU at once; on a CPU they go one by one (8)",
    )
    advanced.add_argument(
        "--num-shards",
        type=int,
        metavar="N",
        help="processes that share the work (default: of torchrun, SLURM)",
    )
    advanced.add_argument("--shard-id", type=int, metavar="I", help="which of them this is, from 0")
    advanced.add_argument(
        "--engine",
        default="local",
        choices=("local", "ray"),
        help="where the work is done: processes of this machine, or a Ray cluster (local)",
    )
    advanced.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="of the cluster, such as auto (default: start one on this machine)",
    )


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


def shard_from(environment: Mapping[str, str]) -> tuple[int, int, str]:
    """Read the shard and the number of shards.

    torchrun numbers its processes; SLURM the tasks of an array, and in each those of ``srun``.

    Args:
        environment: such as ``os.environ``.

    Returns:
        The shard from 0, the number of shards, and who says so; ``(0, 1, "")`` for one process.

    Raises:
        UserError: an array with gaps, whose tasks cannot be counted.

    Example:
        >>> shard_from({"RANK": "2", "WORLD_SIZE": "8"})
        (2, 8, 'torchrun')
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return int(environment["RANK"]), int(environment["WORLD_SIZE"]), "torchrun"
    shard, shards, teller = 0, 1, ""
    if "SLURM_ARRAY_TASK_ID" in environment:
        task, first, count, step = (
            int(environment.get(f"SLURM_ARRAY_TASK_{name}", default))
            for name, default in (("ID", 0), ("MIN", 0), ("COUNT", 1), ("STEP", 1))
        )
        shard, shards, teller = (task - first) // step, count, "SLURM"
        if shard >= shards:
            raise UserError(
                f"SLURM's array has gaps (task {task} of {count} from {first} on); give "
                "--num-shards and --shard-id yourself, or an array without gaps"
            )
    if "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment:
        tasks = int(environment["SLURM_STEP_NUM_TASKS"])
        shard, shards = shard * tasks + int(environment["SLURM_PROCID"]), shards * tasks
        teller = "SLURM"
    return shard, shards, teller
