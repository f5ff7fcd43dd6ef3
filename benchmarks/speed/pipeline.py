"""What everything around the network sustains (``--pipeline``); no accelerator is needed.

Stored features stand in for the network. The work around it goes through the same engine and
store as always, in worker processes beside the one that holds the network. Cost is CPU time, that
of all these processes together, so that other work on the machine hardly counts.

Shape letters: C channels, H and W rows and columns of the patch grid.
"""

from __future__ import annotations

import argparse
import cProfile
import dataclasses
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.report import Results, cross_table
from benchmarks.speed.harness import Benchmark, Plan, plan_from, running
from benchmarks.speed.methods import METHODS, PRESETS
from benchmarks.speed.store import list_files, repeat_files, store_anew
from benchmarks.speed.tasks import load_prepared
from promerge_d2.coco.records import rle_record
from promerge_d2.labeler import (
    GridConfig,
    ImageFeatures,
    Labeler,
    LabelResult,
    MaskGenerator,
    PreprocessedImage,
    ProMergeLabeler,
    RegionsLabeler,
)
from promerge_d2.labeler.base import GridProcessor
from promerge_d2.labeler.promerge.background import vote_background
from promerge_d2.labeler.promerge.filtering import cascade_filter
from promerge_d2.labeler.promerge.merging import merge_masks
from promerge_d2.labeler.promerge.prompting import point_prompting, prompt_masks
from promerge_d2.labeler.refine.crf import mean_field
from promerge_d2.labeler.refine.guided_filter import guided_border
from promerge_d2.labeler.refine.runs import resize_to_rle
from promerge_d2.labeler.regions.candidates import find_candidates
from promerge_d2.labeler.regions.measures import measure as measure_masks
from promerge_d2.labeler.regions.measures import most_alike
from promerge_d2.labeler.regions.scoring import Frame, score_candidates
from promerge_d2.labeler.similarity import l2_normalize
from promerge_d2.labeler.suppression import suppress_softly
from promerge_d2.pseudo_labels import LocalEngine
from promerge_d2.pseudo_labels.local_engine import Job
from promerge_d2.pseudo_labels.store import Writer
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.image import ImageLike, load_image, resize_image

Source = Path | tuple[Path, int]  # of stored features, see ``read_features``

STREAM = 60  # images, unless asked otherwise
BATCH = 8
CORES = 16  # of the machine that the arithmetic is for
IMAGENET = 1_281_167  # images of ImageNet-1K's training set

STAGES: dict[str, tuple[Callable, ...]] = {
    "decoding": (load_image,),
    "resizing": (resize_image,),
    "candidates": (l2_normalize, point_prompting, find_candidates),
    "scores": (Frame.of, score_candidates),
    "suppression": (vote_background, cascade_filter, merge_masks, suppress_softly),
    "refinement": (ProMergeLabeler.refine, RegionsLabeler.refine),
    "encoding": (resize_to_rle, rle_record),
    "writing": (Writer.append,),
}
"""What each stage is made of: prompts are candidates, vote, filter and merging suppression."""

TWINS: dict[str, tuple[Callable, ...]] = {
    "masks_in_torch": (prompt_masks, measure_masks, most_alike, suppress_softly),
    "refiner_in_torch": (mean_field, guided_border),
}
"""What of the stages a device takes over, with ``masks_device`` and with ``refine_device``."""

COSTS = {
    "images_per_s_per_core": "images/s of one core",
    "after_features_images_per_s_per_core": "– after the features",
    "refined_elsewhere_images_per_s_per_core": "– with the refiner on a device",
    "device_images_per_s_per_core": "– with masks and refiner on a device",
    "cpu_s": "CPU seconds an image",
    "network_process_cpu_s": "– in the network's process",
    "images_per_s": "images/s here",
    "network_waits": "share of the time that the network waits",
    "memory_mb_after_a_fifth": "MB after a fifth",
    "memory_mb_at_the_end": "MB at the end",
    "peak_mb_after_a_fifth": "peak MB after a fifth",
    "peak_mb_at_the_end": "peak MB at the end",
    "images_per_s_of_16_cores": f"images/s of {CORES} cores",
    "device_images_per_s_of_16_cores": "– with masks and refiner on a device",
    "imagenet_hours_of_16_cores": "hours for ImageNet-1K",
}


