"""Ground truth and predictions, read from COCO-style JSON and checked record by record.

Whatever the file's categories are, they are read as one class. Boxes are ``[x, y, width, height]``
in pixels of the original image (XYWH, floats), masks compressed RLE of the original image.

A ground truth is a COCO file (``images``, ``annotations``). Predictions are a COCO file as well,
or a bare result list as detectron2 and the released ProMerge write it, whose ids may be floats.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pycocotools import mask as mask_api

from promerge_d2.evaluation.rle import to_rle
from promerge_d2.evaluation.sections import Sections
from promerge_d2.utils.errors import UserError

ImageId = int | str
Box = tuple[float, float, float, float]

_MAX_SIDE = 65535  # pixels; pycocotools counts the pixels of an image in 32 bits


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


@dataclass(frozen=True, slots=True)
class Instance:
    """One object of the ground truth, or one prediction.

    Attributes:
        where: names the record in messages.
        image_id: the id of its image in the ground truth.
        box: XYWH, pixels.
        rle: the mask as compressed RLE, None without one.
        area: pixels; for an object the file's own figure (it decides the size class), else of
            the mask, else of the box.
        crowd: objects only: a region whose predictions are not counted.
        score: predictions only; higher is surer.
    """

    where: str
    image_id: ImageId
    box: Box
    rle: dict[str, Any] | None
    area: float
    crowd: bool = False
    score: float = 1.0


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
    objects: list[Instance]

    @property
    def box_only(self) -> bool:
        """Whether there are objects and not one of them has a mask."""
        return bool(self.objects) and all(obj.rle is None for obj in self.objects)

    def restricted_to(self, image_ids: set[ImageId]) -> GroundTruth:
        """The same ground truth with the images ``image_ids`` only."""
        return GroundTruth(
            self.name,
            {i: image for i, image in self.images.items() if i in image_ids},
            [obj for obj in self.objects if obj.image_id in image_ids],
        )


@dataclass(frozen=True, slots=True)
class RawPrediction:
    """A prediction as read: box and score checked, its mask not yet, as that needs the image."""

    where: str
    image_id: ImageId
    box: Box | None
    segmentation: Any
    score: float


@dataclass(frozen=True)
class PredictionFile:
    """A prediction file before its images are found in a ground truth.

    Attributes:
        name: the file, for messages.
        images: its ``images`` section by id, None for a bare result list.
        records: in the order of the file, crowds left out.
        crowds_dropped: how many crowd records were left out.
        without_score: how many of ``records`` had no score and got 1.0.
    """

    name: str
    images: dict[ImageId, ImageInfo] | None
    records: list[RawPrediction]
    crowds_dropped: int
    without_score: int


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
    return GroundTruth(name, images, list(iter_objects(file.records("annotations"), images, name)))


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
    checked by ``place_predictions``, when their images are known.

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
    records = []
    crowds = without_score = 0
    for index, record in enumerate(rows):
        where = _where(name, section, index, record)
        image_id = _image_id(_key(record, "image_id", where), where)
        if images is not None and image_id not in images:
            raise UserError(f"{where}: its image is not in the 'images' of the file")
        if _is_crowd(record, where):
            crowds += 1
            continue
        box = _box(record, where)
        segmentation = record["segmentation"] if _has_mask(record) else None
        if box is None and segmentation is None:
            raise UserError(f"{where}: it has neither a 'bbox' nor a 'segmentation'")
        without_score += "score" not in record
        score = _number(record.get("score", 1.0), "score", where)
        records.append(RawPrediction(where, image_id, box, segmentation, score))
    return PredictionFile(name, images, records, crowds, without_score)


def make_prediction(raw: RawPrediction, image: ImageInfo) -> Instance:
    """Check the mask of ``raw`` against its image of the ground truth and complete its box.

    Raises:
        UserError: the mask cannot be read, or is of another size than the image.
    """
    rle = None
    if raw.segmentation is not None:
        rle = to_rle(raw.segmentation, image.height, image.width, f"{raw.where} on image {image}")
    return _instance(raw.where, image.id, raw.box, rle, None, score=raw.score)


def _instance(
    where: str,
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


def _where(name: str, section: str, index: int, record: Any) -> str:
    """Name a record: the file, its place, and the ids it has; refuse what is no record."""
    where = f"{name}: {section}[{index}]" if section else f"{name}: record {index}"
    if not isinstance(record, dict):
        raise UserError(f"{where} is {reprlib.repr(record)}, not an object with keys")
    ids = [f"{key} {reprlib.repr(record[key])}" for key in ("id", "image_id") if key in record]
    return f"{where} ({', '.join(ids)})" if ids else where


def _key(record: dict[str, Any], key: str, where: str) -> Any:
    if key not in record:
        raise UserError(f"{where}: it has no {key!r}")
    return record[key]


def _image_id(value: Any, where: str) -> ImageId:
    """An image id; integral floats, as the released ProMerge writes them, become integers."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
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


def _check_side(value: Any, key: str, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_SIDE:
        raise UserError(
            f"{where}: {key} is {reprlib.repr(value)}; it must be an integer from 1 to {_MAX_SIDE}"
        )


def _file_name(record: dict[str, Any], where: str) -> str | None:
    """The image's path; LVIS v1 has only ``coco_url``, whose last two parts are the path."""
    name = record.get("file_name")
    if name is None and isinstance(record.get("coco_url"), str):
        name = "/".join(record["coco_url"].split("/")[-2:])
    if name is not None and not isinstance(name, str):
        raise UserError(f"{where}: file_name is {reprlib.repr(name)}; it must be a string")
    return name.replace("\\", "/").removeprefix("./") if name else None


def _number(value: Any, key: str, where: str) -> float:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer too large for a float
        pass
    raise UserError(f"{where}: {key} is {reprlib.repr(value)}; it must be a finite number")


def _box(record: dict[str, Any], where: str) -> Box | None:
    """The box as XYWH; None where it is missing or empty."""
    box = record.get("bbox")
    if box is None or box == []:
        return None
    if not isinstance(box, list | tuple) or len(box) != 4:
        raise UserError(f"{where}: bbox is {reprlib.repr(box)}; it must be [x, y, width, height]")
    x, y, width, height = (_number(value, "a value of bbox", where) for value in box)
    if width < 0 or height < 0:
        raise UserError(
            f"{where}: bbox {reprlib.repr(box)} has a negative width or height; boxes are "
            "[x, y, width, height]"
        )
    return x, y, width, height


def _has_mask(record: dict[str, Any]) -> bool:
    return record.get("segmentation") not in (None, [], {})


def _is_crowd(record: dict[str, Any], where: str) -> bool:
    crowd = record.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise UserError(f"{where}: iscrowd is {reprlib.repr(crowd)}; it must be 0 or 1")
    return bool(crowd)
