"""What it costs that every image is stored, and throughput by workers (``--store``).

The labeler alone and the same work through ``label_images`` (manifest, store, merge) take turns in
one process, so that whatever else the machine does falls on both. What the store costs is also
measured by itself, with results that are ready: it is too small beside the labeler to be seen in
the difference of two noisy times.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.report import Results, list_table
from benchmarks.speed.harness import Plan, plan_from, running
from benchmarks.speed.methods import METHODS, Workload
from promerge_d2.features import FeatureExtractor
from promerge_d2.labeler import Labeler, LabelResult, MaskGenerator
from promerge_d2.pseudo_labels import LocalEngine, label_images, list_images, parts_of
from promerge_d2.pseudo_labels.inputs import ImageFile, ImageList
from promerge_d2.pseudo_labels.local_engine import Engine, Job

READY = 2000  # images whose results are stored without labelling
WORKERS = (1, 2)
A_WORKER = 8  # images, for throughput
ROWS = {
    "store.labeler_s": "Labeler alone, seconds an image",
    "store.ratio_to_labeler": "Through the store, to the labeler alone, times",
    "store.own_ms": "Manifest, store and merge by themselves, ms an image",
    "store.own_percent": "– in % of the labeler alone",
    "store.workers.1.images_per_s": "Stored images/s, 1 worker",
    "store.workers.2.images_per_s": "Stored images/s, 2 workers",
    "store.workers.2.times_1": "– times 1 worker",
}


def measure(args: argparse.Namespace) -> Results:
    """Measure the store's share of the time, and images a second with workers, all in turns."""
    return measure_store(plan_from(args))


def measure_store(plan: Plan) -> Results:
    """As ``measure``."""
    with running(plan) as bench:
        figures = bench.figures
        cost = (plan.workload, plan.images, bench.folder / "store", plan.repeats)
        what = f"{len(plan.images)} images alone and stored, {plan.repeats} times"
        alone, stored, own = bench.call("store", what, store_cost, *cost)
        figures["store.labeler_s"] = float(np.median(alone))
        figures.put_repeats("store.ratio_to_labeler", stored / alone)
        figures.put_repeats("store.own_ms", 1000 * own)
        figures.put_repeats("store.own_percent", 100 * own / np.median(alone))
        rates: dict[int, list[float]] = {workers: [] for workers in WORKERS}
        for _, workers in itertools.product(range(plan.repeats), WORKERS):
            rate = (plan.workload, plan.images, bench.folder / "rate", workers)
            what = f"{A_WORKER * workers} images stored, {workers} workers"
            rates[workers].append(bench.call("store", what, stored_rate, *rate)[0])
        for workers, values in rates.items():
            figures.put_repeats(f"store.workers.{workers}.images_per_s", np.array(values))
        figures.put_repeats("store.workers.2.times_1", np.array(rates[2]) / np.array(rates[1]))
    bench.results.parts = ["**Store and workers**", list_table(figures, ROWS)]
    return bench.results


def store_cost(
    workload: Workload, files: Sequence[Path], folder: Path, repeats: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure seconds an image.

    Args:
        workload: what to work with.
        files: images.
        folder: gets the outputs.
        repeats: R.

    Returns:
        Three (R,): the labeler alone, the same through the store, the store alone.
    """
    labeler = workload.labeler(METHODS["ours"])
    images = list_files(files, folder)
    ready = ImageList(folder, tuple(ImageFile(n + 1, f"{n:06d}.jpg", 1) for n in range(READY)))
    results = _labelled(files, labeler)
    seconds = []
    for _ in range(repeats):
        times = [time.perf_counter()]
        _labelled(files, labeler)
        times.append(time.perf_counter())
        store_anew(images, folder, labeler, LocalEngine())
        times.append(time.perf_counter())
        store_anew(ready, folder, labeler, _Ready(results))
        times.append(time.perf_counter())
        seconds.append(np.diff(times) / (len(files), len(files), READY))
    alone, stored, own = np.transpose(seconds)
    return alone, stored, own


def stored_rate(
    workload: Workload,
    files: Sequence[Path],
    folder: Path,
    workers: int,
    count: int | None = None,
    batch_size: int = 1,
    method: str = "ours",
    kind: type[Labeler] | None = None,
) -> tuple[float, float]:
    """Measure images a second from file to label file.

    The clock starts when a fifth of the images, and two a worker, are done, so that the start of
    the workers and the filling of the queues do not count.

    Args:
        workload: what to work with.
        files: images, each taken as often as it needs.
        folder: gets the output, and links to the images.
        workers: processes beside this one.
        count: images in all; None takes ``A_WORKER`` a process that count, and two that do not.
        batch_size: images through the network at once.
        method: of ``METHODS``.
        kind: of the labeler; None takes the method's.

    Returns:
        Images a second, and masks an image.
    """
    count = count or (A_WORKER + 2) * max(1, workers)
    links = repeat_files(files, folder, count)
    engine = _Timed(LocalEngine(workers, batch_size))
    config = workload.config(METHODS[method])
    labeler = (kind or METHODS[method].labeler)(workload.extractor(FeatureExtractor), config)
    store_anew(list_files(links, folder), folder, labeler, engine)
    first = max(1, 2 * workers, count // 5)
    rate = (count - first) / (engine.times[-1] - engine.times[first - 1])
    return rate, sum(engine.masks) / count


def repeat_files(files: Sequence[Path], folder: Path, count: int) -> list[Path]:
    """Make ``count`` links to images in a folder, each image taken as often as it needs."""
    folder.mkdir(parents=True, exist_ok=True)
    links = []
    for number, file in enumerate(itertools.islice(itertools.cycle(files), count)):
        links.append(folder / f"{number:06d}{file.suffix}")
        if not links[-1].exists():
            os.symlink(file.resolve(), links[-1])
    return links


def _labelled(files: Sequence[Path], labeler: MaskGenerator) -> list[LabelResult]:
    """Label without a store."""
    done = LocalEngine()(map(Job, files), labeler, threading.Event())
    return [future.result() for _, future in done]


def list_files(files: Sequence[Path], folder: Path) -> ImageList:
    """List images, by a file in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    listing = folder / "list.txt"
    listing.write_text("".join(f"{file.absolute()}\n" for file in files), encoding="utf-8")
    return list_images(listing)


def store_anew(images: ImageList, folder: Path, labeler: MaskGenerator, engine: Engine) -> None:
    """Label from nothing."""
    output = folder / "labels.json"
    shutil.rmtree(parts_of(output), ignore_errors=True)
    label_images(images, output, labeler, "release", engine=engine)


@dataclass(frozen=True)
class _Ready:
    """An engine whose results are there already, in turn."""

    results: list[LabelResult]

    def __call__(
        self, jobs: Iterable[Job], generator: MaskGenerator, stop: threading.Event
    ) -> Generator[tuple[Job, Future[LabelResult]]]:
        for job, result in zip(jobs, itertools.cycle(self.results), strict=False):
            future: Future[LabelResult] = Future()
            future.set_result(result)
            yield job, future


@dataclass(frozen=True)
class _Timed:
    """An engine that notes when its results are taken, and how many masks they have."""

    engine: LocalEngine
    times: list[float] = field(default_factory=list)
    masks: list[int] = field(default_factory=list)

    def __call__(
        self, jobs: Iterable[Job], generator: MaskGenerator, stop: threading.Event
    ) -> Generator[tuple[Job, Future[LabelResult]]]:
        for job, future in self.engine(jobs, generator, stop):
            self.masks.append(len(future.result().records))
            self.times.append(time.perf_counter())
            yield job, future
