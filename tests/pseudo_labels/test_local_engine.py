"""Images beside each other, in order; with workers the same bytes, and no more memory."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from promerge_d2.features import FeatureExtractor, get_backbone
from promerge_d2.labeler import ProMergeLabeler
from promerge_d2.pseudo_labels import (
    LocalEngine,
    choose_workers,
    label_images,
    list_images,
    local_engine,
    merge_labels,
    parts_of,
)
from promerge_d2.pseudo_labels.local_engine import Job
from promerge_d2.pseudo_labels.store import NotFinished
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.image import ImageError
from tests.helpers import ROOT, photo, save_image, save_random_vit
from tests.pseudo_labels.helpers import tiny_labeler


@pytest.fixture(scope="module")
def labeler():
    return tiny_labeler()


@pytest.fixture
def photos(tmp_path):
    """Seven good images of several sizes, a broken one as third and as last."""
    folder = tmp_path / "photos"
    for number in range(7):
        height = 96 + 12 * number
        save_image(folder / f"{number}.png", photo(height=height, seed=number))
    for name in ("1b.png", "9.png"):
        (folder / name).write_text("not an image")
    return folder


def jobs_of(folder):
    return [Job(path) for path in sorted(folder.iterdir())]


def label_jobs(jobs, generator, workers, batch_size):
    """The futures alone."""
    for _, future in LocalEngine(workers, batch_size)(jobs, generator, threading.Event()):
        yield future


def outcomes(futures):
    """Records, or the error's type, of each."""
    return [type(f.exception()) if f.exception() else f.result().records for f in futures]


# Order and errors


def test_bounded_draws_no_further_than_asked():
    drawn = []
    items = local_engine._bounded((drawn.append(n) or n for n in range(6)), 2)
    assert next(items) == 0
    assert drawn == [0, 1, 2]
    assert next(items) == 1
    assert drawn == [0, 1, 2, 3]
    assert [*items] == [2, 3, 4, 5]
    assert [*local_engine._bounded([], 3)] == []


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 20])
def test_results_come_in_order_with_errors_in_their_places(
    labeler, photos, monkeypatch, batch_size
):
    monkeypatch.setattr(local_engine, "_executor", threads)
    found = outcomes(label_jobs(jobs_of(photos), on_an_accelerator(labeler), 0, batch_size))
    names = [job.image.name for job in jobs_of(photos)]
    good = [name for name in names if name not in ("1b.png", "9.png")]
    expected = {name: labeler(photos / name) for name in good}
    assert len({str(records) for records in expected.values()}) == 7
    assert found == [expected.get(name, ImageError) for name in names]


def test_on_a_cpu_an_image_is_done_before_the_next_but_one_begins(labeler, photos, monkeypatch):
    """Not after a batch: a person sees the first result, and a stop loses next to nothing."""
    begun, real = [], labeler.start_forward

    def start_forward(images):
        begun.append(len(images))
        return real(images)

    monkeypatch.setattr(labeler, "start_forward", start_forward)
    work = label_jobs([Job(photos / "0.png")] * 6, labeler, 0, 8)
    for number, _ in enumerate(work, start=1):
        assert begun == [1] * min(number + 1, 6)


def test_nothing_but_broken_images(labeler, photos):
    jobs = [Job(photos / "9.png")] * 3
    assert outcomes(label_jobs(jobs, labeler, 0, 2)) == [ImageError] * 3
    assert outcomes(label_jobs([], labeler, 0, 2)) == []


