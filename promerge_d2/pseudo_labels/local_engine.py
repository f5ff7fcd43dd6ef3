"""Images through a mask generator, beside each other and in order.

Every process computes with one thread, so that neither the number of processes nor that of the
machine's cores changes a bit of the masks; on a CPU, speed comes from processes alone. What is
under way at once is bounded, and so is memory, whatever the number of images.
"""

from __future__ import annotations

import collections
import functools
import itertools
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol

from promerge_d2.labeler import LabelResult, MaskGenerator, Processor
from promerge_d2.pseudo_labels.inputs import TarImage
from promerge_d2.pseudo_labels.workers import Workers
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.image import ImageError, load_image
from promerge_d2.utils.threads import one_thread, use_one_thread
from promerge_d2.visualization.overlay import draw_records, save_png

IMAGES_A_WORKER = 4  # a worker takes seconds to start, about what a small ViT takes for an image
WINDOW = 4  # batches of images under way: of COCO's shapes at ``best`` 32 are 7 a batch, not 3
SHARED_MEMORY = Path("/dev/shm")  # Linux's; containers often have 64 MB of it


@dataclass(frozen=True)
class Job:
    """An image to label.

    Attributes:
        image: its file, or its place in a tar.
        overlay: PNG to draw the masks into, or None.
        size: bytes that the file should have, or None for any.
        place: what the caller knows it by.
    """

    image: Path | TarImage
    overlay: Path | None = None
    size: int | None = None
    place: int = 0

    def open(self) -> Path | BinaryIO:
        """Return what to read the photograph from.

        Raises:
            ImageError: the file has another size than it should, or the tar cannot be read.
        """
        try:
            if isinstance(self.image, TarImage):
                return self.image.open()
            size = None if self.size is None else os.stat(self.image).st_size
        except OSError as error:
            name = self.image.name if isinstance(self.image, TarImage) else self.image
            raise ImageError(f"cannot read the image {name}: {error.strerror}") from error
        if size != self.size:
            raise ImageError(
                f"the image {self.image} has changed: it had {self.size} bytes when the output was "
                f"begun, now {size}; --retry-failed takes it as it is"
            )
        return self.image


class Engine(Protocol):
    """Runs a mask generator somewhere. It is a dataclass, whose fields go into ``run.json``."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __call__(
        self, jobs: Iterable[Job], generator: MaskGenerator, stop: threading.Event
    ) -> Generator[tuple[Job, Future[LabelResult]]]:
        """Label images.

        Args:
            jobs: what to label; drawn no further ahead than is needed to keep all busy.
            generator: finds the masks.
            stop: when it is set, jobs that are waiting need not be done.

        Returns:
            Each job with its result or its error, in any order. A ``BrokenExecutor`` (no work can
            be done) and a ``CancelledError`` (it was not begun) are no fault of the image.
        """
        ...


@dataclass(frozen=True)
class LocalEngine:
    """Runs a mask generator in this process and others on this machine, results in order.

    With the network on a CPU each worker has one of its own, of shared weights, and takes whole
    images. On an accelerator it stays in this process; workers preprocess and postprocess. See
    ``Workers`` for workers that die.

    Attributes:
        workers: processes beside this one; 0 for none.
        batch_size: images that go through an accelerator at once, of one shape as far as
            ``WINDOW`` batches of images allow; on a CPU they go one by one.
    """

    workers: int = 0
    batch_size: int = 1

    def __call__(
        self, jobs: Iterable[Job], generator: MaskGenerator, stop: threading.Event
    ) -> Generator[tuple[Job, Future[LabelResult]]]:
        """See ``Engine``; refuses more workers than shared memory holds (``UserError``)."""
        jobs, drawn = itertools.tee(jobs)
        on_cpu = generator.device.type == "cpu"
        whole = self.workers > 0 and on_cpu
        batch_size = 1 if on_cpu else self.batch_size  # no faster there, and results come late
        ahead = 2 * self.workers
        if self.workers:
            _check_shared_memory(generator, 0 if whole else ahead + (WINDOW + 1) * batch_size)
        # images that have been through the network here are postprocessed, whatever comes
        network, stopped = (generator, stop) if whole else (None, threading.Event())
        with one_thread(), _executor(self.workers, network, stopped) as executor:
            if whole:
                futures = _bounded((executor.submit(_label, job) for job in drawn), ahead)
            else:
                futures = _staged(drawn, generator, executor, batch_size, ahead)
            yield from zip(jobs, futures, strict=True)


def choose_workers(images: int, processes: int = 1) -> int:
    """Choose a worker a core, but no more than pay for their start; 0 where that leaves one.

    Args:
        images: to label, by all processes.
        processes: that share the images and this machine's cores; those of torchrun count too.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux's
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    cores //= processes * int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    workers = min(cores, images // processes // IMAGES_A_WORKER)
    return workers if workers > 1 else 0


@dataclass
class _Underway:
    """An image on its way: preprocessed, or why it could not be; in the end what became of it."""

    job: Job
    image: Future[Any]
    result: Future[LabelResult] | None = None


