"""What the fixtures and detectron2's setup prepare, in a process that was spawned.

A fork cannot train once a network was compiled in this process, as other tests do.
"""

import torch
from detectron2.utils.env import seed_all_rng

from promerge_d2.data import register_from_config
from promerge_d2.features import BACKBONES
from tests.helpers import TINY


def prepare(cfg):
    torch.set_num_threads(1)
    BACKBONES[TINY.name] = TINY
    register_from_config(cfg)
    seed_all_rng(cfg.SEED)
