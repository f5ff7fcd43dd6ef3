"""What a run of the benchmark holds: its plan, its processes, its figures."""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Samples, fresh_processes, spread, with_peak
from benchmarks.report import Results
from benchmarks.speed import tasks
from benchmarks.speed.methods import Workload
from benchmarks.speed.tasks import AFTER, BEFORE, Finished
from promerge_d2.features import get_backbone
from promerge_d2.pseudo_labels import list_images
from promerge_d2.utils.errors import UserError

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "runs/quickstart/data"


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        workload: network and settings.
        images: the photographs.
        whole: how many of them go the whole way with every method, spread evenly over the list.
        reference: how many of those with the dense eigenproblem, which takes minutes.
        repeats: of what takes milliseconds.
        slow_repeats: of what takes seconds; the network and the eigenproblem run once an image.
        processes: for throughput.
        fresh: in fresh processes of one thread; False is quick, and its times mean little.
        full: sweeps as well.
        seconds: how long each speed of the device's network is measured.
        stream: images that go through the device's pipeline.
    """

    workload: Workload
    images: tuple[Path, ...]
    whole: int = 4
    reference: int = 2
    repeats: int = 5
    slow_repeats: int = 2
    processes: int = 2
    fresh: bool = True
    full: bool = False
    seconds: float = 5
    stream: int = 1024

    def __post_init__(self) -> None:
        if min(len(self.images), self.whole, self.reference) < self.processes:
            raise UserError(
                f"{len(self.images)} images, of which {self.whole} go the whole way and "
                f"{self.reference} through the dense eigenproblem, are too few for "
                f"{self.processes} processes; give each at least {self.processes}"
            )


def plan_from(args: argparse.Namespace) -> Plan:
    """Make the plan that the options of ``tools/benchmark.py`` ask for.

    Raises:
        UserError: there are no such images, settings or backbone, or there are too few images.
    """
    settings = dict(pair.split("=", 1) for pair in args.set if "=" in pair)
    if len(settings) < len(args.set):
        raise UserError(f"--set takes NAME=VALUE, each name once, not {' '.join(args.set)}")
    images = list_images(args.images or sample("photos/images"))
    workload = Workload(
        get_backbone(args.backbone),
        weights=args.weights,
        random_weights=args.random_weights,
        device=args.device,
        settings=settings,
    )
    names = [images.names[place] for place in spread(len(images.names), args.count)]
    return Plan(workload, tuple(images.root / name for name in names), full=args.full)


def sample(part: str) -> Path:
    """Find a file or folder of the sample data; make the data if they are not there.

    Raises:
        UserError: they cannot be made.
    """
    command = [sys.executable, str(ROOT / "datasets/prepare_sample.py"), "--output", str(SAMPLE)]
    if subprocess.run(command, check=False).returncode:
        raise UserError("the sample data could not be made (see above); give --images")
    return SAMPLE / part


class Benchmark:
    """One run.

    Args:
        plan: what is measured.
        folder: for what the measured processes hand to each other.
        stack: ends the processes.
    """

    def __init__(self, plan: Plan, folder: Path, stack: ExitStack) -> None:
        self.plan = plan
        self.folder = folder
        self.stack = stack
        self.pools: dict[str, ProcessPoolExecutor] = {}
        self.config = plan.workload.ours
        backbone, (rows, columns) = plan.workload.backbone, self.config.grid
        weights = "random weights" if plan.workload.random_weights else backbone.training
        self.results = Results(
            f"{backbone.name} ({weights}) on {plan.workload.device}, {rows}x{columns} patches, "
            f"{len(plan.images)} images"
        )
        self.figures = self.results.figures
        self.notes = self.results.notes

    def call(self, name: str, what: str, function: Callable[..., Any], *args: Any) -> Any:
        """Run a task in the process called ``name`` and return what it returned.

        Processes live as long as the benchmark, since starting one takes seconds. The largest
        memory of a task becomes ``NAME.peak_mb``.
        """
        started = time.perf_counter()
        if not self.plan.fresh:
            result, peak = with_peak(function, *args)
        else:
            if name not in self.pools:
                self.pools[name] = self.stack.enter_context(fresh_processes(1))
            result, peak = self.pools[name].submit(with_peak, function, *args).result()
        logger.info("%6.1f s  %s: %s", time.perf_counter() - started, name, what)
        key = f"{name}.peak_mb"
        self.figures[key] = max(self.figures.get(key, 0), peak)
        return result

    def extract(
        self, name: str, images: Sequence[int], label: str | None = None, **settings: Any
    ) -> dict[str, Samples]:
        """Compute the features of some of the images by a method.

        Args:
            name: of the method.
            images: places in the plan's list.
            label: of the process, and of the folder where the features are kept (``name``).
            **settings: of the labeler, on top of the workload's.

        Returns:
            Samples (N, 1) of the stages ``BEFORE``.
        """
        label = label or name
        files = [self.plan.images[index] for index in images]
        args = (self.plan.workload.with_settings(settings), name, files, self.folder / label)
        return self.call(label, f"features of {len(files)} images", tasks.extract, *args)

    def finish(
        self,
        name: str,
        images: Sequence[int],
        repeats: int,
        label: str | None = None,
        source: str = "ours",
        **settings: Any,
    ) -> Finished:
        """Do everything after the features.

        Args:
            name: of the method.
            images: places in the folder of features.
            repeats: R.
            label: of the process (``name``).
            source: label of ``extract``.
            **settings: of the labeler, on top of the workload's.
        """
        workload = self.plan.workload.with_settings(settings)
        args = (workload, name, self.folder / source, list(images), repeats)
        what = f"after the features of {len(images)} images, {repeats} times"
        return self.call(label or name, what, tasks.finish, *args)

    def finish_together(
        self, name: str, images: Sequence[int], repeats: int, source: str
    ) -> Samples:
        """Do everything after the features in all processes at once, each with some images.

        Args:
            name: of the method.
            images: places in the folder of features.
            repeats: R.
            source: label of ``extract``.

        Returns:
            Samples (N, R).
        """
        count = self.plan.processes
        shares = [list(images[start::count]) for start in range(count)]
        args = (self.plan.workload, name, self.folder / source)
        started = time.perf_counter()
        if self.plan.fresh:
            if "together" not in self.pools:
                self.pools["together"] = self.stack.enter_context(fresh_processes(count))
            pool = self.pools["together"]
            jobs = [pool.submit(tasks.finish, *args, some, repeats, True) for some in shares]
            done = [job.result() for job in jobs]
        else:
            done = [tasks.finish(*args, some, repeats) for some in shares]
        logger.info("%6.1f s  %s: %d at once", time.perf_counter() - started, name, count)
        values = np.empty((len(images), repeats))
        for start, finished in enumerate(done):
            values[start::count] = after(finished.seconds).values
        return Samples(values)


@contextmanager
def running(plan: Plan) -> Iterator[Benchmark]:
    """Give a run of a plan; at its end its processes end, and its figures say how long it took."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bench = Benchmark(plan, Path(folder), stack)
        yield bench
    figures = bench.figures
    figures["machine.cores"] = float(os.cpu_count() or 1)
    figures["grid"] = bench.config.grid[0]
    figures["images"] = len(plan.images)
    figures["run.seconds"] = time.perf_counter() - started
    bench.results.title += f"; the benchmark took {figures['run.seconds']:.0f} s"


def after(stages: dict[str, Samples]) -> Samples:
    """Sum the stages after the features."""
    return sum_of(stages, AFTER)


def total(stages: dict[str, Samples]) -> Samples:
    """Sum all stages."""
    return sum_of(stages, (*BEFORE, *AFTER))


def sum_of(stages: dict[str, Samples], names: Sequence[str]) -> Samples:
    """Sum some of the stages."""
    first, *rest = (stages[name] for name in names)
    for samples in rest:
        first = first + samples
    return first