@contextlib.contextmanager
def threads(workers, *_):
    """Stands in for worker processes."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        yield pool


def on_an_accelerator(labeler, cls=ProMergeLabeler):
    """The same labeler, taken for one whose network has to stay in this process."""
    other = tiny_labeler(cls)
    other.extractor.__class__ = type(
        "Elsewhere", (FeatureExtractor,), {"device": torch.device("meta")}
    )
    other.extractor.normalise = labeler.extractor.normalise
    return other


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_an_accelerator_is_fed_by_workers(labeler, photos, monkeypatch, batch_size):
    monkeypatch.setattr(local_engine, "_executor", threads)
    elsewhere = on_an_accelerator(labeler)
    sizes, real = [], elsewhere.start_forward
    here = threading.get_ident()

    def start_forward(images):
        assert threading.get_ident() == here
        sizes.append(len(images))
        return real(images)

    elsewhere.start_forward = start_forward
    found = outcomes(label_jobs(jobs_of(photos), elsewhere, 3, batch_size))
    assert found == outcomes(label_jobs(jobs_of(photos), labeler, 0, 1))
    assert sizes == {1: [1] * 7, 3: [3, 3, 1], 4: [4, 3]}[batch_size]  # broken ones take no place


def test_a_failing_batch_fails_alone(labeler, photos, monkeypatch):
    monkeypatch.setattr(local_engine, "_executor", threads)
    labeler = on_an_accelerator(labeler)
    real, sizes = labeler.start_forward, []

    def fail_second(images):
        sizes.append(len(images))
        if len(sizes) == 2:
            raise RuntimeError("out of memory")
        return real(images)

    expected = outcomes(label_jobs(jobs_of(photos), labeler, 0, 3))
    monkeypatch.setattr(labeler, "start_forward", fail_second)
    found = outcomes(label_jobs(jobs_of(photos), labeler, 0, 3))
    # 0, 1, (1b), 2 | 3, 4, 5 | 6, (9)
    assert found == [*expected[:4], *[RuntimeError] * 3, *expected[7:]]


def test_a_batch_is_sent_on_while_the_next_is_in_the_network(labeler, photos, monkeypatch):
    monkeypatch.setattr(local_engine, "_executor", threads)
    labeler = on_an_accelerator(labeler)
    events = []

    def start_forward(images):
        events.append("start")
        wait = type(labeler).start_forward(labeler, images)
        return lambda: events.append("wait") or wait()

    monkeypatch.setattr(labeler, "start_forward", start_forward)
    outcomes(label_jobs(jobs_of(photos), labeler, 0, 3))
    assert events == ["start", "start", "wait", "start", "wait", "wait"]


SIZES = {"a": (96, 96), "b": (96, 144), "c": (144, 96)}


def save_shapes(folder, kinds):
    """Photographs of ``SIZES``; x is none."""
    for number, kind in enumerate(kinds):
        file = folder / f"{number:02d}.png"
        save_image(file, photo(*SIZES.get(kind, (9, 9)), seed=number))
        if kind == "x":
            file.write_text("no image")
    return jobs_of(folder)


@pytest.fixture
def batches_of_shapes(labeler, monkeypatch):
    """A labeler whose grid has the photograph's shape, and the batches that it was given."""
    monkeypatch.setattr(local_engine, "_executor", threads)
    elsewhere, batches = on_an_accelerator(labeler), []
    elsewhere.config = dataclasses.replace(labeler.config, keep_aspect=True)
    names, real = {size: kind for kind, size in SIZES.items()}, elsewhere.start_forward

    def start_forward(images):
        batches.append("".join(names[image.height, image.width] for image in images))
        return real(images)

    elsewhere.start_forward = start_forward
    return elsewhere, batches


@pytest.mark.parametrize("workers", [0, 2])
def test_images_wait_for_others_of_their_shape(batches_of_shapes, tmp_path, workers):
    elsewhere, batches = batches_of_shapes
    jobs = save_shapes(tmp_path, "abaxcbaabb")
    found = outcomes(label_jobs(jobs, elsewhere, workers, 3))
    assert batches == ["aaa", "bbb", "c", "a", "b"]
    alone = tiny_labeler()
    alone.config = elsewhere.config
    assert found == outcomes(label_jobs(jobs, alone, 0, 1))  # in their order
    assert found[3] is ImageError


def test_batches_of_shapes_change_no_byte(batches_of_shapes, tmp_path):
    elsewhere, batches = batches_of_shapes
    save_shapes(tmp_path / "photos", "abaxcbaabb")
    images, outputs = list_images(tmp_path / "photos"), [tmp_path / f"{n}.json" for n in range(3)]
    label_images(images, outputs[0], elsewhere, "release", engine=LocalEngine(0, 1))
    label_images(images, outputs[1], elsewhere, "release", engine=LocalEngine(0, 3))
    for shard in (1, 0):
        how = {"engine": LocalEngine(0, 2), "shard": shard, "shards": 2}
        label_images(images, outputs[2], elsewhere, "release", **how)
    merge_labels(outputs[2])
    first, *others = (output.read_bytes() for output in outputs)
    assert [first] * 2 == others
    assert max(map(len, batches)) == 3


