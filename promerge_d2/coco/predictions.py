"""Predictions for evaluation: a COCO file, or a bare result list.

detectron2 and the released ProMerge write result lists. A million predictions are read in columns;
their masks are checked when their images are known.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_api

from promerge_d2.coco.fields import (
    NO_AREA,
    PLAIN,
    STRAY,
    Tally,
    UniqueIds,
    mask_of,
    read_fields,
    unlisted,
    unusable,
)
from promerge_d2.coco.read import BLOCK, CocoSource, batches, read_images, read_masks
from promerge_d2.coco.records import MAX_SIDE, ImageId, ImageInfo, RecordError
from promerge_d2.coco.table import Columns, InstanceTable

_NO_BOX = (math.nan,) * 4
_SIDES = range(1, MAX_SIDE + 1)


@dataclass(frozen=True)
class PredictionFile:
    """A prediction file before its images are found in a ground truth.

    Attributes:
        name: the file, for messages.
        images: its ``images`` section by id, None for a bare result list.
        records: in the order of the file, crowds left out. Boxes and scores are checked; masks are
            as the file has them, since they need their image, and NaN stands for the boxes and
            areas that follow from them.
        crowds_dropped: how many crowd records were left out.
        without_score: how many of ``records`` had no score and got 1.0.
        description: what the file says of itself, or nothing.
    """

    name: str
    images: dict[ImageId, ImageInfo] | None
    records: InstanceTable
    crowds_dropped: int
    without_score: int
    description: str = ""


def read_predictions(file: str | os.PathLike | CocoSource) -> PredictionFile:
    """Read predictions: a COCO file, or a bare result list.

    Crowd records are left out. Masks are checked by ``on_images``, when their images are known.

    Args:
        file: its path, or parsed JSON as ``CocoSource.of`` wraps it.

    Raises:
        UserError: neither form.
        RecordError: a record is refused; the message names it.
    """
    if not isinstance(file, CocoSource):
        file = CocoSource(file, "predictions")
    section = "" if file.is_list else "annotations"
    rows = file.records(section)
    images = None
    if not file.is_list and file.has("images"):
        images = read_images(file.records("images"), file.name, need_size=False)
    columns = Columns()
    places = {image_id: i for i, image_id in enumerate(images or ())}
    ids = UniqueIds()
    crowds = without_score = 0
    for start, batch in batches(rows):
        if _add_plain(columns, start, batch, places, images is None):
            if images is not None:
                for index, record in enumerate(batch, start):
                    ids.add(record, file.name, section, index)
            continue
        for index, record in enumerate(batch, start):
            draft = read_fields(record, file.name, section, index)
            if images is not None:
                ids.add(record, file.name, section, index)
                if draft.image_id not in places:
                    raise unlisted(draft.where)
            if draft.crowd:
                crowds += 1
                continue
            if draft.box is None and draft.mask is None:
                raise unusable(draft.where)
            without_score += draft.score is None
            columns.add(
                index,
                record.get("id"),
                places.setdefault(draft.image_id, len(places)),
                draft.box or _NO_BOX,
                *_split_rle(draft.mask),
                math.nan,
                False,
                1.0 if draft.score is None else draft.score,
            )
    table = columns.table(file.name, section, list(places))
    return PredictionFile(file.name, images, table, crowds, without_score, file.description)


def _add_plain(
    columns: Columns, start: int, batch: list[Any], places: dict[ImageId, int], new: bool
) -> bool:
    """Add records at once if all are as most are: with a box, a score, and nothing to object to.

    Args:
        columns: to add to.
        start: place of the first record.
        batch: the records.
        places: of the images; with ``new``, unknown ones are added.
        new: whether the file lists no images.

    Returns:
        Whether they were added; else they have to be looked at one by one.
    """
    try:
        image_ids = [record["image_id"] for record in batch]
        boxes = [record["bbox"] for record in batch]
        scores = [record["score"] for record in batch]
        areas = [record.get("area", 0) for record in batch]
        numbers = [*itertools.chain.from_iterable(boxes), *scores, *areas]
        plain = (
            {int, str}.issuperset(map(type, image_ids))
            and PLAIN.issuperset(map(type, numbers))
            and set(map(len, boxes)) == {4}
            and {list}.issuperset(map(type, boxes))
            and all(record.get("iscrowd", 0) == 0 for record in batch)
            and (new or places.keys() >= set(image_ids))
        )
        values = np.array(numbers if plain else (), np.float64)
    except (KeyError, TypeError, AttributeError, OverflowError):
        return False
    count = len(batch)
    box, score, area = (
        values[: 4 * count].reshape(-1, 4),
        values[4 * count : 5 * count],
        values[5 * count :],
    )
    if not plain or not np.isfinite(values).all() or (box[:, 2:] < 0).any() or (area < 0).any():
        return False
    masks = [_split_rle(mask_of(record)) for record in batch]
    image = [places.setdefault(image_id, len(places)) for image_id in image_ids]
    ids = [record.get("id") for record in batch]
    columns.extend(start, ids, image, box, masks, score)
    return True


def _split_rle(mask: Any) -> tuple[Any, tuple[int, int]]:
    """Split a compressed RLE into counts as bytes and its height and width; leave all else."""
    if isinstance(mask, dict) and isinstance(mask.get("counts"), str):
        match mask.get("size"):
            case [int(height), int(width)] if (
                0 < min(height, width) <= max(height, width) <= MAX_SIDE
            ):
                return mask["counts"].encode("utf-8", "surrogatepass"), (height, width)
    return mask, (0, 0)


def on_images(
    records: InstanceTable, images: Sequence[ImageInfo | None], image_ids: Sequence[ImageId]
) -> InstanceTable:
    """Put predictions on the images of a ground truth; check masks, complete boxes and areas.

    Args:
        records: of a ``PredictionFile``.
        images: for each of ``records.image_ids`` the image, None to leave its records out.
        image_ids: of the ground truth.

    Raises:
        RecordError: a mask cannot be read, or is of another size than its image.
    """
    place = {image_id: i for i, image_id in enumerate(image_ids)}
    places = np.array([-1 if image is None else place[image.id] for image in images], np.int32)
    table = records.take(np.flatnonzero(places[records.image] >= 0))
    table.area[:] = table.box[:, 2] * table.box[:, 3]
    tally = Tally()
    rows = np.flatnonzero([mask is not None for mask in table.masks])
    for start in range(0, len(rows), BLOCK):
        _complete(table, rows[start : start + BLOCK], images, tally)
    tally.log(records.name)
    return dataclasses.replace(table, image_ids=list(image_ids), image=places[table.image])


class _Row(NamedTuple):
    """Names a row of a table in messages; the text is made when it is needed."""

    table: InstanceTable
    row: int
    image: ImageInfo | None

    def __str__(self) -> str:
        return f"{self.table[self.row].where} on image {self.image}"


def _complete(
    table: InstanceTable, rows: np.ndarray, images: Sequence[ImageInfo | None], tally: Tally
) -> None:
    """Check the masks of some rows, turn them into RLE, fill in areas and boxes."""
    on = [images[place] for place in table.image[rows].tolist()]
    sizes = [image.size if image else (0, 0) for image in on]
    wheres = [_Row(table, row, image) for row, image in zip(rows.tolist(), on, strict=True)]
    given = [
        {"size": size, "counts": mask} if isinstance(mask, bytes) else mask
        for size, mask in zip(
            table.size[rows].tolist(), (table.masks[row] for row in rows.tolist()), strict=True
        )
    ]
    masks = read_masks(given, sizes, wheres, [True] * len(rows))
    lacking = np.isnan(table.box[rows, 0])
    flat = ~lacking & (table.area[rows] == 0)
    for place, (row, mask) in enumerate(zip(rows.tolist(), masks, strict=True)):
        if isinstance(mask, RecordError):
            raise mask
        if mask.stray:
            tally.note(STRAY, wheres[place], mask.stray)
        table.masks[row] = mask.rle and mask.rle["counts"]
        if not mask.there:
            if lacking[place]:
                raise unusable(wheres[place])
            table.size[row] = 0
            continue
        table.size[row] = sizes[place]
        table.area[row] = mask.pixels
        if flat[place] and mask.pixels:
            tally.note(NO_AREA, wheres[place])
        if lacking[place] or (flat[place] and mask.pixels):
            table.box[row] = mask_api.toBbox(mask.rle)
