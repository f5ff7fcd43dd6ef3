"""Match detections to objects, and compute AP and AR of any mix of the images from the matches.

``COCOeval`` (pycocotools, or hotcoco with the same results) matches detections to objects image by
image. Its results are kept as bits, its dictionaries are not, so a million detections fit. The
accumulation is that of ``COCOeval.accumulate`` and ``summarize``, to the last bit, for one mix of
images or for many at once, each image counted a number of times.

Shapes: ``I`` images, ``D`` detections, ``A`` area ranges (all, small, medium, large), ``T`` IoU
thresholds (0.50, 0.55, ... 0.95), ``R`` recall points (0, 0.01, ... 1), ``B`` mixes of images.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import coco, cocoeval

from promerge_d2.coco.ground_truth import GroundTruth
from promerge_d2.coco.records import ImageId
from promerge_d2.coco.table import InstanceTable
from promerge_d2.evaluation.align import Predictions
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.progress import late_progress

METRICS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),  # in the order of COCOeval's stats
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
    "P5",  # precision of the five best of each image at IoU 0.5 (our own)
)
IOU_TYPES = ("bbox", "segm")
KINDS = {"segm": "mask", "bbox": "box"}  # in tables
BACKENDS = ("pycocotools", "hotcoco")
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)

_AREAS = 4
_DETECTIONS = 100  # COCO's number: AP and AR by size count no more an image
_IMAGES_AT_ONCE = 500  # for COCOeval, whose dictionaries take some 20 kB an image
_CELLS_AT_ONCE = 4_000_000  # of the (B, D) tables


@dataclass(frozen=True)
class Matches:
    """The matched detections of a data set, best score first.

    Equal scores stand in the order of their images, and within an image in that of the file.

    Attributes:
        image_ids: ids of the ``I`` images, ascending.
        max_detections: how many an image were kept.
        image: (D,) int32, the index of the detection's image.
        rank: (D,) int32, its place among the detections of its image, from 0.
        score: (D,) float64.
        hit: (A, T, D) bool, whether it is matched.
        ignored: (A, T, D) bool, whether it counts neither as right nor as wrong.
        objects: (A, I) int64, objects that count.
    """

    image_ids: list[ImageId]
    max_detections: int
    image: np.ndarray
    rank: np.ndarray
    score: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the figures: ``METRICS``, and AR at ``max_detections`` if more than 100."""
        more = self.max_detections > _DETECTIONS
        return (*METRICS, f"AR{self.max_detections}") if more else METRICS

    def figures(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Score mixes of the images.

        Args:
            weights: (B, I) integers, how often each image counts; None: all images once.

        Returns:
            (B, len(metrics)) float64 in per cent, NaN where there is no object (of that size).
        """
        if weights is None:
            weights = np.ones((1, len(self.image_ids)), np.int64)
        curves = [self.precision(area, weights) for area in range(len(self.objects))]
        columns = [curves[0], curves[0][:, 0], curves[0][:, 5], *curves[1:]]
        columns += [self.recall(0, count, weights) for count in (1, 10, _DETECTIONS)]
        columns += [self.recall(area, _DETECTIONS, weights) for area in (1, 2, 3)]
        columns.append(self.precision_of_best(5, weights))
        if len(self.metrics) > len(METRICS):
            columns.append(self.recall(0, self.max_detections, weights))
        means = [values.reshape(len(weights), -1).mean(axis=1) for values in columns]
        return np.stack(means, axis=1) * 100

    def recall(self, area: int, count: int, weights: np.ndarray) -> np.ndarray:
        """Return the recall of each image's ``count`` best: (B, T), NaN without objects."""
        counted = self.hit[area] & ~self.ignored[area] & (self.rank < count)
        hits = np.stack(
            [np.bincount(self.image[row], minlength=len(self.image_ids)) for row in counted]
        )
        objects = (weights @ self.objects[area])[:, None]
        nothing = np.full((len(weights), len(hits)), np.nan)
        return np.divide(weights @ hits.T, objects, out=nothing, where=objects > 0)

    def precision_of_best(self, count: int, weights: np.ndarray) -> np.ndarray:
        """Return the share of hits at IoU 0.5 among each image's ``count`` best: (B,).

        Detections that count neither as right nor as wrong are left out; NaN without any, or
        without objects.
        """
        counted = ~self.ignored[0, 0] & (self.rank < count)
        length = len(self.image_ids)
        hits = weights @ np.bincount(self.image[counted & self.hit[0, 0]], minlength=length)
        total = weights @ np.bincount(self.image[counted], minlength=length)
        some = (total > 0) & (weights @ self.objects[0] > 0)
        return np.divide(hits, total, out=np.full(len(weights), np.nan), where=some)

    def precision(self, area: int, weights: np.ndarray) -> np.ndarray:
        """Return interpolated precision at the recall points: (B, T, R), NaN without objects."""
        curves = np.zeros((len(weights), len(THRESHOLDS), len(RECALLS)))
        objects = weights @ self.objects[area]
        kept = self.rank < _DETECTIONS
        step = max(1, _CELLS_AT_ONCE // max(1, len(self.image)))
        for t in range(len(THRESHOLDS)):
            counted = np.flatnonzero(kept & ~self.ignored[area, t])
            right = np.flatnonzero(self.hit[area, t, counted])
            if not len(right):
                continue
            images = self.image[counted[: right[-1] + 1]]  # beyond the last hit nothing counts
            for start in range(0, len(weights), step):
                total = np.cumsum(weights[start : start + step, images], axis=1)[:, right]
                hits = np.cumsum(weights[start : start + step, images[right]], axis=1)
                precision = hits / (total + np.spacing(1))
                best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
                for b in range(len(hits)):
                    if objects[start + b]:
                        places = np.searchsorted(hits[b] / objects[start + b], RECALLS)
                        reached = places < len(right)
                        curves[start + b, t, reached] = best[b, places[reached]]
        curves[objects == 0] = np.nan
        return curves

    def image_ap(self) -> np.ndarray:
        """Return the AP of each image alone in per cent: (I,), NaN where it has no object."""
        order = np.argsort(self.image, kind="stable")
        ends = np.searchsorted(self.image[order], np.arange(len(self.image_ids) + 1))
        once = np.ones((1, 1), np.int64)
        values = np.full(len(self.image_ids), np.nan)
        for i in np.flatnonzero(self.objects[0]):
            own = order[ends[i] : ends[i + 1]]
            alone = Matches(
                self.image_ids[i : i + 1],
                self.max_detections,
                np.zeros(len(own), np.int32),
                self.rank[own],
                self.score[own],
                self.hit[:1, :, own],
                self.ignored[:1, :, own],
                self.objects[:1, i : i + 1],
            )
            values[i] = alone.precision(0, once).mean() * 100
        return values


# of an image: its index, score (D,), hit and ignored (A, T, D), objects (A,)
_ImageMatches = tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def match_instances(
    ground_truth: GroundTruth,
    predictions: Predictions,
    iou_type: str,
    max_detections: int = _DETECTIONS,
    backend: str = "pycocotools",
) -> Matches:
    """Match predictions to the objects of a ground truth.

    Args:
        ground_truth: from ``read_ground_truth``.
        predictions: from ``align_predictions`` with this ground truth.
        iou_type: ``bbox`` or ``segm``; masks must be there for the latter.
        max_detections: how many an image are matched, the best first; at least 100.
        backend: ``pycocotools``, or ``hotcoco``, which is faster and has to be installed.

    Returns:
        The matched detections, from which any figure follows.

    Raises:
        UserError: a backend that is unknown or not installed.
    """
    engine = _engine(backend)
    # ids of any type become 1, 2, ... in ascending order, which is the order of COCOeval
    index = {image_id: i for i, image_id in enumerate(ground_truth.images)}
    found = predictions.instances
    size = found.area if iou_type == "segm" else found.box[:, 2] * found.box[:, 3]
    sides = []
    for table, area in ((ground_truth.objects, ground_truth.objects.area), (found, size)):
        image = np.array([index.get(i, -1) for i in table.image_ids], np.int32)[table.image]
        order = np.argsort(image, kind="stable")
        if iou_type == "segm" and (maskless := table.without_mask):
            order = order[~np.isin(order, maskless)]
        sides.append((table, area, order, image[order]))
    sizes = [(image.height, image.width) for image in ground_truth.images.values()]
    per_image = []
    starts = range(0, len(index), _IMAGES_AT_ONCE)
    for start in late_progress(starts, desc=f"matching {iou_type}", unit="batch"):
        stop = min(start + _IMAGES_AT_ONCE, len(index))
        images = [
            {"id": i + 1, "height": sizes[i][0], "width": sizes[i][1]} for i in range(start, stop)
        ]
        records = []
        for table, area, order, image in sides:
            some = slice(*np.searchsorted(image, (start, stop)))
            records.append(_records(table, area, order[some], image[some], iou_type))
        truth, guesses = records
        per_image += _evaluate(engine, images, truth, guesses, iou_type, max_detections)
    return _gather(per_image, list(index), max_detections)


def _engine(backend: str) -> tuple[type, type]:
    if backend == "pycocotools":
        return coco.COCO, cocoeval.COCOeval
    if backend not in BACKENDS:
        raise UserError(f"unknown backend {backend!r}; choose from {', '.join(BACKENDS)}")
    try:
        import hotcoco
    except ModuleNotFoundError as error:
        raise UserError(
            "the backend hotcoco is not installed: pip install hotcoco, or use pycocotools"
        ) from error
    return hotcoco.COCO, hotcoco.COCOeval


def _evaluate(
    engine: tuple[type, type],
    images: list[dict[str, int | None]],
    truth: list[dict[str, Any]],
    found: list[dict[str, Any]],
    iou_type: str,
    max_detections: int,
) -> list[_ImageMatches]:
    """Run ``COCOeval`` on some images; return the matches of those with anything on them."""
    api, evaluator = engine
    sides = []
    for records in (truth, found):
        side = api()
        side.dataset = {
            "images": images,
            "categories": [{"id": 1, "name": "object"}],
            "annotations": records,
        }
        sides.append(side)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        for side in sides:
            side.createIndex()
        run = evaluator(*sides, iou_type)
        run.params.maxDets = [1, 10, max_detections]
        run.evaluate()
    by_image: dict[int, list[dict[str, Any]]] = {}  # for each image its area ranges in order
    for match in run.evalImgs:
        if match is not None:
            by_image.setdefault(match["image_id"], []).append(match)
    return [_compact(per_area) for per_area in by_image.values()]


def _compact(per_area: Sequence[dict[str, Any]]) -> _ImageMatches:
    first = per_area[0]
    return (
        first["image_id"] - 1,
        np.array(first["dtScores"], np.float64),
        np.stack([np.asarray(match["dtMatches"]) > 0 for match in per_area]),
        np.stack([np.asarray(match["dtIgnore"], bool) for match in per_area]),
        np.array([np.count_nonzero(np.equal(match["gtIgnore"], 0)) for match in per_area]),
    )


def _gather(
    per_image: Sequence[_ImageMatches], image_ids: list[ImageId], max_detections: int
) -> Matches:
    shape = (_AREAS, len(THRESHOLDS))
    objects = np.zeros((_AREAS, len(image_ids)), np.int64)
    for index, *_, counts in per_image:
        objects[:, index] = counts
    indices, scores, hits, ignores, _ = zip(*per_image, strict=True) if per_image else [()] * 5
    score = np.concatenate([np.zeros(0), *scores])
    order = np.argsort(-score, kind="stable")
    lengths = [len(one) for one in scores]
    image = np.repeat(np.array(indices, np.int32), lengths)
    rank = np.concatenate([np.zeros(0, np.int32), *(np.arange(n, dtype=np.int32) for n in lengths)])
    hit, ignored = (
        np.concatenate([np.zeros((*shape, 0), bool), *parts], axis=2)[:, :, order]
        for parts in (hits, ignores)
    )
    return Matches(
        image_ids, max_detections, image[order], rank[order], score[order], hit, ignored, objects
    )


def _records(
    table: InstanceTable, area: np.ndarray, rows: np.ndarray, image: np.ndarray, iou_type: str
) -> list[dict[str, Any]]:
    """Return rows of a table as ``COCOeval`` takes them; ``image``: index of each one's image."""
    columns = zip(
        range(1, len(rows) + 1),  # COCOeval reads the annotation id 0 as "no match"
        (image + 1).tolist(),
        table.box[rows].tolist(),
        area[rows].tolist(),
        table.crowd[rows].tolist(),
        table.score[rows].tolist(),
        strict=True,
    )
    records = [
        {
            "id": number,
            "image_id": image_id,
            "category_id": 1,
            "bbox": box,
            "area": size,
            "iscrowd": int(crowd),
            "score": score,
        }
        for number, image_id, box, size, crowd, score in columns
    ]
    if iou_type == "segm":
        sizes = table.size[rows].tolist()
        for record, row, size in zip(records, rows.tolist(), sizes, strict=True):
            record["segmentation"] = {"size": size, "counts": table.masks[row]}
    return records