def test_a_rare_shape_holds_up_no_more_than_the_window(batches_of_shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(local_engine, "WINDOW", 2)
    elsewhere, batches = batches_of_shapes
    drawn = []
    jobs = (drawn.append(job) or job for job in save_shapes(tmp_path, "cbaaaaaa"))
    work = label_jobs(jobs, elsewhere, 0, 2)
    next(work)
    assert batches == ["aa", "c"]
    assert len(drawn) == 5  # the window, and one while the network is at work
    assert len(outcomes(work)) == 7
    assert batches == ["aa", "c", "aa", "b", "aa"]


def test_drawing_reads_the_upright_photograph_again(labeler, photos, tmp_path):
    (future,) = label_jobs([Job(photos / "0.png", tmp_path / "0.png")], labeler, 0, 1)
    assert future.result().records
    assert (tmp_path / "0.png").is_file()


class _Broken(Executor):
    """Workers that come to an end at the third job."""

    def __init__(self):
        self.taken = 0

    def submit(self, function, /, *arguments):
        self.taken += 1
        future = Future()
        if self.taken >= 3:
            future.set_exception(BrokenExecutor("died"))
        else:
            future.set_result(function(*arguments))
        return future


def test_a_run_ends_when_there_are_no_workers(labeler, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(local_engine, "_executor", lambda *_: contextlib.nullcontext(_Broken()))
    monkeypatch.setattr(local_engine, "_label", lambda job: labeler.label(photos / "0.png"))
    with pytest.raises(NotFinished, match=r"1b\.png"):
        label_images(
            list_images(photos), tmp_path / "l.json", labeler, "release", engine=LocalEngine(2)
        )
    assert not (tmp_path / "l.json").exists()


def test_too_little_shared_memory_is_refused(labeler, photos, monkeypatch, tmp_path):
    monkeypatch.setattr(local_engine, "SHARED_MEMORY", tmp_path)
    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(local_engine.shutil, "disk_usage", lambda _: free)
    with pytest.raises(UserError, match=r"\d MB .*--workers 0"):
        outcomes(label_jobs(jobs_of(photos), labeler, 2, 1))
    assert outcomes(label_jobs(jobs_of(photos)[:1], labeler, 0, 1)) != []
    # 64 features of 12 x 12 x 64 float32 and five batches of 20
    monkeypatch.setattr(local_engine, "_executor", threads)
    wanted = (64 + 100) * 12 * 12 * 64 * 4
    for free.free, refused in ((wanted, False), (wanted - 1, True)):
        work = label_jobs(jobs_of(photos), on_an_accelerator(labeler), 32, 20)
        with pytest.raises(UserError) if refused else contextlib.nullcontext():
            outcomes(work)


# Threads and workers


@pytest.mark.parametrize(
    ("cores", "images", "workers"),
    [(2, 1, 0), (2, 7, 0), (2, 8, 2), (16, 8, 2), (16, 20, 5), (16, 5000, 16), (1, 5000, 0)],
)
def test_default_workers(monkeypatch, cores, images, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    assert choose_workers(images) == workers


def test_default_workers_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert choose_workers(100) == 3


def test_one_thread_while_labelling_and_as_before_afterwards(labeler, photos, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    cv2.setNumThreads(2)
    work = label_jobs(jobs_of(photos), labeler, 0, 1)
    next(work)
    assert (torch.get_num_threads(), cv2.getNumThreads()) == (1, 1)
    assert os.environ["OMP_NUM_THREADS"] == os.environ["OPENBLAS_NUM_THREADS"] == "1"
    work.close()
    assert (torch.get_num_threads(), cv2.getNumThreads()) == (2, 2)
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "OPENBLAS_NUM_THREADS" not in os.environ


class ThreadCounter(ProMergeLabeler):
    """Fails with the number of threads and of the process."""

    @staticmethod
    def grid_masks(features, config):
        counts = (torch.get_num_threads(), cv2.getNumThreads(), os.environ["OMP_NUM_THREADS"])
        raise UserError(f"{counts} in {os.getpid()}")


def written(labeler, photos, output, workers, batch_size):
    shutil.rmtree(parts_of(output), ignore_errors=True)
    engine = LocalEngine(workers, batch_size)
    summary = label_images(list_images(photos), output, labeler, "release", engine=engine)
    assert [failure["file_name"] for failure in summary.failures] == ["1b.png", "9.png"]
    run = json.loads(output.with_suffix(".run.json").read_text())
    assert (run["workers"], run["batch_size"]) == (workers, batch_size)
    return output.read_bytes()


def test_workers_and_batches_change_no_byte(photos, tmp_path):
    labeler = tiny_labeler(refine="mean_field")
    first = written(labeler, photos, tmp_path / "0.json", 0, 1)
    assert len(json.loads(first)["annotations"]) >= 5
    for workers, batch_size in ((0, 3), (0, 4), (2, 4)):
        assert written(labeler, photos, tmp_path / "1.json", workers, batch_size) == first


@pytest.mark.slow
def test_other_numbers_of_workers_change_no_byte(photos, tmp_path):
    labeler = tiny_labeler(refine="mean_field")
    first = written(labeler, photos, tmp_path / "0.json", 0, 1)
    for workers, batch_size in ((1, 1), (4, 3)):
        assert written(labeler, photos, tmp_path / "1.json", workers, batch_size) == first
    elsewhere = on_an_accelerator(labeler)
    elsewhere.config = labeler.config
    for workers, batch_size in ((1, 3), (2, 4)):
        assert written(elsewhere, photos, tmp_path / "1.json", workers, batch_size) == first


@pytest.mark.slow
def test_workers_have_one_thread_each(photos):
    labeler = tiny_labeler(ThreadCounter)
    futures = label_jobs(jobs_of(photos)[:1], labeler, 2, 1)
    (message,) = (str(future.exception()) for future in futures)
    assert message.startswith("(1, 1, '1') in ")
    assert not message.endswith(f" {os.getpid()}")


class Dying(ProMergeLabeler):
    """Ends its process at images without an object."""

    @staticmethod
    def grid_masks(features, config):
        found = ProMergeLabeler.grid_masks(features, config)
        if found.reason:
            os.kill(os.getpid(), signal.SIGKILL)
        return found


@pytest.mark.slow
@pytest.mark.parametrize("accelerator", [False, True])
def test_an_image_that_kills_workers_fails_alone(photos, tmp_path, accelerator):
    save_image(photos / "3b.png", np.full((40, 50, 3), 90, np.uint8))
    labeler = tiny_labeler(Dying)
    if accelerator:
        labeler = on_an_accelerator(labeler, Dying)
    images, output = list_images(photos), tmp_path / "l.json"
    for again in (False, True):  # the second time with --retry-failed
        summary = label_images(
            images, output, labeler, "release", engine=LocalEngine(2, 3), retry_failed=again
        )
        assert [failure["file_name"] for failure in summary.failures] == [
            *("1b.png", "3b.png", "9.png")
        ]
        assert "a worker process died of it twice" in summary.failures[1]["error"]
        assert "signal 9 (Killed): out of memory?" in summary.failures[1]["error"]
    label_images(images, tmp_path / "mild.json", tiny_labeler(), "release")
    mild, hard = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("mild", "l"))
    assert hard["annotations"] == mild["annotations"]
    names = [image["file_name"] for image in mild["images"]]
    assert [i["file_name"] for i in hard["images"]] == [n for n in names if n != "3b.png"]


@pytest.mark.slow
def test_an_interrupt_ends_the_workers_too(tmp_path):
    weights = save_random_vit(get_backbone("dino_vits16"), tmp_path / "random.pth")
    for number in range(40):
        save_image(tmp_path / "photos" / f"{number}.png", photo(seed=number))
    command = [sys.executable, str(ROOT / "tools" / "label_images.py"), "--workers", "2"]
    command += ["--input", tmp_path / "photos", "--output", tmp_path / "labels.json"]
    command += ["--backbone", "dino_vits16", "--weights", weights, "--overlays", tmp_path / "o"]
    command += ["--grid", "30"]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background job ignores SIGINT; its own group, as a terminal would signal it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        start_new_session=True,
    ) as process:
        while process.poll() is None and not list(tmp_path.glob("o/*.png")):
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        started = time.monotonic()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: interrupted by SIGINT; what is finished is kept: run the same" in said
    assert "Traceback" not in said
    assert time.monotonic() - started < 20
    with pytest.raises(ProcessLookupError):
        wait_for_the_end_of_all(process.pid)
    assert not (tmp_path / "labels.json").exists()


def wait_for_the_end_of_all(group):
    for _ in range(100):  # multiprocessing's resource tracker goes last
        os.killpg(group, 0)  # raises when nobody is left
        time.sleep(0.1)


def resident(process):
    """Resident memory of a process and those below it, in MB; 0 for one that has just ended."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6 + sum(resident(int(c)) for c in children)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads Linux's /proc")
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_is_flat_over_two_thousand_images(labeler, tmp_path, workers):
    files = [save_image(tmp_path / f"{n}.png", photo(48, 72, (42, 8, 60, 24), n)) for n in range(9)]
    jobs = (Job(files[n % 9]) for n in range(2000))
    used = [resident(os.getpid()) for _ in label_jobs(jobs, labeler, workers, 4)]
    assert len(used) == 2000
    early, late = np.median(used[900:1100]), np.median(used[1800:])  # all workers have started
    assert late - early < 10  # MB; the features alone of 800 images are 29
