"""One process a GPU, or several on a CPU, with detectron2's own launcher."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from promerge_d2.utils.errors import UserError


def launch_run(run: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> object:
    """Run in as many processes as ``--num-gpus`` and ``--num-machines`` say.

    With ``MODEL.DEVICE cpu`` they are processes on CPUs, which gloo connects.

    Args:
        run: takes ``args``; it is called in every process, and must be importable in them.
        args: of detectron2's ``default_argument_parser``, and ``device``: cpu, cuda, ...

    Returns:
        What ``run`` returned if there is one process; None otherwise.

    Raises:
        UserError: more processes than GPUs.
    """
    if args.num_gpus < 1 or args.num_machines < 1:
        raise UserError("--num-gpus and --num-machines count processes: give 1 or more")
    if args.num_gpus * args.num_machines == 1:
        return run(args)
    if args.device.startswith("cpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # or detectron2 would have NCCL connect them
    elif args.num_gpus > torch.cuda.device_count():
        raise UserError(
            f"--num-gpus {args.num_gpus}, but this machine has {torch.cuda.device_count()}; to "
            "train in so many processes on CPUs, add MODEL.DEVICE cpu"
        )
    try:
        launch(
            worker,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(run, args),
        )
    except ProcessExitedException as error:
        if error.exit_code != UserError.exit_code:
            raise
        sys.exit(UserError.exit_code)  # the process has said why
    return None


def worker(run: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """One of several processes; a refusal is said once and ends them all."""
    if args.device.startswith("cpu"):  # they share the cores
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.num_gpus))
    try:
        run(args)
    except UserError as error:
        if comm.is_main_process():
            sys.stderr.write(f"error: {error}\n")
            sys.stderr.flush()
        sys.exit(UserError.exit_code)
