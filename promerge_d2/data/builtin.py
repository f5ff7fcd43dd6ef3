"""The zero-shot benchmarks in detectron2's catalog."""

from __future__ import annotations

from promerge_d2.data.benchmarks import BENCHMARKS
from promerge_d2.data.datasets import datasets_root, register_promerge_instances


def register_benchmarks() -> None:
    """Register the benchmarks under ``$DETECTRON2_DATASETS``; nothing is read."""
    root = datasets_root()
    for benchmark in BENCHMARKS.values():
        register_promerge_instances(
            benchmark.name,
            benchmark.ground_truth(root),
            root / benchmark.image_root,
            benchmark.how,
        )
