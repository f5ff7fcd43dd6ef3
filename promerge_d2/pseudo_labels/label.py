"""Label a list of images into one COCO JSON."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import importlib.metadata
import logging
import os
import platform
import sys
import time
import traceback
from concurrent.futures import BrokenExecutor, Future
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import cv2

import promerge_d2
from promerge_d2.labeler import Labeler, LabelResult
from promerge_d2.pseudo_labels.inputs import ImageList
from promerge_d2.pseudo_labels.pipeline import Job, label_jobs
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import check_writable, write_json
from promerge_d2.utils.progress import progress

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
    labeler: Labeler,
    preset: str,
    overlays: str | os.PathLike | None = None,
    workers: int = 0,
    batch_size: int = 1,
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
        workers: processes beside this one; 0 does all here. See ``label_jobs``.
        batch_size: images that go through an accelerator at once. On a CPU neither number
            changes a byte of ``output``.

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
    # the overlay's name holds the whole name: a.jpg and a.png differ, and no input is overwritten
    jobs = (
        Job(images.path(name), None if overlays is None else Path(overlays) / f"{name}.png")
        for name in images.names
    )
    with closing(label_jobs(jobs, labeler, workers, batch_size)) as futures:
        work = progress(
            zip(images.names, futures, strict=True),
            desc="labelling",
            unit="image",
            total=len(images.names),
        )
        for image_id, (name, future) in enumerate(work, start=1):
            result = _take(name, future, summary)
            if result is None:
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
    run = _describe_run(images, labeler, summary, started)
    write_json(run_file, {**run, "workers": workers, "batch_size": batch_size}, indent=1)
    return summary


def _take(name: str, future: Future[LabelResult], summary: RunSummary) -> LabelResult | None:
    """An image's result, or None if it failed, which is noted."""
    try:
        return future.result()
    except BrokenExecutor as error:
        raise UserError(
            f"a worker process died at {name} (out of memory?); try again with fewer workers"
        ) from error
    except UserError as error:
        logger.error("failed: %s: %s", name, error)
        summary.failures.append({"file_name": name, "error": str(error)})
    except Exception as error:  # no image may end the run for the others
        logger.exception("failed: %s", name)
        summary.failures.append(
            {
                "file_name": name,
                "error": f"{type(error).__name__}: {error}",
                "traceback": traceback.format_exc(),
            }
        )
    return None


def describe(labeler: Labeler, preset: str) -> dict:
    """Everything that the masks follow from, besides the images; the ``info`` of a label file."""
    extractor = labeler.extractor
    backbone = extractor.backbone
    return {
        "description": f"{labeler.title} pseudo-labels; features: {backbone.training}",
        "version": promerge_d2.__version__,
        "labeler": labeler.name,
        "preset": preset,
        "settings": dataclasses.asdict(labeler.config),
        "backbone": {
            "name": backbone.name,
            "training": backbone.training,
            "licence": backbone.licence,
            "weights_sha256": extractor.weights_sha256,
            "facet": extractor.facet,
            "center": extractor.center,
            "precision": extractor.precision,
        },
    }


def _describe_run(images: ImageList, labeler: Labeler, summary: RunSummary, started: float) -> dict:
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
