"""The labels of the next round: confident predictions, and old masks that they do not repeat.

The released merge without its quirks (docs/recipe.md): ``area`` is the mask's, width and height are
where they belong, nothing needs a GPU, and masks of another size than their image are refused.

Shape letters: P predictions, Q old masks of an image. Masks are RLE of the upright photograph.
"""

from __future__ import annotations

import collections
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from pycocotools import mask as mask_api

from promerge_d2.coco.fields import Tally
from promerge_d2.coco.index import CocoIndex
from promerge_d2.coco.read import CocoSource, why_useless
from promerge_d2.coco.records import ImageInfo, name_key
from promerge_d2.coco.write import coco_writer
from promerge_d2.pseudo_labels.inputs import ImageFile, ImageList
from promerge_d2.pseudo_labels.store import guard_write
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import sha256_of
from promerge_d2.version import __version__

NOTHING = "no_mask_in_any_round"


@dataclass(frozen=True)
class Rules:
    """Which predictions and which old masks become labels.

    Attributes:
        min_score: the lowest score of a prediction that is kept.
        max_iou: an old mask stays where its mask IoU with every kept prediction is below this.
        share: of all predictions of at least ``min_score``, keep this share, the highest scores
            over all images (with ties); None for all. Our own.
        per_image: keep at most so many of an image, the highest scores; None for all. Our own.
        agree: old masks and predictions are brought to one scale of scores, and what both found
            counts more, see ``agreed``. Our own.
    """

    min_score: float = 0.7
    max_iou: float = 0.5
    share: float | None = None
    per_image: int | None = None
    agree: bool = False

    def __post_init__(self) -> None:
        for name in ("min_score", "max_iou", "share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"the {name.replace('_', ' ')} is {value}; it lies in 0 to 1")
        if self.share == 0:
            raise UserError("a share of 0 keeps no prediction; take more")
        if self.per_image is not None and self.per_image < 1:
            raise UserError(f"{self.per_image} predictions an image are none; take 1 or more")


def new_and_old(
    predictions: Sequence[dict], old: Sequence[dict], rules: Rules
) -> tuple[list[dict], list[dict]]:
    """Kept predictions, the highest score first, and the old masks that none of them repeats.

    Example: a prediction that covers 6 of the 10 pixels of an old mask and nothing else has an
    IoU of 0.6 with it and takes its place; one that covers 4 of them stands beside it.

    Args:
        predictions: P records with ``segmentation`` (compressed RLE) and ``score``.
        old: Q records with ``segmentation``; crowds (``iscrowd`` 1) always stay.
        rules: ``max_iou`` and ``per_image`` are used.

    Returns:
        Predictions in order, then old masks in theirs; all old ones where P is 0.
    """
    predictions = sorted(predictions, key=lambda p: -p["score"])[: rules.per_image]
    if not predictions or not old:
        return predictions, list(old)
    best = _iou(predictions, old).max(axis=0)
    return predictions, [
        record
        for record, iou in zip(old, best, strict=True)
        if iou < rules.max_iou or record.get("iscrowd")
    ]


def agreed(
    predictions: Sequence[dict], old: Sequence[dict], rules: Rules, calibrate: Calibration
) -> tuple[list[dict], list[dict]]:
    """Masks of both sides with the mean of their scores; what one side has not found has 0 there.

    A prediction and an old mask are the same where their IoU is ``max_iou`` or more, each with at
    most one, the best predictions first. The old mask stays: a labeler's borders are finer than a
    detector's.

    Example: an old mask of 0.4 is half as sure, 0.2, where no prediction repeats it; where one
    does whose score is worth 0.3, it is 0.35.

    Args:
        predictions: P records with ``segmentation`` (compressed RLE) and ``score``.
        old: Q records alike; crowds (``iscrowd`` 1) stay as they are.
        rules: ``max_iou`` and ``per_image`` are used.
        calibrate: brings a prediction's score to the scale of the old ones.

    Returns:
        Predictions that repeat no old mask, in order, and all old masks, in theirs.
    """
    predictions = sorted(predictions, key=lambda p: -p["score"])[: rules.per_image]
    worth = [calibrate(prediction["score"]) for prediction in predictions]
    scores = [record["score"] / 2 for record in old]
    alone = []
    iou = _iou(predictions, old)
    iou[:, [bool(record.get("iscrowd")) for record in old]] = -1
    for prediction, value, row in zip(predictions, worth, iou, strict=True):
        match = int(row.argmax()) if len(row) else -1
        if match >= 0 and row[match] >= rules.max_iou:
            scores[match] += value / 2
            iou[:, match] = -1
        else:
            alone.append({**prediction, "score": value / 2})
    return alone, [
        record if record.get("iscrowd") else {**record, "score": score}
        for record, score in zip(old, scores, strict=True)
    ]


def _iou(predictions: Sequence[dict], old: Sequence[dict]) -> np.ndarray:
    """(P, Q) mask IoU of records."""
    if not predictions or not old:
        return np.zeros((len(predictions), len(old)))
    news, olds = ([record["segmentation"] for record in side] for side in (predictions, old))
    return np.asarray(mask_api.iou(news, olds, [0] * len(olds)))


class Calibration:
    """Brings the scores of predictions to the scale of old labels, by rank over all images.

    The prediction of the n-th best score is worth the score of the n-th best old mask; past their
    number, half of the lowest.

    Args:
        predictions: scores of all predictions.
        old: scores of all old masks.
    """

    def __init__(self, predictions: np.ndarray, old: np.ndarray) -> None:
        self.predictions = np.sort(-predictions)
        self.old = np.append(-np.sort(-old), old.min() / 2 if len(old) else 0.0)

    def __call__(self, score: float) -> float:
        """Return what a prediction's score is worth; equal scores are worth the same."""
        rank = int(np.searchsorted(self.predictions, -score))
        return float(self.old[min(rank, len(self.old) - 1)])


def combine_labels(
    images: ImageList,
    old: str | os.PathLike,
    predictions: str | os.PathLike,
    output: str | os.PathLike,
    rules: Rules,
    round_number: int,
    detector: dict,
) -> None:
    """Write the labels of a round.

    Images without kept predictions keep their old masks, images of neither are listed with a
    reason. Images are matched by name; ids are those of ``images``. A kept prediction carries its
    score, an old mask the score that it had (1.0 where it had none), or both what ``agreed`` gives;
    ``round`` says in which round a mask came. Memory holds some hundred bytes an image.

    Args:
        images: all that were predicted on.
        old: the labels of the round before, or of a labeler: COCO JSON with masks.
        predictions: COCO JSON, as ``label_images`` writes it.
        output: the COCO JSON to write.
        rules: see there.
        round_number: of these labels, from 1.
        detector: ``info`` of the predictions, for the record.

    Raises:
        UserError: a file is broken, or names an image that is not in ``images``.
        RecordError: a record is refused; the message names it.
        NotFinished: the disk is full.
    """
    sides = _Side(old, "old labels", images), _Side(predictions, "predictions", images)
    threshold = _threshold(sides[1].index, rules)
    calibrate = None
    if rules.agree:
        confident = (score for score in _scores(sides[1].index) if score >= threshold)
        calibrate = Calibration(
            np.fromiter(confident, float), np.fromiter(_scores(sides[0].index), float)
        )
    info = {
        "description": f"labels of round {round_number} of self-training: "
        + (
            "detections and old masks, ranked by what both found"
            if rules.agree
            else "confident detections, and old masks that they do not repeat"
        ),
        "version": __version__,
        "labeler": "self-training",
        "round": round_number,
        "rules": asdict(rules),
        "score_threshold": threshold,
        "detector": detector,
        "old_labels_sha256": sha256_of(old),
    }

    with guard_write(output), coco_writer(output, info) as out:
        for file in images.files:
            if any(name_key(file.name) in side.places for side in sides):
                image, records = _label(file, *sides, rules, threshold, calibrate, round_number)
                out.add_image(image)
                for record in records:
                    out.add_annotation({"image_id": file.id, **record})
    for side in sides:
        side.tally.log(side.what)


def check_labels(labels: str | os.PathLike, images: ImageList) -> None:
    """Refuse labels that ``combine_labels`` would refuse as old ones, before a round is trained.

    Raises:
        UserError: as there.
    """
    _Side(labels, "labels", images)


class _Side:
    """A label file, its images found by name.

    Attributes:
        what: its role and path, for messages.
        index: its images and objects.
        places: in ``index``, by ``name_key``.
        tally: objects that were left out.
    """

    def __init__(self, path: str | os.PathLike, what: str, images: ImageList) -> None:
        self.what = f"{what} {path}"
        self.index = CocoIndex(path)
        self.places: dict[str, int] = {}
        self.tally = Tally()
        known = {name_key(name) for name in images.names}
        for place in range(len(self.index)):
            name = name_key(self.index.image(place).name)
            if name not in known:
                raise UserError(
                    f"the {self.what} name the image {name}, which is not under {images.root}; "
                    "names start from the folder of the images"
                )
            if name in self.places:
                raise UserError(f"the {self.what} list the image {name} twice")
            self.places[name] = place

    def read(self, name: str) -> tuple[ImageInfo | None, list[dict]]:
        """Return the image, None if it is not listed, and its masks as records."""
        place = self.places.get(name_key(name))
        if place is None:
            return None, []
        image, objects = self.index.read(place)
        records = []
        for item in objects:
            if reason := why_useless(item, box_only=False):
                self.tally.note(reason, item.where)
                continue
            round_number = item.where.record.get("round", 0)
            crowd = {"iscrowd": int(item.crowd)}
            records.append({**crowd, **item.mask_record(), "round": round_number})
        return image, records


def _label(
    file: ImageFile,
    old: _Side,
    new: _Side,
    rules: Rules,
    threshold: float,
    calibrate: Calibration | None,
    number: int,
) -> tuple[dict, list[dict]]:
    """Combine the labels of an image: its entry, and the records of its masks."""
    (before, old_records), (now, predictions) = old.read(file.name), new.read(file.name)
    sizes = [image.size for image in (before, now) if image is not None]
    height, width = sizes[0]
    if sizes[-1] != sizes[0]:
        raise UserError(
            f"the image {file.name} is {width} x {height} pixels in the {old.what}, but "
            f"{sizes[1][1]} x {sizes[1][0]} in the {new.what}; if all are exchanged, "
            "promerge import puts the old ones right"
        )
    confident = [{**p, "round": number} for p in predictions if p["score"] >= threshold]
    if calibrate is None:
        kept, rest = new_and_old(confident, old_records, rules)
    else:
        kept, rest = agreed(confident, old_records, rules, calibrate)
    reason = None if kept or rest else (before and before.reason) or NOTHING
    return ImageInfo(file.id, file.name, width, height, reason).record(), kept + rest


def _threshold(predictions: CocoIndex, rules: Rules) -> float:
    """The lowest score that is kept."""
    if rules.share is None:
        return rules.min_score
    scores = np.fromiter(_scores(predictions), float)
    scores = np.sort(scores[scores >= rules.min_score])
    kept = math.ceil(rules.share * len(scores))
    return float(scores[-kept]) if kept else rules.min_score


def _scores(index: CocoIndex) -> Iterator[float]:
    """The score of every object."""
    return (item.score for place in range(len(index)) for item in index.read(place)[1])


def count_masks(labels: str | os.PathLike, round_number: int) -> dict[str, int]:
    """Count ``images``, those ``with_masks``, ``masks``, and of these the ``new`` ones.

    Args:
        labels: COCO JSON, as ``combine_labels`` writes it.
        round_number: masks of this round are new.
    """
    source = CocoSource(labels)
    counts: collections.Counter[str] = collections.Counter()
    counts["images"] = sum(1 for _ in source.records("images"))
    labelled = set()
    for record in source.records("annotations"):
        labelled.add(record["image_id"])
        counts["masks"] += 1
        counts["new"] += record.get("round", 0) == round_number
    counts["with_masks"] = len(labelled)
    return {name: counts[name] for name in ("images", "with_masks", "masks", "new")}
