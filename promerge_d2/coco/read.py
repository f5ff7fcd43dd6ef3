"""Ground truth and predictions, read from COCO-style JSON and checked record by record.

Whatever the file's categories are, they are read as one class. Boxes are ``[x, y, width, height]``
in pixels of the original image (XYWH, floats), masks compressed RLE of the original image.

A ground truth is a COCO file (``images``, ``annotations``). Predictions are a COCO file as well,
or a bare result list as detectron2 and the released ProMerge write it, whose ids may be floats.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from promerge_d2.coco.instances import (
    Box,
    Columns,
    ImageId,
    Instance,
    InstanceTable,
    Where,
)
from promerge_d2.coco.rle import sound, to_rle
from promerge_d2.coco.sections import Sections
from promerge_d2.utils.errors import UserError

_MAX_SIDE = 65535  # pixels; pycocotools counts the pixels of an image in 32 bits
_BLOCK = 1000  # records and masks checked at once, few enough for the processor's cache
_AREAS = 255  # pycocotools' area takes no more at once
_PLAIN = frozenset((int, float))  # types of numbers; bool is none of them
_NO_BOX = (math.nan,) * 4


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """One entry of an ``images`` section.

    Attributes:
        id: the file's id of the image.
        file_name: relative path with forward slashes, or None where the file has none.
        width: pixels; None only in predictions that do not say.
        height: pixels; None only in predictions that do not say.
    """

    id: ImageId
    file_name: str | None
    width: int | None
    height: int | None

    def __str__(self) -> str:
        return f"{self.file_name} (id {self.id!r})" if self.file_name else f"id {self.id!r}"


@dataclass(frozen=True)
class GroundTruth:
    """A ground-truth file.

    Attributes:
        name: the file, for messages.
        images: by id, in ascending order of ids (integers before strings).
        objects: in the order of the file, crowds included.
    """

    name: str
    images: dict[ImageId, ImageInfo]
    objects: InstanceTable

    @property
    def box_only(self) -> bool:
        """Whether there are objects and not one of them has a mask."""
        return 0 < len(self.objects) == len(self.objects.without_mask)

    def restricted_to(self, image_ids: set[ImageId]) -> GroundTruth:
        """The same ground truth with the images ``image_ids`` only."""
        kept = np.array([image_id in image_ids for image_id in self.objects.image_ids], bool)
        return GroundTruth(
            self.name,
            {i: image for i, image in self.images.items() if i in image_ids},
            self.objects.take(np.flatnonzero(kept[self.objects.image])),
        )


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


def read_ground_truth(path: str | os.PathLike) -> GroundTruth:
    """Read a COCO-style ground-truth file; see ``parse_ground_truth``."""
    return _ground_truth(Sections.open(path, "ground truth"))


def read_predictions(path: str | os.PathLike) -> PredictionFile:
    """Read a COCO file or a result list of predictions; see ``parse_predictions``."""
    return _predictions(Sections.open(path, "predictions"))


def parse_ground_truth(content: Any, name: str) -> GroundTruth:
    """Check a COCO-style ground truth and read it as one class.

    A missing ``iscrowd`` means 0; a missing ``area`` or ``bbox`` is computed from the mask (a
    missing area without a mask from the box). Categories are not looked at.

    Args:
        content: the parsed JSON.
        name: what messages call the file.

    Raises:
        UserError: not a COCO file, or a record with missing keys, duplicate ids, an unknown image,
            a bad box, area or mask; the message names the record.
    """
    return _ground_truth(Sections.of(content, name))


def _ground_truth(file: Sections) -> GroundTruth:
    name = file.name
    if file.is_list:
        raise UserError(
            f"{name} is a bare list, as result files are; a ground truth needs 'images' and "
            "'annotations'"
        )
    images = read_images(file.records("images"), name)
    if not images:
        raise UserError(f"{name} lists no images, so there is nothing to evaluate on")
    objects = iter_objects(file.records("annotations"), images, name)
    return GroundTruth(name, images, InstanceTable.of(name, "annotations", images, objects))


def iter_objects(
    records: Iterable[Any], images: dict[ImageId, ImageInfo], name: str
) -> Iterator[Instance]:
    """Check annotations one by one; see ``parse_ground_truth``.

    Args:
        records: the ``annotations`` of a COCO-style file.
        images: its images.
        name: what messages call the file.
    """
    seen: dict[Any, int] = {}
    for index, record in enumerate(records):
        where = _where(name, "annotations", index, record)
        annotation_id = record.get("id")
        if isinstance(annotation_id, int | float | str):
            if annotation_id in seen:
                raise UserError(
                    f"{where}: the annotation id is also that of annotations"
                    f"[{seen[annotation_id]}]; ids must be unique"
                )
            seen[annotation_id] = index
        image = images.get(_image_id(_key(record, "image_id", where), where))
        if image is None:
            raise UserError(f"{where}: its image is not in the 'images' of the file")
        box = _box(record, where)
        rle = None
        if _has_mask(record):
            rle = to_rle(record["segmentation"], image.height, image.width, where)
        if box is None and rle is None:
            raise UserError(f"{where}: it has neither a 'bbox' nor a 'segmentation'")
        area = record.get("area")
        if area is not None:
            area = _number(area, "area", where)
            if area < 0:
                raise UserError(f"{where}: area is {area}; it cannot be negative")
        yield _instance(where, image.id, box, rle, area, crowd=_is_crowd(record, where))


def parse_predictions(content: Any, name: str) -> PredictionFile:
    """Check a prediction file: a COCO file, or a bare result list.

    Crowd records are left out, a missing score means 1.0, categories are not looked at. Masks are
    checked by ``align_predictions``, when their images are known.

    Args:
        content: the parsed JSON.
        name: what messages call the file.

    Raises:
        UserError: neither form, or a record with missing keys, a duplicate image id, an image that
            the file does not list, a bad box or score; the message names the record.
    """
    return _predictions(Sections.of(content, name))


def _predictions(file: Sections) -> PredictionFile:
    name = file.name
    section = "" if file.is_list else "annotations"
    rows = file.records(section)
    images = None
    if not file.is_list and file.has("images"):
        images = read_images(file.records("images"), name, need_size=False)
    columns = Columns()
    places = {image_id: i for i, image_id in enumerate(images or ())}
    crowds = without_score = 0
    for index, batch in _batches(rows):
        if _add_plain(columns, index, batch, places, images is None):
            continue
        for number, record in enumerate(batch, start=index):
            where = _where(name, section, number, record)
            image_id = _image_id(_key(record, "image_id", where), where)
            if images is not None and image_id not in places:
                raise UserError(f"{where}: its image is not in the 'images' of the file")
            if _is_crowd(record, where):
                crowds += 1
                continue
            box = _box(record, where)
            mask, size = _raw_mask(record)
            if box is None and mask is None:
                raise UserError(f"{where}: it has neither a 'bbox' nor a 'segmentation'")
            without_score += "score" not in record
            score = _number(record.get("score", 1.0), "score", where)
            place = places.setdefault(image_id, len(places))
            columns.add(
                number, record.get("id"), place, box or _NO_BOX, mask, size, math.nan, False, score
            )
    table = columns.table(name, section, list(places))
    return PredictionFile(name, images, table, crowds, without_score, file.description())


def _batches(rows: Iterable[Any]) -> Iterator[tuple[int, list[Any]]]:
    """``_BLOCK`` records at a time, with the place of the first."""
    rows, start = iter(rows), 0
    while batch := list(itertools.islice(rows, _BLOCK)):
        yield start, batch
        start += len(batch)


def _add_plain(
    columns: Columns, index: int, batch: list[Any], places: dict[ImageId, int], new: bool
) -> bool:
    """Add records at once if all are as most are: with a box, a score, and nothing to object to.

    Args:
        columns: to add to.
        index: place of the first record.
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
        numbers = [*itertools.chain.from_iterable(boxes), *scores]
        plain = (
            {int, str}.issuperset(map(type, image_ids))
            and _PLAIN.issuperset(map(type, numbers))
            and set(map(len, boxes)) == {4}
            and all(record.get("iscrowd", 0) == 0 for record in batch)
            and (new or places.keys() >= set(image_ids))
        )
        values = np.array(numbers if plain else (), np.float64)
    except (KeyError, TypeError, AttributeError, OverflowError):
        return False
    box, score = values[: 4 * len(batch)].reshape(-1, 4), values[4 * len(batch) :]
    if not plain or not np.isfinite(values).all() or (box[:, 2:] < 0).any():
        return False
    masks = [_raw_mask(record) for record in batch]
    image = [places.setdefault(image_id, len(places)) for image_id in image_ids]
    ids = [record.get("id") for record in batch]
    columns.extend(index, ids, image, box, masks, score)
    return True


