"""Seconds an iteration of the training recipe, the data loader's share, memory (``--training``).

On a GPU the recipe as it stands, its whole batch on one GPU; on a CPU a small one, for comparison.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from benchmarks.measure import Figures, forget_peak, memory_mb
from benchmarks.report import Results, list_table
from benchmarks.speed.harness import ROOT, sample
from promerge_d2.data import register_from_config
from promerge_d2.engine.setup import CPU_LINE, check_device, read_config
from promerge_d2.engine.trainer import ProMergeTrainer
from promerge_d2.utils.errors import UserError

WARM_UP = 5  # iterations that are not counted: kernels are chosen, workers start
DATASET = "benchmark_training"
SMALL = f"{CPU_LINE} INPUT.MIN_SIZE_TRAIN (256,) INPUT.MAX_SIZE_TRAIN 342"  # on a CPU
ROWS = {
    "training.iteration_s": "Seconds an iteration",
    "training.images_s": "Images/s",
    "training.loader_percent": "Waiting for the data loader, % of the time",
    "training.process_mb": "Most memory of the training process, MB",
    "training.gpu_mb": "Most memory of the GPU in tensors, MB",
}


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """What is measured.

    Attributes:
        config: YAML file of a recipe.
        images: folder of the images.
        labels: COCO JSON of their masks.
        device: ``cpu`` or ``cuda``.
        iterations: that count; ``WARM_UP`` more come first.
        opts: ``KEY VALUE`` pairs that go last.
    """

    config: Path
    images: Path
    labels: Path
    device: str = "cpu"
    iterations: int = 20
    opts: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the ``KEY VALUE`` pairs that a reader of the figures has to know."""
        if self.device == "cpu":
            return (*SMALL.split(), *self.opts)
        workers = str(os.cpu_count())  # the recipe's are for 2 images a GPU
        return ("MODEL.DEVICE", self.device, "DATALOADER.NUM_WORKERS", workers, *self.opts)


def measure(args: argparse.Namespace) -> Results:
    """Measure the recipe ``configs/promerge_cascade.yaml``.

    Raises:
        UserError: images without labels, or the other way round; and as ``train``.
    """
    if bool(args.images) != bool(args.labels):
        raise UserError("--training takes --images and --labels together, or neither")
    images, labels = args.images, args.labels
    if not images:
        images, labels = sample("test/images"), sample("test/annotations.json")
    iterations = 20 if args.device == "cpu" else 200
    recipe = ROOT / "configs/promerge_cascade.yaml"
    return measure_training(TrainingPlan(recipe, Path(images), labels, args.device, iterations))


def measure_training(plan: TrainingPlan) -> Results:
    """Measure the recipe of a plan; raises as ``train``."""
    figures = train(plan)
    device = "the CPU" if plan.device == "cpu" else torch.cuda.get_device_name(plan.device)
    rows = {name: title for name, title in ROWS.items() if name in figures}
    return Results(
        f"`{plan.config.name}` from random weights on {device}: "
        f"{figures['training.iterations']:.0f} iterations of {figures['training.batch']:.0f} "
        f"images after {WARM_UP}, {figures['training.workers']:.0f} loader workers, with "
        f"`{' '.join(plan.keys)}`",
        figures,
        [list_table(figures, rows)],
    )


def train(plan: TrainingPlan) -> Figures:
    """Train from random weights for a while.

    Returns:
        ``training.*`` as in ``ROWS`` (``gpu_mb`` with a GPU only), with the spread of the
        iterations; ``training.batch``, ``training.iterations``, ``training.workers``.

    Raises:
        UserError: a setting that cannot run here, or data that is not there.
    """
    on_gpu = plan.device != "cpu"
    with tempfile.TemporaryDirectory() as folder:
        opts = ["MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", str(WARM_UP + plan.iterations)]
        opts += ["TEST.PRECISE_BN.ENABLED", "False", "OUTPUT_DIR", folder, "SEED", "1"]
        data = [[DATASET, str(plan.labels), str(plan.images)]]
        opts += ["DATASETS.PROMERGE", str(data), "DATASETS.TRAIN", f"('{DATASET}',)"]
        opts += ["DATASETS.TEST", "()", *plan.keys]
        cfg = read_config(str(plan.config), opts)
        check_device(cfg)
        cfg.freeze()
        register_from_config(cfg)
        forget_peak()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        try:
            trainer = ProMergeTrainer(cfg)
            trainer.train()
        finally:
            DatasetCatalog.remove(DATASET)
            MetadataCatalog.remove(DATASET)
    seconds, waits = (  # as detectron2 has them
        np.array([v for v, i in trainer.storage.history(name).values() if i >= WARM_UP])
        for name in ("time", "data_time")
    )
    figures = Figures()
    figures.put_repeats("training.iteration_s", seconds)
    figures["training.images_s"] = cfg.SOLVER.IMS_PER_BATCH * len(seconds) / float(seconds.sum())
    figures["training.loader_percent"] = 100 * float(waits.sum() / seconds.sum())
    figures["training.process_mb"] = memory_mb("VmHWM")
    if on_gpu:
        figures["training.gpu_mb"] = torch.cuda.max_memory_allocated() / 2**20
    figures["training.batch"] = cfg.SOLVER.IMS_PER_BATCH
    figures["training.iterations"] = len(seconds)
    figures["training.workers"] = cfg.DATALOADER.NUM_WORKERS
    return figures
