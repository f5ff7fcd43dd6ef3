"""What an accelerator gives: features by batch and precision, the pipeline around it, the masks.

With random weights there are no masks to speak of. The pipeline then does all of the labeler's
work on the features that come out and goes on with three discs, so that refinement and encoding
have work to do.

Shape letters: M masks, H and W rows and columns of the patch grid.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Figures
from benchmarks.report import list_table
from benchmarks.speed.compare import agreement, identical
from benchmarks.speed.harness import Benchmark
from benchmarks.speed.methods import METHODS, Workload
from benchmarks.speed.store import stored_rate
from promerge_d2.features import PRECISIONS, FeatureExtractor
from promerge_d2.labeler import ProMergeConfig, ProMergeLabeler
from promerge_d2.labeler.promerge.labeler import Stages
from promerge_d2.pseudo_labels.local_engine import choose_workers

BATCHES = (1, 8, 32)
IMAGENET = 1_281_167  # images of ImageNet-1K's training set


class ReplayLabeler(ProMergeLabeler):
    """ProMerge whose masks are replaced, at the end of the grid stage, by ``disc_masks``."""

    @staticmethod
    def grid_masks(features: torch.Tensor, config: ProMergeConfig) -> Stages:
        """Run the stages, for their time; return other masks."""
        stages = ProMergeLabeler.grid_masks(features, config)
        stages.merged, stages.reason = disc_masks(*features.shape[-2:]), None
        return stages


def disc_masks(rows: int, columns: int) -> np.ndarray:
    """Draw discs of 3, 6 and 12 % of the grid beside each other: (3, rows, columns) bool."""
    y, x = np.mgrid[:rows, :columns]
    places = ((0.25, 0.2, 0.03), (0.7, 0.3, 0.06), (0.45, 0.7, 0.12))
    return np.array(
        [
            ((y + 0.5) / rows - down) ** 2 + ((x + 0.5) / columns - right) ** 2 < share / np.pi
            for down, right, share in places
        ]
    )


def measure_device(bench: Benchmark) -> None:
    """Measure the device of the workload.

    Figures: ``device.PRECISION.batch_N.features_images_per_s`` and ``.memory_mb``; with the
    fastest of these the pipeline's ``device.images_per_s``; and, with real weights, how far the
    masks agree with those of the CPU.
    """
    plan, figures = bench.plan, bench.figures
    rates = {}
    for precision, batch_size in itertools.product(PRECISIONS, BATCHES):
        workload = dataclasses.replace(plan.workload, precision=precision)
        what = f"features, {precision}, batch {batch_size}"
        rate, memory = bench.call("device", what, features_rate, workload, batch_size, plan.seconds)
        rates[precision, batch_size] = rate
        figures[f"device.{precision}.batch_{batch_size}.features_images_per_s"] = rate
        figures[f"device.{precision}.batch_{batch_size}.memory_mb"] = memory
    precision, batch_size = max(rates, key=lambda kind: rates[kind])
    figures["device.features_images_per_s"] = rates[precision, batch_size]
    workload = dataclasses.replace(plan.workload, precision=precision)
    count, workers = plan.stream, choose_workers(plan.stream)
    kind = ReplayLabeler if workload.random_weights else ProMergeLabeler
    if workload.random_weights:  # no photograph confirms the discs
        workload = workload.with_settings({"refine_min_iou": 0})
    args = (workload, plan.images, bench.folder / "device", workers, count, batch_size, kind)
    rate, masks = bench.call("device", f"{count} images, {workers} workers", stored_rate, *args)
    figures["device.images_per_s"] = rate
    figures["device.masks_per_image"] = masks
    figures["device.workers"] = workers
    figures["device.imagenet_hours"] = IMAGENET / rate / 3600
    bench.notes.append(
        f"The device's pipeline ran with {precision}, {batch_size} images at once, {workers} "
        f"workers, {count} images"
        + (", going on with three discs an image." if workload.random_weights else ".")
    )
    if not workload.random_weights:
        found = bench.call("device", "masks", masks_by_device, plan.workload, plan.images)
        for name in PRECISIONS:
            figures[f"device.{name}.mask_iou_to_cpu"] = agreement(found["cpu"], found[name])
            figures[f"device.{name}.images_identical_to_cpu"] = identical(found["cpu"], found[name])


def device_parts(figures: Figures) -> list[str]:
    """Write everything about the device, by name; nothing where nothing was measured."""
    rows = {n: n.removeprefix("device.") for n in figures if n.startswith("device.")}
    return ["**Device**", list_table(figures, rows)] if rows else []


def features_rate(workload: Workload, batch_size: int, seconds: float) -> tuple[float, float]:
    """Measure images a second through the network, from bytes on the CPU to features on the CPU.

    Args:
        workload: what to work with.
        batch_size: images at once.
        seconds: how long to measure, after three batches that do not count.

    Returns:
        Images a second, and the most memory taken on the device in MB (0 on a CPU).
    """
    extractor = workload.extractor(FeatureExtractor)
    on_gpu = extractor.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(extractor.device)
    rows, columns = (
        side * extractor.backbone.patch for side in workload.config(METHODS["ours"]).grid
    )
    noise = np.random.default_rng(0).integers(0, 256, (rows, columns, 3)).astype(np.uint8)
    images = [noise] * batch_size
    for _ in range(3):
        extractor.features(images)
    started, batches = time.perf_counter(), 0
    waiting = extractor.start(images)
    while time.perf_counter() - started < seconds:
        following = extractor.start(images)
        waiting()
        waiting, batches = following, batches + 1
    waiting()
    rate = (batches + 1) * batch_size / (time.perf_counter() - started)
    memory = torch.cuda.max_memory_allocated(extractor.device) / 2**20 if on_gpu else 0.0
    return rate, memory


def masks_by_device(workload: Workload, files: Sequence[Path]) -> dict[str, list[np.ndarray]]:
    """Find masks for features of the CPU, of the device, and of the device in bf16.

    Returns:
        ``cpu``, ``fp32`` and ``bf16``: for each image its masks (M, H, W) bool.
    """
    found: dict[str, list[np.ndarray]] = {}
    workloads = {"cpu": dataclasses.replace(workload, device="cpu")}
    for precision in PRECISIONS:
        workloads[precision] = dataclasses.replace(workload, precision=precision)
    for name, changed in workloads.items():
        labeler = changed.labeler(METHODS["ours"])
        nothing = np.zeros((0, *labeler.config.grid), bool)
        found[name] = []
        for file in files:
            (prepared,) = labeler.forward([labeler.processor.preprocess(file)])
            stages = labeler.find_masks(prepared, labeler.config)
            found[name].append(nothing if stages.merged is None else stages.merged)
    return found
