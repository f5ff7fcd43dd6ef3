"""COCO JSON on disk to detectron2: registered data sets, and copy-paste for training."""

from promerge_d2.data.copy_paste import CopyPasteMapper, copy_paste
from promerge_d2.data.datasets import (
    check_datasets,
    register_benchmarks,
    register_builtins,
    register_from_config,
    register_promerge_instances,
    register_semi_supervised,
)

register_builtins()
register_benchmarks()
register_semi_supervised()

__all__ = [
    "CopyPasteMapper",
    "check_datasets",
    "copy_paste",
    "register_from_config",
    "register_promerge_instances",
]
