"""``--full``: how the cost grows with the grid, the prompts, the masks, the workers, the images.

Figures are named ``sweep.KIND.VALUE.FIGURE``; they have no spread.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import Figures, estimate, mean, memory_mb
from benchmarks.report import cross_table
from benchmarks.speed import tasks
from benchmarks.speed.harness import Benchmark, total
from benchmarks.speed.methods import METHODS, Workload
from benchmarks.speed.store import stored_rate
from benchmarks.speed.tasks import RELEASED
from promerge_d2.labeler import grid_masks
from promerge_d2.pseudo_labels.local_engine import Job, LocalEngine
from promerge_d2.utils.image import load_image, resize_image

GRIDS = (34, 60, 90)
STRIDES = (12, 6, 4, 3, 2)
MASKS = (1, 2, 4, 8, 16)
MANY_MASKS = 0.5  # a tau_b that gives many
WORKERS = (0, 1, 2, 4, 8, 16)
IMAGES = (250, 500, 1000, 2000)
TITLES = {
    "grid": "By side of the patch grid",
    "prompts": "By number of prompts",
    "masks": "By masks an image",
    "workers": "By worker processes, whole labeler, our way",
    "images": "By number of (small) images, whole labeler, our way",
}
SMALL = {"grid": (8, 8), "stride": 2}  # settings for small images
SMALL_SIDES = (72, 96)  # rows and columns in pixels


def measure_sweeps(bench: Benchmark) -> None:
    """Run all sweeps, on the first image or two: half an hour on two cores."""
    sweep_grids(bench)
    sweep_prompts(bench)
    sweep_masks(bench)
    sweep_workers(bench)
    sweep_images(bench)


def sweep_parts(figures: Figures) -> list[str]:
    """Write title and table of each sweep, from figures named ``sweep.KIND.VALUE.FIGURE``."""
    parts = []
    for kind, title in TITLES.items():
        prefix = f"sweep.{kind}."
        cells = [name.removeprefix(prefix).split(".", 1) for name in figures if prefix in name]
        columns = {name: name for _, name in cells if not name.endswith(".iqr")}
        if cells:
            rows = {f"{prefix}{value}": value for value in sorted({v for v, _ in cells}, key=int)}
            parts += [f"**{title}**", cross_table(figures, rows, columns, corner=kind)]
    return parts


def sweep_grids(bench: Benchmark) -> None:
    """Measure both ways of ProMerge on the first image; prompts grow with the grid as well."""
    for side in GRIDS:
        ours = f"sweep.grid.{side}.ours"
        for name, repeats in (("ours", bench.plan.repeats), ("released", 1)):
            label = f"sweep.grid.{side}.{name}"
            stages = bench.extract(name, [0], label, grid=(side, side))
            stages |= bench.finish(name, [0], repeats, label, ours, grid=(side, side)).seconds
            for stage in ("features", "masks", "refinement"):
                bench.figures[f"{label}.{stage}_s"], _ = estimate(mean, stages[stage])
            bench.figures[f"{label}.total_s"], _ = estimate(mean, total(stages))


def sweep_prompts(bench: Benchmark) -> None:
    """Measure the grid stage of both ways on the first two images."""
    for stride in STRIDES:
        count = int(np.prod([-(-side // stride) for side in bench.config.grid]))
        for name, repeats in (("ours", bench.plan.repeats), ("released", 1)):
            finished = bench.finish(name, [0, 1], repeats, refine="none", stride=stride)
            seconds, _ = estimate(mean, finished.seconds["masks"])
            bench.figures[f"sweep.prompts.{count}.{name}.masks_s"] = seconds


def sweep_masks(bench: Benchmark) -> None:
    """Measure the default refiner and the released way on the image with the most masks."""
    config = bench.plan.workload.with_settings({"tau_b": MANY_MASKS}).ours
    found: dict[int, np.ndarray] = {}
    for index in range(len(bench.plan.images)):
        features = tasks.load_prepared(bench.folder / "ours", index).features[0]
        stages = grid_masks(features, config)
        if stages.merged is not None and not stages.reason:
            found[index] = stages.merged
    best = max(found, key=lambda index: len(found[index]), default=None)
    for count in MASKS:
        if best is None or len(found[best]) < count:
            bench.notes.append(f"No image has {count} masks: a sweep ends before.")
            break
        chosen = {best: found[best][:count]}
        for refiner, repeats in ((bench.config.refine, bench.plan.repeats), (RELEASED, 1)):
            args = (refiner, bench.folder / "ours", chosen, repeats)
            what = f"{count} masks, {repeats} times"
            seconds, _ = bench.call(f"refiner.{refiner}", what, tasks.refine, *args)
            name = f"sweep.masks.{count}.{refiner}.refinement_s"
            bench.figures[name], _ = estimate(mean, seconds)


def sweep_workers(bench: Benchmark) -> None:
    """Measure throughput of the whole labeler, as ``tools/label_images.py`` runs it."""
    cores = os.cpu_count() or 1
    for workers in (number for number in WORKERS if number <= cores):
        args = (bench.plan.workload, bench.plan.images, bench.folder / "rate", workers)
        rate, _ = bench.call("pipeline", f"images stored, {workers} workers", stored_rate, *args)
        bench.figures[f"sweep.workers.{workers}.images_per_s"] = rate


def sweep_images(bench: Benchmark) -> None:
    """Measure time and memory over many small images."""
    workload = bench.plan.workload.with_settings(SMALL)
    args = (workload, bench.plan.images, bench.folder, IMAGES)
    what = f"{IMAGES[-1]} small images"
    for count, (seconds, memory) in bench.call("small_images", what, over_images, *args).items():
        bench.figures[f"sweep.images.{count}.seconds"] = seconds
        bench.figures[f"sweep.images.{count}.resident_mb"] = memory


def over_images(
    workload: Workload, files: Sequence[Path], folder: Path, counts: Sequence[int]
) -> dict[int, tuple[float, float]]:
    """Label small copies of images again and again, with no worker, so that memory is all here.

    Args:
        workload: what to work with.
        files: images.
        folder: gets the copies.
        counts: after how many images to look, rising.

    Returns:
        For each count the seconds so far and the memory resident now, in MB.
    """
    small = []
    for index, file in enumerate(files):
        small.append(folder / f"small_{index:04d}.png")
        Image.fromarray(resize_image(load_image(file), *SMALL_SIDES)).save(small[-1])
    labeler = workload.labeler(METHODS["ours"])
    jobs = (Job(small[index % len(small)]) for index in range(counts[-1]))
    seen = {}
    started = time.perf_counter()
    for done, (_, future) in enumerate(LocalEngine()(jobs, labeler, threading.Event()), start=1):
        future.result()
        if done in counts:
            seen[done] = (time.perf_counter() - started, memory_mb())
    return seen
