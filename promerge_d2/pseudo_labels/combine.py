"""The labels of the next round: confident predictions, and old masks that they do not repeat.

promerge.md B4, without its quirks: ``area`` is the mask's, width and height are where they belong,
nothing needs a GPU, and masks of another size than their image are an error that names the image.

Shape letters: P predictions, Q old masks of an image. Masks are RLE of the upright photograph.
"""

from __future__ import annotations

import collections
import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_api

from promerge_d2.coco.file import CocoFile, read_image
from promerge_d2.coco.records import rle_record
from promerge_d2.coco.rle import to_rle
from promerge_d2.pseudo_labels.inputs import ImageList
from promerge_d2.pseudo_labels.merge import CATEGORIES, write_list
from promerge_d2.pseudo_labels.store import writing
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import atomic_path, sha256_of
from promerge_d2.version import __version__

NOTHING = "no_mask_in_any_round"


@dataclass(frozen=True)
class Rules:
    """Which predictions and which old masks become labels.

    Attributes:
        min_score: the lowest score of a prediction that is kept.
        max_iou: an old mask stays where its mask IoU with every kept prediction is below this.
        share: keep this share of all predictions of at least ``min_score``, the ones with the
            highest scores over all images (with ties); None for all. Our own.
        per_image: keep at most so many of an image, the ones with the highest scores; None for
            all. Our own.
    """

    min_score: float = 0.7
    max_iou: float = 0.5
    share: float | None = None
    per_image: int | None = None

    def __post_init__(self) -> None:
        for name in ("min_score", "max_iou", "share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"the {name.replace('_', ' ')} is {value}; it lies in 0 to 1")
        if self.share == 0:
            raise UserError("a share of 0 keeps no prediction; take more")
        if self.per_image is not None and self.per_image < 1:
            raise UserError(
                f"at most {self.per_image} predictions an image are none; take 1 or more"
            )


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
    news, olds = ([record["segmentation"] for record in side] for side in (predictions, old))
    best = np.asarray(mask_api.iou(olds, news, [0] * len(news))).max(axis=1)  # (Q, P) to (Q,)
    return predictions, [
        record
        for record, iou in zip(old, best, strict=True)
        if iou < rules.max_iou or record.get("iscrowd")
    ]


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

    Images without kept predictions keep their old masks, images with predictions only are added,
    images of neither are listed with a reason. Images are matched by name; ids are those of
    ``images``. A kept prediction carries its score, an old mask the score that it had (1.0 where
    it had none); ``round`` says for each mask in which round it came. Memory holds some hundred
    bytes an image.

    Args:
        images: all that were predicted on.
        old: the labels of the round before, or of a labeler: COCO JSON with masks.
        predictions: COCO JSON, as ``label_images`` writes it.
        output: the COCO JSON to write.
        rules: see there.
        round_number: of these labels, from 1.
        detector: ``info`` of the predictions, for the record.

    Raises:
        UserError: a file is broken, names an image that is not in ``images``, or has a mask that
            cannot be read or is not of its image's size.
        NotFinished: the disk is full.
    """
    sides = _Side(old, "old labels", images), _Side(predictions, "predictions", images)
    threshold = _threshold(sides[1].file, rules)
    info = {
        "description": f"labels of round {round_number} of self-training: confident detections, "
        "and old masks that they do not repeat",
        "version": __version__,
        "labeler": "self-training",
        "round": round_number,
        "rules": asdict(rules),
        "score_threshold": threshold,
        "detector": detector,
        "old_labels_sha256": sha256_of(old),
    }

    def labelled() -> Iterator[tuple[dict, list[dict]]]:
        for file in images.files:
            if any(file.name in side.places for side in sides):
                yield _label(file.id, file.name, *sides, rules, threshold, round_number)

    def annotations() -> Iterator[dict]:
        ids = itertools.count(1)
        for image, records in labelled():
            for record in records:
                yield {
                    "id": next(ids),
                    "image_id": image["id"],
                    "category_id": CATEGORIES[0]["id"],
                    **record,
                }

    with writing(output), atomic_path(output) as part, open(part, "w", encoding="ascii") as file:
        file.write(f'{{"info": {json.dumps(info)}, "images": [')
        write_list(file, (image for image, _ in labelled()))
        file.write('], "annotations": [')
        write_list(file, annotations())
        file.write(f'], "categories": {json.dumps(CATEGORIES)}}}\n')
        file.flush()
        os.fsync(file.fileno())


def check_labels(labels: str | os.PathLike, images: ImageList) -> None:
    """Refuse labels that ``combine_labels`` would refuse as old ones, before a round is trained.

    Raises:
        UserError: as there.
    """
    side = _Side(labels, "labels", images)
    for name in side.places:
        side.read(name)


class _Side:
    """A label file, its images found by name."""

    def __init__(self, path: str | os.PathLike, what: str, images: ImageList) -> None:
        self.what = f"{what} {path}"
        self.file = CocoFile(path)
        self.places: dict[str, int] = {}
        known = set(images.names)
        for place in range(len(self.file)):
            image = read_image(self.file.path, self.file.stamp, self.file.where(place)[:2])[0]
            name = Path(os.path.normpath(image["file_name"])).as_posix()
            if name not in known:
                raise UserError(
                    f"the {self.what} name the image {name}, which is not under {images.root}; "
                    "names start from the folder of the images"
                )
            if name in self.places:
                raise UserError(f"the {self.what} list the image {name} twice")
            self.places[name] = place

    def read(self, name: str) -> tuple[dict | None, list[dict]]:
        """The image, None if it is not listed, and its masks as records with ``iscrowd``."""
        if name not in self.places:
            return None, []
        image, annotations = self.file.read(self.places[name])
        records = []
        for annotation in annotations:
            where = f"the {self.what}: the image {name}, annotation {annotation.get('id')}"
            if not annotation.get("segmentation"):
                raise UserError(f"{where}: it has no mask")
            rle = to_rle(annotation["segmentation"], image["height"], image["width"], where)
            record = {
                "iscrowd": int(bool(annotation.get("iscrowd"))),
                **rle_record(rle, float(annotation.get("score", 1.0))),
            }
            if not record["area"]:
                raise UserError(f"{where}: its mask is empty")
            records.append({**record, "round": annotation.get("round", 0)})
        return image, records


def _label(
    image_id: int, name: str, old: _Side, new: _Side, rules: Rules, threshold: float, number: int
) -> tuple[dict, list[dict]]:
    """An image of the output and its records."""
    (before, old_records), (now, predictions) = old.read(name), new.read(name)
    sizes = {(image["width"], image["height"]) for image in (before, now) if image is not None}
    if len(sizes) > 1:
        raise UserError(
            f"the image {name} is {before['width']} x {before['height']} pixels in the {old.what}, "
            f"but {now['width']} x {now['height']} in the {new.what}; if all are exchanged, "
            "tools/import_labels.py puts the old ones right"
        )
    ((width, height),) = sizes
    confident = [{**p, "round": number} for p in predictions if p["score"] >= threshold]
    kept, rest = new_and_old(confident, old_records, rules)
    image = {"id": image_id, "file_name": name, "width": width, "height": height}
    if not kept and not rest:
        image["reason"] = (before or {}).get("reason", NOTHING)
    return image, kept + rest


def _threshold(predictions: CocoFile, rules: Rules) -> float:
    """The lowest score that is kept."""
    if rules.share is None:
        return rules.min_score
    scores = np.array(
        [a["score"] for place in range(len(predictions)) for a in predictions.read(place)[1]]
    )
    scores = np.sort(scores[scores >= rules.min_score])
    kept = math.ceil(rules.share * len(scores))
    return float(scores[-kept]) if kept else rules.min_score


def count_masks(labels: str | os.PathLike, round_number: int) -> dict[str, int]:
    """What a label file holds: ``images``, those ``with_masks``, ``masks``, and of these ``new``.

    Args:
        labels: COCO JSON.
        round_number: masks of this round are new.
    """
    file = CocoFile(labels)
    counts: collections.Counter[str] = collections.Counter(images=len(file))
    for place in range(len(file)):
        _, annotations = file.read(place)
        counts["with_masks"] += bool(annotations)
        counts["masks"] += len(annotations)
        counts["new"] += sum(a.get("round", 0) == round_number for a in annotations)
    return {name: counts[name] for name in ("images", "with_masks", "masks", "new")}
