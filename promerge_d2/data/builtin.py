"""The zero-shot benchmarks in detectron2's catalog."""

from __future__ import annotations

from promerge_d2.data.benchmarks import BENCHMARKS
from promerge_d2.data.datasets import datasets_root, register_promerge_instances


def register_benchmarks() -> None:
    """Register the benchmarks under ``$DETECTRON2_DATASETS``; nothing is read."""
    root = datasets_root()
    for benchmark in BENCHMARKS.values():
        found = benchmark.under(root)
        register_promerge_instances(found.name, found.json_file, found.image_root, found.how)
