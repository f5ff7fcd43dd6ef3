"""What an accelerator gives: features by batch and precision, the pipeline around it, the masks.

With random weights there are no masks to speak of. The pipeline then does all of the labeler's
work on the features that come out and goes on with stored masks, so that refinement and encoding
have what they would have.

Shape letters: C channels, H and W rows and columns of the patch grid, S sets of M masks.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as mask_utils

from benchmarks.measure import Figures
from benchmarks.report import list_table
from benchmarks.speed.compare import agreement, identical
from benchmarks.speed.harness import Benchmark
from benchmarks.speed.methods import METHODS, Method, Workload
from promerge_d2.features import PRECISIONS, FeatureExtractor
from promerge_d2.labeler import GridConfig, ProMergeConfig, ProMergeLabeler, grid_masks
from promerge_d2.labeler.promerge.labeler import Stages
from promerge_d2.pseudo_labels.local_engine import Job, choose_workers, label_jobs
from promerge_d2.utils.files import read_json

REPLAYED = 3  # masks an image
BATCHES = (1, 8, 32)
IMAGENET = 1_281_167  # images of ImageNet-1K's training set


@dataclass(frozen=True)
class ReplayConfig(ProMergeConfig):
    """Settings of ``ReplayLabeler``.

    Attributes:
        replay: a file of ``numpy.save``: masks (S, M, H, W) bool.
    """

    replay: str = ""


class ReplayLabeler(ProMergeLabeler):
    """ProMerge whose masks are replaced, at the end of the grid stage, by stored ones."""

    config_class = ReplayConfig

    @staticmethod
    def grid_masks(features: torch.Tensor, config: GridConfig) -> Stages:
        """Run the stages, for their time; return a stored set, picked by the features."""
        assert isinstance(config, ReplayConfig)
        stages = grid_masks(features[0], config)
        sets = _load(config.replay)
        stages.merged = sets[int(1e6 * features[0, 0, 0, 0].abs()) % len(sets)]
        stages.reason = None
        return stages


@functools.cache
def _load(file: str) -> np.ndarray:
    return np.load(file)


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
    replay = ""
    if workload.random_weights and plan.annotations is not None:
        replay = str(bench.folder / "masks.npy")
        save_annotated_masks(plan.annotations, Path(replay), bench.config.grid)
    count, workers = plan.stream, choose_workers(plan.stream)
    args = (workload, plan.images, count, workers, batch_size, replay)
    rate, masks = bench.call("device", f"{count} images, {workers} workers", pipeline_rate, *args)
    figures["device.images_per_s"] = rate
    figures["device.masks_per_image"] = masks
    figures["device.workers"] = workers
    figures["device.imagenet_hours"] = IMAGENET / rate / 3600
    bench.notes.append(
        f"The device's pipeline ran with {precision}, {batch_size} images at once, {workers} "
        f"workers, {count} images"
        + (f", replaying {REPLAYED} stored masks an image." if replay else ".")
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


def save_annotated_masks(annotations: Path, file: Path, grid: tuple[int, int]) -> None:
    """Rasterise the first objects of every annotated photograph.

    Args:
        annotations: COCO JSON with polygons; photographs with fewer than ``REPLAYED`` objects are
            left out.
        file: gets the masks (S, M, H, W) bool, see ``ReplayConfig``.
        grid: H and W.
    """
    data = read_json(annotations, "annotations of the sample photographs")
    rows, columns = grid
    sets = []
    for image in data["images"]:
        objects = [item for item in data["annotations"] if item["image_id"] == image["id"]]
        scale = np.array([columns / image["width"], rows / image["height"]])
        polygons = [
            [(np.reshape(part, (-1, 2)) * scale).ravel().tolist() for part in item["segmentation"]]
            for item in objects[:REPLAYED]
        ]
        masks = [
            mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(parts, rows, columns))) > 0
            for parts in polygons
        ]
        if len(masks) == REPLAYED and all(mask.any() for mask in masks):
            sets.append(masks)
    with open(file, "wb") as out:
        np.save(out, np.array(sets))


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


def pipeline_rate(
    workload: Workload,
    files: Sequence[Path],
    count: int,
    workers: int,
    batch_size: int,
    replay: str = "",
) -> tuple[float, float]:
    """Measure images a second from file to records.

    The clock starts when a quarter of the images, and two a worker, are done, so that the start
    of the workers and the filling of the queues do not count.

    Args:
        workload: what to work with.
        files: images, taken in turn.
        count: how many in all.
        workers: processes beside this one.
        batch_size: images through the network at once.
        replay: see ``ReplayConfig``; empty for the masks that are found.

    Returns:
        Images a second, and masks an image.
    """
    method = METHODS["ours"]
    if replay:
        settings = {"replay": replay, "refine_min_iou": 0}  # the masks are of other photographs
        method = Method(method.title, method.preset, ReplayLabeler, method.extractor, settings)
    jobs = (Job(path) for path in itertools.islice(itertools.cycle(files), count))
    done, masks = [], 0
    for future in label_jobs(jobs, workload.labeler(method), workers, batch_size):
        masks += len(future.result().records)
        done.append(time.perf_counter())
    first = max(1, 2 * workers, count // 4)
    return (count - first) / (done[-1] - done[first - 1]), masks / count


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
            stages = labeler.grid_masks(prepared.features, labeler.config)
            found[name].append(nothing if stages.merged is None else stages.merged)
    return found
