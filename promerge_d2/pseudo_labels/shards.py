"""Which part of the work a process does, as the program that started it says."""

from __future__ import annotations

from collections.abc import Mapping

from promerge_d2.utils.errors import UserError


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