def measure(args: argparse.Namespace) -> Results:
    """Measure what the work around the network sustains.

    Raises:
        UserError: images or stored features that cannot be read.
    """
    plan = plan_from(args)
    stream = args.stream or STREAM
    return measure_pipeline(dataclasses.replace(plan, stream=stream), args.features, args.rate)


def measure_pipeline(plan: Plan, stored: Path | None = None, rate: float | None = None) -> Results:
    """As ``measure``.

    Args:
        plan: what is measured; its network is asked only where nothing is stored.
        stored: folder with ``NAME.npz`` for each photograph, see ``read_features``; None for
            features computed now.
        rate: images a second that the network in the features' place takes; None for any number.
    """
    with running(plan) as bench:
        for preset, method in PRESETS.items():
            _measure_preset(bench, preset, method, stored, rate)
        how = "as fast as it is asked" if rate is None else f"{rate:g} images a second"
        bench.notes.append(
            f"Stored features stand in for the network, {how}; {plan.stream} images, "
            f"{plan.processes} workers, {BATCH} images at once. CPU time of all processes; by "
            "stage that of one process without workers."
        )
    rows = {f"pipeline.{preset}": f"`{preset}`" for preset in PRESETS}
    stages = {f"{stage}_s": stage for stage in (*STAGES, "rest")}
    stages |= {f"{name}_s": f"of these {name.replace('_', ' ')}" for name in TWINS}
    bench.results.parts = [
        "**Around the network**",
        cross_table(bench.figures, rows, COSTS),
        "**CPU seconds an image, by stage**",
        cross_table(bench.figures, rows, stages),
    ]
    return bench.results


def _measure_preset(
    bench: Benchmark, preset: str, method: str, stored: Path | None, rate: float | None
) -> None:
    plan, figures, name = bench.plan, bench.figures, f"pipeline.{preset}"
    kind, config = METHODS[method].labeler, plan.workload.config(METHODS[method])
    if stored is None:
        bench.extract(method, range(len(plan.images)), preset)
        folder = bench.folder / preset
        sources: list[Source] = [(folder, i) for i in range(len(plan.images))]
    else:
        sources = [stored / f"{file.stem}.npz" for file in plan.images]
    by_file = dict(zip((file.resolve() for file in plan.images), sources, strict=True))
    stand_in = StandIn(kind, config, plan.workload.backbone.patch, by_file, rate)
    stages = (stand_in, plan.images, bench.folder / f"{preset}-stages")
    what = f"stages of {len(plan.images)} images"
    for stage, seconds in bench.call(name, what, stage_seconds, *stages).items():
        figures[f"{name}.{stage}_s"] = seconds
    workers = plan.processes if plan.fresh else 0
    run = (stand_in, plan.images, bench.folder / f"{preset}-run", workers, plan.stream)
    what = f"{plan.stream} images, {workers} workers"
    measured = bench.call(f"{name}.process", what, sustained, *run)
    for key, value in measured.items():
        figures[f"{name}.{key}"] = value
    before = figures[f"{name}.decoding_s"] + figures[f"{name}.resizing_s"]
    cost = figures[f"{name}.cpu_s"]
    figures[f"{name}.images_per_s_per_core"] = 1 / cost
    figures[f"{name}.after_features_images_per_s_per_core"] = 1 / max(cost - before, 1e-9)
    elsewhere = max(cost - figures[f"{name}.refiner_in_torch_s"], 1e-9)
    figures[f"{name}.refined_elsewhere_images_per_s_per_core"] = 1 / elsewhere
    elsewhere = max(elsewhere - figures[f"{name}.masks_in_torch_s"], 1e-9)
    figures[f"{name}.device_images_per_s_per_core"] = 1 / elsewhere
    figures[f"{name}.device_images_per_s_of_16_cores"] = CORES / elsewhere
    figures[f"{name}.images_per_s_of_16_cores"] = CORES / cost
    figures[f"{name}.imagenet_hours_of_16_cores"] = IMAGENET * cost / CORES / 3600


