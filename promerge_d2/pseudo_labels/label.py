"""Label a list of images into one COCO JSON."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import importlib.metadata
import logging
import multiprocessing
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import cv2

import promerge_d2
from promerge_d2.labeler import LabelerConfig, LabelResult, ProMergeLabeler
from promerge_d2.labeler.promerge import Prepared, finish
from promerge_d2.pseudo_labels.inputs import ImageList
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import check_writable, write_json
from promerge_d2.utils.progress import progress
from promerge_d2.visualization.overlay import draw_records, save_png

logger = logging.getLogger(__name__)

CATEGORIES = [{"id": 1, "name": "object"}]


@dataclass
class RunSummary:
    """What happened to the images of a run.

    Attributes:
        images: images processed, with or without masks.
        masks: masks found.
        reasons: how many images have no mask, by reason.
        failures: name and message of every image that could not be processed.
        seconds: time by stage, summed over images.
    """

    images: int = 0
    masks: int = 0
    reasons: collections.Counter = field(default_factory=collections.Counter)
    failures: list[dict[str, str]] = field(default_factory=list)
    seconds: collections.Counter = field(default_factory=collections.Counter)


def label_images(
    images: ImageList,
    output: str | os.PathLike,
    labeler: ProMergeLabeler,
    preset: str,
    overlays: str | os.PathLike | None = None,
    workers: int = 0,
) -> RunSummary:
    """Label images and write ``output`` (COCO JSON) and, beside it, ``*.run.json``.

    ``output`` holds nothing but what follows from the images and the settings, so that equal work
    gives equal bytes; command, machine, times and failures go to ``*.run.json``. Image ids are
    places in the list, from 1, so that a failed image shifts no other's. An image that cannot be
    processed is named in the log and in ``*.run.json``; the others go on.

    Args:
        images: what to label.
        output: the JSON to write; parent folders are made.
        labeler: finds the masks.
        preset: name of the labeler's preset, for the record.
        overlays: folder for a PNG an image (its name + ``.png``), or None.
        workers: processes that refine and encode while this one computes features; 0 does all
            here. The masks are the same.

    Returns:
        The summary.

    Raises:
        UserError: ``output`` or ``overlays`` cannot be written.
    """
    output = Path(output)
    run_file = output.with_name(f"{output.stem}.run.json")
    check_writable(output)
    check_writable(run_file)
    if overlays is not None:
        check_writable(Path(overlays) / "picture.png")
    summary = RunSummary()
    coco_images: list[dict] = []
    annotations: list[dict] = []
    started = time.time()
    work = _results(images, labeler, overlays, workers)
    for image_id, (name, future) in enumerate(
        progress(work, desc="labelling", unit="image", total=len(images.names)), start=1
    ):
        try:
            result = future.result()
        except BrokenExecutor as error:
            raise UserError(
                f"a worker process died at {name} (out of memory?); try again with fewer workers"
            ) from error
        except UserError as error:
            logger.error("failed: %s: %s", name, error)
            summary.failures.append({"file_name": name, "error": str(error)})
            continue
        except Exception as error:  # no image may end the run for the others
            logger.exception("failed: %s", name)
            summary.failures.append(
                {
                    "file_name": name,
                    "error": f"{type(error).__name__}: {error}",
                    "traceback": traceback.format_exc(),
                }
            )
            continue
        image = {
            "id": image_id,
            "file_name": name,
            "width": result.width,
            "height": result.height,
        }
        if result.reason is not None:
            image["reason"] = result.reason
            summary.reasons[result.reason] += 1
        coco_images.append(image)
        for record in result.records:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORIES[0]["id"],
                    "iscrowd": 0,
                    **record,
                }
            )
        summary.seconds.update(result.seconds)
    summary.images, summary.masks = len(coco_images), len(annotations)
    write_json(
        output,
        {
            "info": describe(labeler, preset),
            "images": coco_images,
            "annotations": annotations,
            "categories": CATEGORIES,
        },
    )
    write_json(run_file, _describe_run(images, labeler, summary, started), indent=1)
    return summary


def _results(
    images: ImageList,
    labeler: ProMergeLabeler,
    overlays: str | os.PathLike | None,
    workers: int,
) -> Iterator[tuple[str, Future[LabelResult]]]:
    """Names with their results to come, in the list's order; few images are under way at once."""
    pending: collections.deque[tuple[str, Future[LabelResult]]] = collections.deque()
    with ExitStack() as stack:
        pool = None
        if workers:
            pool = stack.enter_context(
                ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
            )
        for name in images.names:
            # the whole name: a.jpg and a.png differ, and no input is overwritten
            overlay = None if overlays is None else Path(overlays) / f"{name}.png"
            future: Future[LabelResult] = Future()
            try:
                prepared = labeler.prepare(images.path(name))
                if pool is not None:
                    future = pool.submit(_finish, prepared, labeler.config, overlay)
                else:
                    future.set_result(_finish(prepared, labeler.config, overlay))
            except Exception as error:  # noqa: BLE001 - raised again where the result is taken
                future.set_exception(error)
            pending.append((name, future))
            if len(pending) > 2 * workers:
                yield pending.popleft()
        yield from pending


def _finish(prepared: Prepared, config: LabelerConfig, overlay: Path | None) -> LabelResult:
    result = finish(prepared, config)
    if overlay is not None:
        save_png(overlay, draw_records(prepared.pixels, result.records))
    return result


def describe(labeler: ProMergeLabeler, preset: str) -> dict:
    """Everything that the masks follow from, besides the images; the ``info`` of a label file."""
    extractor = labeler.extractor
    backbone = extractor.backbone
    return {
        "description": f"ProMerge pseudo-labels; features: {backbone.training}",
        "version": promerge_d2.__version__,
        "labeler": "promerge",
        "preset": preset,
        "settings": dataclasses.asdict(labeler.config),
        "backbone": {
            "name": backbone.name,
            "training": backbone.training,
            "licence": backbone.licence,
            "weights_sha256": extractor.weights_sha256,
            "facet": extractor.facet,
            "center": extractor.center,
        },
    }


def _describe_run(
    images: ImageList, labeler: ProMergeLabeler, summary: RunSummary, started: float
) -> dict:
    packages = ("torch", "timm", "numpy", "pillow", "scipy", "pycocotools")
    return {
        "command": sys.argv,
        "host": platform.node(),
        "machine": platform.platform(),
        "device": str(labeler.extractor.device),
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
