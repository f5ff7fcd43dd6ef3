import pytest

from promerge_d2.cli.engine_arguments import shard_from
from promerge_d2.utils.errors import UserError


def array(task, first=0, count=4, step=1):
    names = {"ID": task, "MIN": first, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()}


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({}, (0, 1, "")),
        ({"WORLD_SIZE": "4"}, (0, 1, "")),
        ({"RANK": "3", "WORLD_SIZE": "4", **array(1)}, (3, 4, "torchrun")),
        (array(2), (2, 4, "SLURM")),
        (array(7, first=5), (2, 4, "SLURM")),
        (array(30, first=10, step=10), (2, 4, "SLURM")),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "3"}, (1, 3, "SLURM")),
        # in a batch script, not under srun, SLURM numbers a process that stands for all
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "3"}, (0, 1, "")),
        ({**array(1), "SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3"}, (5, 12, "SLURM")),
    ],
)
def test_shards_of_torchrun_and_slurm(environment, shard):
    assert shard_from(environment) == shard


def test_an_array_with_gaps_is_refused():
    with pytest.raises(UserError, match=r"task 9 of 3 from 3"):
        shard_from(array(9, first=3, count=3))