def _staged(
    jobs: Iterable[Job], generator: MaskGenerator, executor: Executor, batch_size: int, ahead: int
) -> Iterator[Future[LabelResult]]:
    """Preprocess in the executor, run the network here in batches, postprocess in the executor.

    Images wait for others of their shape, until a batch is full or ``WINDOW`` batches of images are
    under way; results come in the order of the jobs all the same.
    """
    processor = JobProcessor(generator.processor)
    here = SynchronousExecutor()

    def start(batch: list[_Underway]) -> Callable[[], None]:
        """Start the network on a batch; the function returned waits and has it postprocessed."""
        images = [item.image.result() for item in batch]
        started = here.submit(generator.start_forward, images)

        def postprocess() -> None:
            outputs = here.submit(lambda: iter(started.result()()))
            for item in batch:
                item.result = outputs
                if outputs.exception() is None:
                    output = next(outputs.result())
                    item.result = executor.submit(processor.postprocess, output, item.job)

        return postprocess

    def results() -> Iterator[Future]:
        underway: collections.deque[_Underway] = collections.deque()
        waiting: dict[Any, list[_Underway]] = {}  # by shape, the first come first
        postprocess_last: Callable[[], object] = tuple

        def run(shape: Any) -> None:
            nonlocal postprocess_last
            postprocess_this = start(waiting.pop(shape))
            postprocess_last()  # while the network is at work
            postprocess_last = postprocess_this

        def finished() -> Iterator[Future]:
            while underway and (result := underway[0].result) is not None:
                underway.popleft()
                yield result

        preprocessed = ((job, executor.submit(processor.preprocess, job)) for job in jobs)
        for job, image in _bounded(preprocessed, ahead):
            underway.append(item := _Underway(job, image))
            if image.exception() is not None:  # waits
                item.result = image
            else:
                shape = getattr(image.result(), "shape", None)
                batch = waiting.setdefault(shape, [])
                batch.append(item)
                if len(batch) == batch_size:
                    run(shape)
            if len(underway) >= WINDOW * batch_size and underway[0].result is None:
                oldest = next(iter(waiting), None)
                if oldest in waiting and waiting[oldest][0] is underway[0]:
                    run(oldest)
                else:
                    postprocess_last()
                    postprocess_last = tuple
            yield from finished()
        while waiting:
            run(next(iter(waiting)))
            yield from finished()
        postprocess_last()
        yield from finished()

    return _bounded(results(), ahead)


def _bounded(items: Iterable, ahead: int) -> Iterator:
    """Yield items, of which at most ``ahead`` are drawn before the first is given."""
    items = iter(items)
    drawn = collections.deque(itertools.islice(items, ahead))
    for item in items:
        drawn.append(item)
        yield drawn.popleft()
    yield from drawn


@dataclass(frozen=True)
class JobProcessor:
    """The parts of the work on a job that need no network, for any process."""

    processor: Processor

    def preprocess(self, job: Job) -> Any:
        """See ``Processor.preprocess``."""
        return self.processor.preprocess(job.open())

    def postprocess(self, output: Any, job: Job) -> LabelResult:
        """See ``Processor.postprocess``; draws the overlay too."""
        result = self.processor.postprocess(output)
        if job.overlay is not None:  # reads the photograph again: it may be too large to carry
            pixels = load_image(job.open(), self.processor.apply_exif)
            save_png(job.overlay, draw_records(pixels, result.records))
        return result


# Workers


class SynchronousExecutor(Executor):
    """An executor that does the work at once, in this process."""

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """Run the function now; the future is done."""
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - raised again where the result is taken
            future.set_exception(error)
        return future


def _executor(workers: int, generator: MaskGenerator | None, stop: threading.Event) -> Executor:
    """Start worker processes, with a network each if one is given."""
    if not workers:
        return SynchronousExecutor()
    return Workers(workers, functools.partial(_start_worker, generator, os.getpid()), stop)


# a worker's own
_generator: MaskGenerator
_wait_for = getattr(signal, "sigtimedwait", lambda _, seconds: time.sleep(seconds))  # not on macOS


def _start_worker(generator: MaskGenerator | None, parent: int) -> None:
    global _generator
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    use_one_thread()
    if generator is not None:
        _generator = generator


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, or asks for it; nobody else may."""
    while os.getppid() == parent:
        asked = _wait_for([signal.SIGTERM], 1)
        if asked and asked.si_pid == parent:
            break
    os._exit(1)


def _label(job: Job) -> LabelResult:
    """All of the work, in a worker with a network."""
    processor = JobProcessor(_generator.processor)
    (output,) = _generator.start_forward([processor.preprocess(job)])()
    return processor.postprocess(output, job)


def _check_shared_memory(generator: MaskGenerator, images: int) -> None:
    """Refuse what would end in a bus error: weights, or what the network gives for the images."""
    wanted = generator.output_bytes * images
    if not images:
        wanted = sum(weight.nbytes for weight in generator.weights())
    if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free < wanted:
        raise UserError(
            f"the workers need {wanted / 1e6:.0f} MB of shared memory, more than {SHARED_MEMORY} "
            "has left; give it more (docker run --shm-size), or use --workers 0"
        )