def _raw_mask(record: dict[str, Any]) -> tuple[Any, tuple[int, int]]:
    """The counts of a compressed RLE as bytes, with its height and width; all else as it is."""
    mask = record.get("segmentation")
    if mask in (None, [], {}):
        return None, (0, 0)
    if isinstance(mask, dict) and isinstance(mask.get("counts"), str):
        size = mask.get("size")
        sides = isinstance(size, list) and len(size) == 2
        if sides and all(type(side) is int and 0 < side <= _MAX_SIDE for side in size):
            return mask["counts"].encode("utf-8", "surrogatepass"), tuple(size)
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
        UserError: a mask cannot be read, or is of another size than its image.
    """
    place = {image_id: i for i, image_id in enumerate(image_ids)}
    places = np.array([-1 if image is None else place[image.id] for image in images], np.int32)
    table = records.take(np.flatnonzero(places[records.image] >= 0))
    with_mask = np.array([mask is not None for mask in table.masks], bool)
    boxes = ~with_mask
    table.area[boxes] = table.box[boxes, 2] * table.box[boxes, 3]
    rows = np.flatnonzero(with_mask)
    for start in range(0, len(rows), _BLOCK):
        _complete(table, rows[start : start + _BLOCK], images)
    return dataclasses.replace(table, image_ids=list(image_ids), image=places[table.image])


def _complete(table: InstanceTable, rows: np.ndarray, images: Sequence[ImageInfo]) -> None:
    """Check the masks of some rows, turn them into RLE, fill in areas and boxes."""
    on = [images[place] for place in table.image[rows].tolist()]
    size = np.array([(image.height, image.width) for image in on], np.int32)
    same = np.flatnonzero((table.size[rows] == size).all(axis=1))
    good = np.zeros(len(rows), bool)
    texts = [table.masks[row] for row in rows[same].tolist()]
    good[same] = sound(texts, size[same].prod(axis=1, dtype=np.int64))
    for i in np.flatnonzero(~good).tolist():  # polygons are drawn, what is broken is named
        mask, image = table.masks[rows[i]], on[i]
        if isinstance(mask, bytes):
            mask = {"size": table.size[rows[i]].tolist(), "counts": mask}
        where = f"{table[rows[i]].where} on image {image}"
        table.masks[rows[i]] = to_rle(mask, image.height, image.width, where)["counts"]
    table.size[rows] = size
    pairs = zip(size.tolist(), (table.masks[row] for row in rows.tolist()), strict=True)
    rles = [{"size": side, "counts": counts} for side, counts in pairs]
    for start in range(0, len(rles), _AREAS):
        some = slice(start, start + _AREAS)
        table.area[rows[some]] = mask_api.area(rles[some])
    lacking = np.flatnonzero(np.isnan(table.box[rows, 0]))
    if len(lacking):
        table.box[rows[lacking]] = mask_api.toBbox([rles[i] for i in lacking.tolist()])


def _instance(
    where: Where,
    image_id: ImageId,
    box: Box | None,
    rle: dict[str, Any] | None,
    area: float | None,
    **flags: Any,
) -> Instance:
    """Fill in what follows from the mask or the box; one of the two is there."""
    if box is None:
        box = tuple(mask_api.toBbox(rle).tolist())
    if area is None:
        area = float(mask_api.area(rle)) if rle is not None else box[2] * box[3]
    return Instance(where, image_id, box, rle, area, **flags)


def _where(name: str, section: str, index: int, record: Any) -> Where:
    """Name a record; refuse what is none."""
    if not isinstance(record, dict):
        where = Where(name, section, index, {})
        raise UserError(f"{where} is {reprlib.repr(record)}, not an object with keys")
    return Where(name, section, index, record)


def _key(record: dict[str, Any], key: str, where: Where) -> Any:
    if key not in record:
        raise UserError(f"{where}: it has no {key!r}")
    return record[key]


def _image_id(value: Any, where: Where) -> ImageId:
    """An image id; integral floats, as the released ProMerge writes them, become integers."""
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        raise UserError(
            f"{where}: the image id is {reprlib.repr(value)}; it must be an integer or a string"
        )
    return value


def read_images(rows: Iterable[Any], name: str, need_size: bool = True) -> dict[ImageId, ImageInfo]:
    """Check an ``images`` section.

    Args:
        rows: its records.
        name: what messages call the file.
        need_size: whether a record must have ``width`` and ``height``.

    Returns:
        The images by id, in ascending order of ids (integers before strings).

    Raises:
        UserError: a record with missing keys, a doubled id or a bad size; the message names it.
    """
    images: dict[ImageId, ImageInfo] = {}
    for index, record in enumerate(rows):
        where = _where(name, "images", index, record)
        image_id = _image_id(_key(record, "id", where), where)
        if image_id in images:
            raise UserError(f"{where}: the image id occurs twice; ids must be unique")
        size = {}
        for key in ("width", "height"):
            size[key] = _key(record, key, where) if need_size else record.get(key)
            if size[key] is not None or need_size:
                _check_side(size[key], key, where)
        images[image_id] = ImageInfo(image_id, _file_name(record, where), **size)
    order = sorted(images, key=lambda i: (isinstance(i, str), i))
    return {image_id: images[image_id] for image_id in order}


def _check_side(value: Any, key: str, where: Where) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_SIDE:
        raise UserError(
            f"{where}: {key} is {reprlib.repr(value)}; it must be an integer from 1 to {_MAX_SIDE}"
        )


def _file_name(record: dict[str, Any], where: Where) -> str | None:
    """The image's path; LVIS v1 has only ``coco_url``, whose last two parts are the path."""
    name = record.get("file_name")
    if name is None and isinstance(record.get("coco_url"), str):
        name = "/".join(record["coco_url"].split("/")[-2:])
    if name is not None and not isinstance(name, str):
        raise UserError(f"{where}: file_name is {reprlib.repr(name)}; it must be a string")
    return name.replace("\\", "/").removeprefix("./") if name else None


def _number(value: Any, key: str, where: Where) -> float:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer too large for a float
        pass
    raise UserError(f"{where}: {key} is {reprlib.repr(value)}; it must be a finite number")


def _box(record: dict[str, Any], where: Where) -> Box | None:
    """The box as XYWH; None where it is missing or empty."""
    box = record.get("bbox")
    if box is None or box == []:
        return None
    if not isinstance(box, list | tuple) or len(box) != 4:
        raise UserError(f"{where}: bbox is {reprlib.repr(box)}; it must be [x, y, width, height]")
    x, y, width, height = [_number(value, "a value of bbox", where) for value in box]
    if width < 0 or height < 0:
        raise UserError(
            f"{where}: bbox {reprlib.repr(box)} has a negative width or height; boxes are "
            "[x, y, width, height]"
        )
    return x, y, width, height


def _has_mask(record: dict[str, Any]) -> bool:
    return record.get("segmentation") not in (None, [], {})


def _is_crowd(record: dict[str, Any], where: Where) -> bool:
    crowd = record.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise UserError(f"{where}: iscrowd is {reprlib.repr(crowd)}; it must be 0 or 1")
    return bool(crowd)
