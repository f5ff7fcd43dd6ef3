"""Label the same images at several settings and score each against a ground truth.

Features are computed once and kept (``Cache``). A point is one call of the labeler for each image,
in worker processes of one thread each, so that their number changes no figure but ``seconds``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablations.cache import Cache, key_of
from benchmarks.ablations.results import Results, Row
from benchmarks.measure import fresh_processes, spread
from promerge_d2.coco.ground_truth import GroundTruth, read_ground_truth
from promerge_d2.coco.predictions import read_predictions
from promerge_d2.coco.read import CocoSource
from promerge_d2.evaluation import align_predictions, check_iou_types, match_instances, metrics_of
from promerge_d2.labeler import GridConfig, ImageFeatures, Labeler, LabelResult
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import sha256_of
from promerge_d2.utils.progress import progress
from promerge_d2.utils.threads import one_thread

METRICS = ("AP", "AR100", "ARs", "ARm", "ARl")
FIGURES = ("masks", "empty", *METRICS, "precision", "recall", "seconds")
"""Columns of a row after those of its point.

``masks`` an image; ``empty``, the share of images without any; COCO's figures; ``precision`` and
``recall`` at IoU 0.5 with COCO's matching (``score_point``); ``seconds`` of the median image from
features to masks on the grid. All but ``masks`` and ``seconds`` in per cent.
"""


@dataclass(frozen=True)
class Point:
    """One row of an experiment.

    Attributes:
        columns: what tells it from the other rows.
        settings: of the labeler, as text, in place of those that it has.
    """

    columns: dict[str, str]
    settings: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.columns.items())


@dataclass(frozen=True)
class LabelledImages:
    """Images with their ground truth.

    Attributes:
        files: in the order of the ground truth's images.
        sha256: of each file.
        truth: the ground truth of these images and no others.
    """

    files: tuple[Path, ...]
    sha256: tuple[str, ...]
    truth: GroundTruth

    @classmethod
    def read(cls, folder: Path, annotations: Path, count: int | None = None) -> LabelledImages:
        """Read a ground truth and find its images.

        Args:
            folder: that the file names of the ground truth are relative to.
            annotations: COCO JSON; if its objects have no masks, boxes are scored.
            count: take so many images, spread evenly; None takes all.

        Raises:
            UserError: an unreadable ground truth, an image without a name, or not in the folder.
        """
        truth = read_ground_truth(annotations)
        if count is not None:
            ids = list(truth.images)
            truth = truth.restricted_to({ids[place] for place in spread(len(ids), count)})
        files = []
        for image in truth.images.values():
            if image.file_name is None:
                raise UserError(f"{annotations}: the image {image} has no file_name")
            files.append(folder / image.file_name)
            if not files[-1].is_file():
                raise UserError(
                    f"{annotations} lists {image.file_name}, which is not in {folder}; name the "
                    "folder that its file names are relative to"
                )
        return cls(tuple(files), tuple(map(sha256_of, files)), truth)

    @property
    def iou_type(self) -> str:
        """Say whether masks (``segm``) or boxes (``bbox``) are scored."""
        return "bbox" if self.truth.box_only else "segm"

    def describe(self) -> dict[str, Any]:
        """Describe what tells these images and objects from others."""
        images = list(zip(self.truth.images, self.sha256, strict=True))
        objects = [(o.image_id, o.box, o.rle, o.area, o.crowd) for o in self.truth.objects]
        return {
            "images": len(self.files),
            "iou_type": self.iou_type,
            "sha256": hashlib.sha256(repr((images, objects)).encode()).hexdigest(),
        }


def sweep(
    results: Results,
    points: Iterable[Point],
    labeler: Labeler,
    images: LabelledImages,
    cache_folder: Path,
    workers: int = 0,
) -> None:
    """Compute the rows that are not there yet, and add each to ``results`` when it is done.

    Args:
        results: gets the rows, in the order of the points.
        points: what to compute.
        labeler: with the settings that hold where a point says nothing.
        images: what to label.
        cache_folder: for features and refined masks.
        workers: processes beside this one; 0 does all here. A network on an accelerator stays in
            this process.

    Raises:
        UserError: a setting that the labeler does not have, an unreadable image, a dead worker.
    """
    missing = [point for point in points if not results.has(point.columns)]
    configs = [override(labeler.config, point.settings) for point in missing]
    if not missing:
        return
    with keep_features(labeler, images, cache_folder, workers, results.file.stem) as kept:
        for point, config in zip(missing, configs, strict=True):
            found = kept.map(str(point), partial(_label, kept.cache, type(labeler), config))
            results.add({**point.columns, **score_point(images, found)})


@dataclass(frozen=True)
class KeptFeatures:
    """Images whose features are kept on disk, and the processes that work on them.

    Attributes:
        cache: holds them.
        keys: of the images, in their order.
        map_all: ``map``, or that of a pool.
        name: of the experiment, for the bar.
    """

    cache: Cache
    keys: Sequence[str]
    map_all: Any
    name: str

    def map(self, row: str, work: Callable[..., Any], *more: Iterable) -> list[Any]:
        """Call ``work`` with each image's key and what ``more`` has for it, for a row's sake."""
        done = self.map_all(work, self.keys, *more)
        bar = progress(done, total=len(self.keys), unit="image", desc=f"{self.name}: {row}")
        return list(bar)


@contextmanager
def keep_features(
    labeler: Labeler, images: LabelledImages, cache_folder: Path, workers: int, name: str
) -> Iterator[KeptFeatures]:
    """Compute the features of images that are not on disk yet; give them and their processes.

    Args:
        labeler: whose network.
        images: what to label.
        cache_folder: see ``sweep``.
        workers: see ``sweep``.
        name: of the experiment, for the bar.

    Yields:
        The images' keys, and a ``map`` over the processes.
    """
    cache = Cache.of(labeler.extractor, cache_folder)
    theirs = workers > 0 and labeler.extractor.device.type == "cpu"  # each has a network
    with ExitStack() as stack:
        map_all: Any = map
        if workers:
            given = labeler if theirs else None
            pool = stack.enter_context(fresh_processes(workers, _keep_labeler, given))
            map_all = pool.map
        stack.enter_context(one_thread())
        extract = partial(_extract, cache, None if theirs else labeler)
        keys = (map_all if theirs else map)(extract, images.files)
        bar = progress(keys, total=len(images.files), unit="image", desc=f"{name}: features")
        yield KeptFeatures(cache, list(bar), map_all, name)


def override(config: GridConfig, settings: dict[str, str]) -> GridConfig:
    """Replace settings, given as text, of a labeler's configuration.

    Raises:
        UserError: a name that it does not have, or a bad value.
    """
    own = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return type(config).from_preset(None, **{**own, **settings})


def score_point(images: LabelledImages, found: Sequence[LabelResult]) -> Row:
    """Score the masks of a point.

    Precision is the share of predictions that match an object at IoU 0.5 or more, recall that of
    objects that are matched; each object and each prediction matches once, higher scores first,
    and what matches a crowd region counts neither way (COCO's rules).

    Args:
        images: of the ground truth.
        found: an image's masks, for each image.

    Returns:
        ``FIGURES`` as text; empty where there is nothing to take a share of.
    """
    records = [
        {"image_id": image_id, **record}
        for image_id, result in zip(images.truth.images, found, strict=True)
        for record in result.records
    ]
    source = CocoSource.of(records, "the masks found")
    predictions = align_predictions(read_predictions(source), images.truth)
    check_iou_types(images.truth, predictions, [images.iou_type])
    matches = match_instances(images.truth, predictions, images.iou_type)
    metrics = metrics_of(matches)
    counted = ~matches.ignored[0, 0]
    hits = np.count_nonzero(matches.hit[0, 0] & counted)
    empty = sum(not result.records for result in found)
    return {
        "masks": f"{len(records) / len(found):.2f}",
        "empty": _percent(empty, len(found)),
        **{name: "" if metrics[name] < 0 else f"{metrics[name]:.4f}" for name in METRICS},
        "precision": _percent(hits, np.count_nonzero(counted)),
        "recall": _percent(hits, matches.objects[0].sum()),
        "seconds": f"{np.median([result.seconds['masks'] for result in found]):.4f}",
    }


def _percent(part: np.integer | int, whole: np.integer | int) -> str:
    return f"{100 * part / whole:.2f}" if whole else ""


# Processes

_labeler: Labeler | None = None  # a worker's own, for features


def _keep_labeler(labeler: Labeler | None) -> None:
    global _labeler
    _labeler = labeler


def _extract(cache: Cache, labeler: Labeler | None, file: Path) -> str:
    """Put an image's features into the cache unless they are there; return its key."""
    labeler = labeler or _labeler
    assert labeler is not None
    decoded = labeler.processor.preprocess(file)
    key = key_of(decoded)
    if cache.load(key) is None:
        (prepared,) = labeler.forward([decoded])
        cache.store(key, prepared)
    return key


def _label(cache: Cache, kind: type[Labeler], config: GridConfig, key: str) -> LabelResult:
    """Do all that comes after the features."""
    prepared = load_features(cache, key)
    with cache.refined_once(key, config.refine) as refiner:
        return kind.postprocess(prepared, config, refiner)


def load_features(cache: Cache, key: str) -> ImageFeatures:
    """Read an image after the network.

    Raises:
        UserError: it is gone.
    """
    prepared = cache.load(key)
    if prepared is None:
        raise UserError(f"{cache.features_file(key)} went while it was in use; start again")
    return prepared
