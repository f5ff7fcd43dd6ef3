"""Images through a mask generator on a Ray cluster, as three stages of Ray Data.

Tasks on any CPU preprocess, actors hold the network (on a GPU each, if there are), tasks
postprocess. Ray moves the images between them, starts lost work again and takes nodes as they come
and go. This process gives out the jobs and takes the results in.
"""

from __future__ import annotations

import functools
import itertools
import logging
import pickle
import threading
import traceback
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.pool import RemoteTraceback  # type: ignore[attr-defined]
from typing import Any

from promerge_d2.labeler import LabelResult, MaskGenerator
from promerge_d2.pseudo_labels.local_engine import Job, JobProcessor
from promerge_d2.pseudo_labels.store import NotFinished
from promerge_d2.pseudo_labels.workers import IN_A_ROW, WorkerDied
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.threads import use_one_thread

try:
    import pyarrow
    import ray
except ImportError as error:
    raise UserError(
        f"--engine ray needs Ray ({error}); install it: pip install 'ray[data]'"
    ) from error

logger = logging.getLogger(__name__)

RETRIES = 3  # of what was lost with a process or a node; Ray Data's own default is for ever
WINDOW = 4096  # images given to Ray at once; at the end of each the cluster runs dry for a moment


@dataclass(frozen=True)
class RayEngine:
    """Runs a mask generator on a Ray cluster; see ``Engine``.

    Attributes:
        address: of the cluster (``auto``, ``ray://host:10001``); None takes RAY_ADDRESS, else
            starts one on this machine.
        workers: actors with the network; None takes one a GPU, or on CPUs all but one.
        batch_size: images that go through the network at once.
        device: ``cpu`` or ``cuda``, of the actors.
    """

    address: str | None = None
    workers: int | None = None
    batch_size: int = 8
    device: str = "cpu"

    def __call__(
        self, jobs: Iterable[Job], generator: MaskGenerator, stop: threading.Event
    ) -> Generator[tuple[Job, Future[LabelResult]]]:
        """See ``Engine``; results come as they are ready.

        Raises:
            UserError: masks are to be found or refined on a GPU, which Ray's tasks do not see.
        """
        if generator.processor.needs_gpu:
            raise UserError(
                "Ray's tasks see no GPU: set masks_device and refine_device to numba, or use "
                "--engine local"
            )
        ours = not ray.is_initialized()
        if ours:
            ray.init(self.address, log_to_driver=False, logging_level=logging.WARNING)
        try:
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            context.max_errored_blocks = -1  # only dead processes make them
            shared = ray.put(generator)
            jobs, proven = iter(jobs), False
            while window := list(itertools.islice(jobs, WINDOW)):
                left = dict.fromkeys(window)
                # what was lost with a process, after Ray's own tries, once more one by one
                for size in (self.batch_size, 1):
                    for table in self._run(list(left), generator, shared, size):
                        for job, future in _taken(table):
                            del left[job]
                            yield job, future
                        proven = True
                        if stop.is_set():
                            return
                    if not left:
                        break
                if not proven and len(left) > IN_A_ROW:
                    raise NotFinished(
                        f"Ray gave none of {len(left)} images back; its logs say why (is "
                        "promerge_d2 installed on all nodes?)"
                    )
                yield from ((job, _lost()) for job in left)
        except ray.exceptions.RayError as error:
            raise NotFinished(
                f"Ray gave up: {error}; what is finished is kept: run the same command again"
            ) from error
        finally:
            if ours:
                ray.shutdown()

    def _run(
        self, window: list[Job], generator: MaskGenerator, shared: ray.ObjectRef, size: int
    ) -> Iterable:
        """Label ``size`` images at a time; what a dead process had is left out."""
        processor = JobProcessor(generator.processor)
        actors, resources = self._actors()
        options = {"batch_size": size, "batch_format": "pyarrow", "zero_copy_batch": True}
        tasks = {"max_retries": RETRIES, **options}
        rows = [{"state": pickle.dumps((job, None))} for job in window]
        preprocess = functools.partial(_each, lambda job, _: processor.preprocess(job))
        postprocess = functools.partial(_each, lambda job, o: processor.postprocess(o, job))
        return (
            ray.data.from_items(rows, override_num_blocks=-(-len(window) // size))
            .map_batches(preprocess, **tasks)
            .map_batches(
                _Network,
                fn_constructor_args=(shared, self.device),
                compute=ray.data.ActorPoolStrategy(size=actors),
                max_task_retries=RETRIES,
                **resources,
                **options,
            )
            .map_batches(postprocess, **tasks)
            .iter_batches(batch_size=None, batch_format="pyarrow")
        )

    def _actors(self) -> tuple[int, dict[str, int]]:
        """Return how many actors there are to be, and what each needs."""
        cluster = ray.cluster_resources()
        if self.device == "cuda":
            if not cluster.get("GPU"):
                raise UserError("the Ray cluster has no GPU; use --device cpu, or add nodes")
            return self.workers or int(cluster["GPU"]), {"num_gpus": 1, "num_cpus": 0}
        cores = int(cluster.get("CPU", 0))
        workers = self.workers or cores - 1
        if not 0 < workers < cores:
            raise UserError(
                f"the Ray cluster has {cores} CPUs; {workers} networks leave none for the rest"
            )
        return workers, {"num_cpus": 1}


# A stage's rows hold a pickled pair: a job, and what became of it so far: a value, or _Failed.


@dataclass(frozen=True)
class _Failed:
    """An error from elsewhere."""

    error: Exception
    where: str


def _pairs(table: pyarrow.Table) -> list[tuple[Job, Any]]:
    return [pickle.loads(state.as_py()) for state in table["state"]]


def _table(pairs: Iterable[tuple[Job, Any]]) -> pyarrow.Table:
    states = [pickle.dumps(pair) for pair in pairs]
    return pyarrow.table({"state": pyarrow.array(states, pyarrow.large_binary())})


def _failed(error: Exception) -> _Failed:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - anybody's error, with anybody's way of pickling
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return _Failed(error, traceback.format_exc())


def _each(step: Callable[[Job, Any], Any], table: pyarrow.Table) -> pyarrow.Table:
    """Apply a step to each pair."""
    use_one_thread()
    pairs = []
    for job, value in _pairs(table):
        if not isinstance(value, _Failed):
            try:
                value = step(job, value)
            except Exception as error:  # noqa: BLE001 - raised again where the result is taken
                value = _failed(error)
        pairs.append((job, value))
    return _table(pairs)


class _Network:
    """An actor: preprocessed images through the network."""

    def __init__(self, generator: ray.ObjectRef, device: str) -> None:
        use_one_thread()
        self._generator = ray.get(generator)
        self._generator.to(device)

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        pairs = _pairs(table)
        good = [value for _, value in pairs if not isinstance(value, _Failed)]
        try:
            outputs = self._generator.start_forward(good)() if good else []
        except Exception as error:  # noqa: BLE001 - as of ``_each``
            outputs = [_failed(error)] * len(good)
        rest = iter(outputs)
        return _table((j, v if isinstance(v, _Failed) else next(rest)) for j, v in pairs)


def _taken(table: pyarrow.Table) -> Iterable[tuple[Job, Future[LabelResult]]]:
    for job, value in _pairs(table):
        future: Future[LabelResult] = Future()
        if isinstance(value, _Failed):
            value.error.__cause__ = RemoteTraceback(f"\n{value.where}")
            future.set_exception(value.error)
        else:
            future.set_result(value)
        yield job, future


def _lost() -> Future[LabelResult]:
    future: Future[LabelResult] = Future()
    said = "died of it again and again, at last with nothing else in hand"
    future.set_exception(WorkerDied(f"Ray's worker process {said}; --retry-failed tries it again"))
    return future
