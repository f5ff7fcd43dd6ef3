"""COCO JSON on disk to detectron2: registered data sets, and copy-paste for training."""

from promerge_d2.data.builtin import register_benchmarks
from promerge_d2.data.copy_paste import CopyPasteMapper, copy_paste
from promerge_d2.data.datasets import (
    check_datasets,
    register_builtins,
    register_from_config,
    register_promerge_instances,
)

register_builtins()
register_benchmarks()

__all__ = [
    "CopyPasteMapper",
    "check_datasets",
    "copy_paste",
    "register_from_config",
    "register_promerge_instances",
]
