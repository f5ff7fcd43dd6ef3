"""PNG: a picture of one bit a pixel for each mask, and a list of them.

    labels.jsonl           a line an image: its name and size, its masks' files and scores
    masks/NAME.jpg/0.png   its first mask
    images/NAME.jpg        the photograph

One picture for all masks of an image (an index a pixel) could not hold masks that overlap.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_api

from promerge_d2.coco.records import RecordError
from promerge_d2.coco.rle import OTHER_SIZE
from promerge_d2.pseudo_labels.formats.base import (
    BROKEN,
    LABEL,
    Add,
    Format,
    LabelledImage,
    LabelledMask,
    Order,
    Source,
    checked_name,
    encode,
    score_of,
    side,
)
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.image import ImageError, load_image

_LIST = "labels.jsonl"


@contextlib.contextmanager
def write(order: Order) -> Iterator[Add]:
    """Write a PNG a mask and the list."""
    with open(order.folder / _LIST, "w", encoding="ascii") as file:

        def add(image: LabelledImage) -> str:
            folder = order.folder / "masks" / image.name
            records = []
            try:
                folder.mkdir(parents=True)
                for number, mask in enumerate(image.masks):
                    pixels = mask_api.decode(mask.rle).astype(bool)
                    Image.fromarray(pixels).save(folder / f"{number}.png", compress_level=1)
                    path = f"masks/{image.name}/{number}.png"
                    records.append({"file": path, "score": mask.score, "label": LABEL})
            except OSError as error:  # two images of one name, or a disk that is full
                raise UserError(f"{image.name}: cannot write its masks: {error}") from error
            line = {
                "image": image.name,
                "width": image.width,
                "height": image.height,
                "masks": records,
            }
            file.write(json.dumps(line, allow_nan=False) + "\n")
            return f"images/{image.name}"

        yield add


def read(source: Source) -> Iterator[LabelledImage]:
    """Read the folder of a ``labels.jsonl``; of a mask, what is not black belongs to it."""
    path = source.path / _LIST if source.path.is_dir() else source.path
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                where = f"{path}, line {number}"
                try:
                    yield _image(json.loads(line), source, path.parent, where)
                except RecordError as error:
                    source.refuse(error)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _image(line: Any, source: Source, folder: Path, where: str) -> LabelledImage:
    if not isinstance(line, dict) or not isinstance(line.get("masks"), list):
        raise RecordError(BROKEN, f"{where}: it has no list 'masks'")
    width, height = (side(line.get(key), key, where) for key in ("width", "height"))
    masks = []
    for number, record in enumerate(line["masks"]):
        place = f"{where}: masks[{number}]"
        try:
            masks.append(_mask(record, folder, (width, height), place))
        except RecordError as error:
            source.refuse(error)
    return LabelledImage(checked_name(line.get("image"), where), width, height, masks)


def _mask(record: Any, folder: Path, size: tuple[int, int], where: str) -> LabelledMask:
    if not isinstance(record, dict):
        raise RecordError(BROKEN, f"{where}: it is no object with 'file'")
    path = folder / checked_name(record.get("file"), where)
    try:
        red, green, blue = np.moveaxis(load_image(path, apply_exif=False), 2, 0)
    except ImageError as error:
        raise RecordError(BROKEN, f"{where}: {error}") from error
    mask = (red | green | blue) > 0
    if mask.shape != size[::-1]:
        raise RecordError(
            OTHER_SIZE,
            f"{where}: {path} is {mask.shape[1]} x {mask.shape[0]} pixels, its image {size[0]} x "
            f"{size[1]}",
        )
    label = record.get("label") or LABEL
    return LabelledMask(encode(mask.astype(np.uint8)), score_of(record.get("score"), where), label)


FORMAT = Format("png", "a PNG a mask, with a list", write, read)
