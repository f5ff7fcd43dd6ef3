"""One process a GPU, or several on a CPU, with detectron2's own launcher."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from promerge_d2.utils.errors import UserError


def launch_processes(
    work: Callable,
    args: tuple,
    device: str,
    processes: int,
    machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> object:
    """Run a function in several processes, or in this one.

    On a ``device`` cpu gloo connects them. They end when this process does, however it ends.

    Args:
        work: called in every process, and importable in them.
        args: its arguments.
        device: ``MODEL.DEVICE``.
        processes: of each machine.
        machines: see detectron2's ``launch``, as for the next two.
        machine_rank: which of them this is.
        dist_url: where they meet.

    Returns:
        What ``work`` returned if there is one process; None otherwise.

    Raises:
        UserError: more processes than GPUs.
    """
    if processes < 1 or machines < 1:
        raise UserError("--num-gpus and --num-machines count processes: give 1 or more")
    if processes * machines == 1:
        return work(*args)
    on_cpu = device.startswith("cpu")
    if on_cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # or detectron2 would have NCCL connect them
    elif processes > torch.cuda.device_count():
        raise UserError(
            f"--num-gpus {processes}, but this machine has {torch.cuda.device_count()}; to "
            "work in so many processes on CPUs, add MODEL.DEVICE cpu"
        )
    try:
        launch(
            _worker,
            processes,
            num_machines=machines,
            machine_rank=machine_rank,
            dist_url=dist_url,
            args=(work, args, processes if on_cpu else 0, os.getpid()),
        )
    except ProcessExitedException as error:
        if error.exit_code != UserError.exit_code:
            raise
        sys.exit(UserError.exit_code)  # the process has said why
    return None


def _worker(work: Callable, args: tuple, sharing: int, parent: int) -> None:
    """Work as one of several processes; a refusal is said once and ends them all."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if sharing:  # they share the cores
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // sharing))
    try:
        work(*args)
    except UserError as error:
        if comm.is_main_process():
            sys.stderr.write(f"error: {error}\n")
            sys.stderr.flush()
        sys.exit(UserError.exit_code)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
