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
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Figures
from benchmarks.report import list_table
from benchmarks.speed.compare import agreement, identical
from benchmarks.speed.harness import Benchmark
from benchmarks.speed.methods import METHODS, PRESETS, Workload
from benchmarks.speed.store import stored_rate
from promerge_d2.features import PRECISIONS, FeatureExtractor
from promerge_d2.labeler import ProMergeConfig, ProMergeLabeler
from promerge_d2.labeler.promerge.labeler import Stages
from promerge_d2.labeler.refine import NUMBA
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

    Figures: ``device.PRECISION.batch_N.features_images_per_s`` and ``.memory_mb``; of a GPU, the
    fastest of these compiled; with the fastest, for each preset, the whole way from file to label
    file (``device.PRESET.images_per_s``) with compiled code on the CPU, refined on the device
    (``device.PRESET.refined_there.images_per_s``), and with masks too found there
    (``device.PRESET.all_there.images_per_s``); and, with real weights, how far masks agree with
    those of the CPU.
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
    if workload.device != "cpu":
        compiled = dataclasses.replace(workload, compiled=True)
        args = (compiled, batch_size, plan.seconds)
        rate, _ = bench.call("device", f"features, {precision}, compiled", features_rate, *args)
        figures["device.compiled.features_images_per_s"] = rate
    for preset in PRESETS:
        _measure_preset(bench, preset, workload, batch_size)
    if not workload.random_weights:
        for preset, method in PRESETS.items():
            twice = (plan.workload, method, plan.images)
            refined = bench.call("device", f"{preset}, refined twice", refined_twice, *twice)
            figures[f"device.{preset}.refined_iou_to_cpu"] = agreement(*refined)
            masks = bench.call("device", f"{preset}, masks twice", masks_twice, *twice)
            figures[f"device.{preset}.masks_iou_to_cpu"] = agreement(*masks)
            figures[f"device.{preset}.masks_identical_to_cpu"] = identical(*masks)
        found = bench.call("device", "masks", masks_by_device, plan.workload, plan.images)
        for name in PRECISIONS:
            figures[f"device.{name}.mask_iou_to_cpu"] = agreement(found["cpu"], found[name])
            figures[f"device.{name}.images_identical_to_cpu"] = identical(found["cpu"], found[name])


def _measure_preset(bench: Benchmark, preset: str, workload: Workload, batch_size: int) -> None:
    """Measure a preset's whole way."""
    plan, figures = bench.plan, bench.figures
    count, workers = plan.stream, choose_workers(plan.stream)
    replayed = workload.random_weights and preset == "release"
    there = workload.device
    ways = {"": (NUMBA, NUMBA), ".refined_there": (NUMBA, there), ".all_there": (there, there)}
    for way, devices in ways.items():
        name = f"{preset}{way}"
        settings: dict[str, Any] = dict(
            zip(("masks_device", "refine_device"), devices, strict=True)
        )
        if workload.random_weights:  # no photograph confirms the discs
            settings["refine_min_iou"] = 0
        args = (workload.with_settings(settings), plan.images, bench.folder / name)
        how = (workers, count, batch_size, PRESETS[preset], ReplayLabeler if replayed else None)
        what = f"{preset}, masks and refinement by {devices}, {count} images, {workers} workers"
        rate, masks = bench.call("device", what, stored_rate, *args, *how)
        figures[f"device.{name}.images_per_s"] = rate
        figures[f"device.{name}.masks_per_image"] = masks
        figures[f"device.{name}.imagenet_hours"] = IMAGENET / rate / 3600
        waits = 1 - rate / figures["device.features_images_per_s"]
        figures[f"device.{name}.network_waits"] = max(0.0, waits)
    figures["device.workers"] = workers
    bench.notes.append(
        f"`{preset}` on the device ran with {workload.precision}, {batch_size} images at once, "
        f"{workers} workers, {count} images"
        + (", going on with three discs an image." if replayed else ".")
    )


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


def refined_twice(
    workload: Workload, method: str, files: Sequence[Path]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Refine the same masks by compiled code on the CPU and by torch on the device.

    Returns:
        For each image with masks its refined masks (M, h, w) bool, of either.
    """
    labeler = workload.labeler(METHODS[method])
    refined: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for file in files:
        (image,) = labeler.forward([labeler.processor.preprocess(file)])
        grid = labeler.find_masks(image, labeler.config)
        if grid.merged is not None and not grid.reason:
            for device, found in zip((NUMBA, workload.device), refined, strict=True):
                config = dataclasses.replace(labeler.config, refine_device=device)
                found.append(labeler.refine(image.working_image, grid.merged, config)[0])
    return refined


def masks_twice(
    workload: Workload, method: str, files: Sequence[Path]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Find masks in the same features by compiled code on the CPU and by torch on the device.

    Returns:
        For each image its masks (M, H, W) bool, of either.
    """
    labeler = workload.labeler(METHODS[method])
    found: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for file in files:
        (image,) = labeler.forward([labeler.processor.preprocess(file)])
        nothing = np.zeros((0, *image.features.shape[-2:]), bool)
        for device, masks in zip((NUMBA, workload.device), found, strict=True):
            config = dataclasses.replace(labeler.config, masks_device=device)
            merged = labeler.find_masks(image, config).merged
            masks.append(nothing if merged is None else merged)
    return found


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
