"""Label images; every finished one is stored at once, so that a stop loses nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import logging
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Future
from pathlib import Path
from types import FrameType

import cv2
import numpy as np

from promerge_d2.labeler import LabelResult, MaskGenerator
from promerge_d2.pseudo_labels.inputs import ImageFile, ImageList
from promerge_d2.pseudo_labels.local_engine import Engine, Job, LocalEngine
from promerge_d2.pseudo_labels.manifest import check_manifest, write_manifest
from promerge_d2.pseudo_labels.merge import (
    RunSummary,
    log_damage,
    merge_labels,
    summarize_shard,
)
from promerge_d2.pseudo_labels.status import ProgressReporter
from promerge_d2.pseudo_labels.store import (
    NotFinished,
    Store,
    Writer,
    guard_write,
    locked,
    parts_of,
)
from promerge_d2.pseudo_labels.workers import kill_workers
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import check_writable, write_json

logger = logging.getLogger(__name__)


def label_images(
    images: ImageList,
    output: str | os.PathLike,
    generator: MaskGenerator,
    preset: str,
    overlays: str | os.PathLike | None = None,
    engine: Engine | None = None,
    shard: int = 0,
    shards: int = 1,
    retry_failed: bool = False,
) -> RunSummary:
    """Label images into ``OUTPUT.parts``, one of ``shards`` parts of them; then write ``output``.

    What is in the store already is not done again. Undivided work ends with ``output`` (COCO JSON)
    and ``*.run.json`` beside it; a shard with ``run.json`` in its folder of the store, and
    ``merge_labels`` makes ``output`` when all are done.

    Equal images and settings give an ``output`` of equal bytes; command, machine, times and
    failures go to ``run.json``. An image that cannot be processed is named in the log and in the
    store; the others go on. SIGTERM and SIGINT end the work after the images in hand.

    Args:
        images: what to label.
        output: the JSON to write; parent folders are made.
        generator: finds the masks, a labeler or a detector.
        preset: name of its settings, for the record.
        overlays: folder for a PNG of each image that is labelled now (its name + ``.png``).
        engine: does the work; None for this process alone.
        shard: which part, from 0; every ``shards``-th image from there on.
        shards: parts, each for a process of its own.
        retry_failed: do those again that failed before, also if their files have changed.

    Returns:
        The summary, of all runs: of ``output``, or of the shard.

    Raises:
        UserError: a place cannot be written, the store was begun with other settings or images,
            or another process is at work on the shard.
        NotFinished: a signal, a dead worker or a full disk; what is done is kept.
    """
    output = Path(output)
    engine = engine or LocalEngine()
    check_writable(output)
    if overlays is not None:
        check_writable(Path(overlays) / "picture.png")
    store = open_store(output, images, generator.describe(preset))
    folder = store.shard(shard, shards)
    started = time.time()
    with locked(folder / "lock", f"shard {shard} of {shards} of {store.folder}"):
        todo, done = _find_work(store, shard, shards, retry_failed)
        if done and overlays is not None:
            logger.warning("%d images were labelled before; they get no overlay now", done)
        if todo.any():
            jobs = _Jobs(store, images.root, todo, overlays, retry_failed)
            _run(jobs, generator, engine, done, folder)
        if shards == 1:
            summary = merge_labels(output)
            run_file = output.with_name(f"{output.stem}.run.json")
        else:
            summary = summarize_shard(store, shard, shards)
            run_file = folder / "run.json"
        with store.index("times") as times:
            places = np.flatnonzero(times.found)
            for place in places[places % shards == shard].tolist():
                summary.seconds.update(times[place])
        run = _describe_run(images, generator, summary, started)
        with guard_write(run_file):
            write_json(run_file, {**run, **dataclasses.asdict(engine)}, indent=1)
    return summary


def open_store(output: Path, images: ImageList, info: dict) -> Store:
    """Open the store of an output, or begin it; whoever comes first writes its manifest.

    Args:
        output: the label file.
        images: what it is made of.
        info: how, see ``MaskGenerator.describe``.

    Raises:
        UserError: it was begun with other settings or images.
    """
    folder = parts_of(output)
    manifest = folder / "manifest.jsonl"
    with locked(folder / "manifest.lock", str(folder), wait=True):
        if not manifest.exists():
            with guard_write(manifest):
                write_manifest(manifest, images, info)
    store = Store(folder)
    check_manifest(store.manifest, images, info)
    return store


def _find_work(store: Store, shard: int, shards: int, retry_failed: bool) -> tuple[np.ndarray, int]:
    """Return the places of the manifest to do now, (count,) bool, and how many are done."""
    records, failures = store.index("records"), store.index("failures")
    log_damage(records.damaged + failures.damaged)
    done = records.found if retry_failed else records.found | failures.found
    mine = np.zeros_like(done)
    mine[shard::shards] = True
    return mine & ~done, int((mine & done).sum())


@dataclasses.dataclass
class _Jobs:
    """The images to label, one after the other.

    Attributes:
        in_progress: images that were given out, by place; the taker removes them.
        stop: set it, and no more are given out.
    """

    store: Store
    root: Path
    todo: np.ndarray
    overlays: str | os.PathLike | None
    retry: bool
    in_progress: dict[int, ImageFile] = dataclasses.field(default_factory=dict)
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)

    def __iter__(self) -> Iterator[Job]:
        for place, file in enumerate(self.store.manifest.entries()):
            if self.stop.is_set():
                return
            if not self.todo[place]:
                continue
            self.in_progress[place] = file
            # the overlay's name holds the whole name: a.jpg and a.png differ, no input is lost
            overlay = None if self.overlays is None else Path(self.overlays) / f"{file.name}.png"
            size = None if self.retry else file.size
            yield Job(file.under(self.root), overlay, size, place)


def _run(jobs: _Jobs, generator: MaskGenerator, engine: Engine, done: int, folder: Path) -> None:
    """Label and store.

    Raises:
        NotFinished: a signal, a dead worker or a full disk.
    """
    writer = jobs.store.writer(folder)
    total = done + int(jobs.todo.sum())
    progress = ProgressReporter(folder / "status.json", total, done, writer.sync)
    state, died = "failed", None
    try:
        with (
            _stopped_by_signals(jobs.stop) as signals,
            contextlib.closing(writer),
            contextlib.closing(engine(jobs, generator, jobs.stop)) as finished,
        ):
            for job, future in finished:
                file = jobs.in_progress.pop(job.place)
                try:
                    progress.count_image(_store(writer, job.place, file, future))
                except CancelledError:
                    continue
                except BrokenExecutor as error:
                    jobs.stop.set()  # and keep what is finished
                    died = died or f"{file.name}: {error}"
        if not died:
            state = "stopped" if signals else "finished"
    finally:
        progress.close(state)
    if signals:
        raise NotFinished(
            f"interrupted by {signals[0]}; what is finished is kept: run the same command again"
        )
    if died:
        raise NotFinished(
            f"no worker process is left at {died}; what is finished is kept: run the same command "
            "again, with fewer workers or more memory"
        )


def _store(writer: Writer, place: int, file: ImageFile, future: Future[LabelResult]) -> int | None:
    """Store what became of an image; return how many masks it has, None if it failed.

    Raises:
        BrokenExecutor, CancelledError: it was not done.
        NotFinished: it cannot be stored.
    """
    image = {"id": file.id, "file_name": file.name}
    try:
        result = future.result()
    except (BrokenExecutor, CancelledError):
        raise
    except Exception as error:  # noqa: BLE001 - no image may end the run for the others
        failure = {"error": str(error)}
        if not isinstance(error, UserError):
            failure = {
                "error": f"{type(error).__name__}: {error}",
                "traceback": "".join(traceback.format_exception(error)),
            }
        logger.error("failed: %s: %s", file.name, failure.get("traceback", failure["error"]))
        writer.append("failures", place, {**image, **failure})
        return None
    image |= {"width": result.width, "height": result.height}
    if result.reason is not None:
        image["reason"] = result.reason
    writer.append("records", place, {**image, "masks": result.records})
    writer.append("times", place, result.seconds)
    return len(result.records)


@contextlib.contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[list[str]]:
    """Set ``stop`` at the first SIGINT or SIGTERM; another SIGINT interrupts and ends workers.

    Yields a list that the signals' names are appended to. Signals that are ignored stay so.
    """
    received: list[str] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            kill_workers()
            signal.default_int_handler(number, frame)
        stop.set()
        received.append(signal.Signals(number).name)
        # logging is not for handlers
        os.write(2, b"stopping after the images in hand; Ctrl-C again stops now\n")

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handle)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _describe_run(
    images: ImageList, generator: MaskGenerator, summary: RunSummary, started: float
) -> dict:
    packages = ("torch", "timm", "numpy", "pillow", "scipy", "pycocotools")
    return {
        "command": sys.argv,
        "host": platform.node(),
        "machine": platform.platform(),
        "device": str(generator.device),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
            "opencv": cv2.__version__,
        },
        "image_root": str(images.root.resolve()),
        "started": datetime.datetime.fromtimestamp(started, datetime.timezone.utc).isoformat(),
        "seconds": round(time.time() - started, 3),
        "seconds_by_stage": {stage: round(s, 3) for stage, s in summary.seconds.items()},
        "images": summary.images,
        "masks": summary.masks,
        "images_without_masks": dict(sorted(summary.reasons.items())),
        "failures": summary.failures,
    }