def read_features(source: Source, grid: tuple[int, int]) -> torch.Tensor:
    """Read stored features.

    Args:
        source: an ``.npz`` file with ``key`` (C, H, W), or a folder of ``tasks.extract`` and the
            image's place there.
        grid: rows and columns that are wanted; those of a file are resampled to them.

    Returns:
        (V, C, rows, columns) float32.

    Raises:
        UserError: the file is not there or holds something else.
    """
    if isinstance(source, tuple):
        return load_prepared(*source).features
    try:
        with np.load(source) as arrays:
            features = arrays["key"].astype(np.float32)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{source} holds no features 'key' of its photograph: {error}") from error
    return F.interpolate(torch.from_numpy(features)[None], grid, mode="bilinear", antialias=True)


@dataclass
class KnownImage(PreprocessedImage):
    """An image that is known by its ``file``, links followed."""

    file: Path


@dataclass(frozen=True)
class StandInProcessor(GridProcessor):
    """The work around the network; images keep their files."""

    def preprocess(self, image: ImageLike) -> KnownImage:
        """See ``GridProcessor.preprocess``; the image is a file's path."""
        assert isinstance(image, Path)
        return KnownImage(**vars(super().preprocess(image)), file=image.resolve())


@dataclass
class StandIn:
    """A ``MaskGenerator`` whose network gives stored features, beside its process.

    Attributes:
        labeler: does all the rest.
        config: the labeler's.
        patch: side of a patch of the network's picture, in pixels.
        sources: of the features of each photograph, see ``read_features``.
        rate: images a second, or None.
    """

    labeler: type[Labeler]
    config: GridConfig
    patch: int
    sources: Mapping[Path, Source]
    rate: float | None = None
    _features: dict[Path, torch.Tensor] = field(default_factory=dict)
    _free: float = 0.0  # when the network is done with what it was given

    def __post_init__(self) -> None:
        self.name, self.title = self.labeler.name, self.labeler.title
        self.reasons = self.labeler.reasons
        self.processor = StandInProcessor(self.labeler, self.config, self.patch)
        self.device = torch.device("meta")  # no CPU, so that one process holds the network
        self.output_bytes = 0

    def weights(self) -> Iterator[torch.Tensor]:
        """Iterate over nothing."""
        return iter(())

    def to(self, device: str | torch.device) -> None:
        """Stay."""

    def describe(self, preset: str) -> dict:
        """Describe nothing but the settings."""
        return {"preset": preset, "settings": dataclasses.asdict(self.config)}

    def start_forward(self, images: Sequence[KnownImage]) -> Callable[[], list[ImageFeatures]]:
        """Begin as a device does; the function returned waits until it would be done."""
        for image in images:
            if image.file not in self._features:
                height, width = (side // self.patch for side in image.views[0].shape[:2])
                source = self.sources[image.file]
                self._features[image.file] = read_features(source, (height, width))
        if self.rate:
            self._free = max(self._free, time.perf_counter()) + len(images) / self.rate
        done = self._free
        outputs = [
            ImageFeatures(
                i.height, i.width, i.working_image, i.seconds, self._features[i.file].clone()
            )
            for i in images
        ]

        def wait() -> list[ImageFeatures]:
            time.sleep(max(0.0, done - time.perf_counter()))
            return outputs

        return wait


def stage_seconds(stand_in: StandIn, files: Sequence[Path], folder: Path) -> dict[str, float]:
    """Measure the CPU time of each stage, in this process alone.

    Args:
        stand_in: finds the masks.
        files: its photographs.
        folder: gets the output.

    Returns:
        Seconds an image by the names of ``STAGES``, the ``rest``, and by those of ``TWINS``.
    """
    run = (list_files(files, folder), folder, stand_in, LocalEngine())
    store_anew(*run)  # reads the features, compiles what is to be compiled
    profile = cProfile.Profile(time.process_time)
    started = time.process_time()
    profile.runcall(store_anew, *run)
    total = (time.process_time() - started) / len(files)
    spent: dict[Any, float] = {entry.code: entry.totaltime for entry in profile.getstats()}
    seconds, twins = (
        {
            name: sum(spent.get(function.__code__, 0.0) for function in functions) / len(files)
            for name, functions in parts.items()
        }
        for parts in (STAGES, TWINS)
    )
    return {**seconds, "rest": max(0.0, total - sum(seconds.values())), **twins}


def sustained(
    stand_in: StandIn, files: Sequence[Path], folder: Path, workers: int, count: int
) -> dict[str, float]:
    """Measure a run from files to stored masks, after its first fifth.

    Args:
        stand_in: finds the masks.
        files: its photographs.
        folder: gets the output, and links to the photographs.
        workers: processes beside this one.
        count: images in all.

    Returns:
        Figures by the names of ``COSTS``.
    """
    links = repeat_files(files, folder, count)
    engine = _Watched(LocalEngine(workers, BATCH), (max(1, 2 * workers, count // 5), count))
    store_anew(list_files(links, folder), folder, stand_in, engine)
    first, last = engine.marks
    images = last.images - first.images
    wall, own, all_ = last.wall - first.wall, last.own - first.own, last.all - first.all
    figures = {
        "cpu_s": all_ / images,
        "network_process_cpu_s": own / images,
        "images_per_s": images / wall,
        "memory_mb_after_a_fifth": first.memory_mb,
        "memory_mb_at_the_end": last.memory_mb,
        "peak_mb_after_a_fifth": first.peak_mb,
        "peak_mb_at_the_end": last.peak_mb,
    }
    if stand_in.rate:
        figures["network_waits"] = max(0.0, 1 - images / stand_in.rate / wall)
    return figures


@dataclass(frozen=True)
class _Mark:
    """Where a run is, and what it took so far.

    Attributes:
        images: that are done.
        wall: the clock.
        own: CPU seconds of this process.
        all: of its workers too.
        memory_mb: of them all, shared pages once.
        peak_mb: the sum of the most that each has had so far, shared pages in each.
    """

    images: int
    wall: float
    own: float
    all: float
    memory_mb: float
    peak_mb: float

    @classmethod
    def now(cls, images: int) -> _Mark:
        """Look at the clocks."""
        processes = [os.getpid()]
        processes += [child.pid for child in multiprocessing.active_children() if child.pid]
        own, *workers = map(_cpu_seconds, processes)
        memory, peak = (
            sum(_megabytes(process, file, field) for process in processes)
            for file, field in (("smaps_rollup", "Pss:"), ("status", "VmHWM:"))
        )
        return cls(images, time.perf_counter(), own, own + sum(workers), memory, peak)


def _cpu_seconds(process: int) -> float:
    """CPU time of a process, all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _megabytes(process: int, file: str, field: str) -> float:
    """Return a field, in kB there, of a file of ``/proc`` about a process."""
    lines = Path(f"/proc/{process}/{file}").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(field))
    return int(line.split()[1]) / 1024


@dataclass(frozen=True)
class _Watched:
    """An engine that looks at the clocks when so many images are stored."""

    engine: LocalEngine
    at: tuple[int, ...]
    marks: list[_Mark] = field(default_factory=list)

    def __call__(
        self, jobs: Iterable[Job], generator: MaskGenerator, stop: threading.Event
    ) -> Generator[tuple[Job, Future[LabelResult]]]:
        watched = self.engine(jobs, generator, stop)
        for count, (job, future) in enumerate(watched, start=1):
            future.result()
            yield job, future  # when it goes on, this image is stored
            if count in self.at:
                self.marks.append(_Mark.now(count))
