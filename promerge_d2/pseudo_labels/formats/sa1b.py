"""SA-1B, as Segment Anything's data set is kept: a JSON file an image, beside the photograph.

    NAME.json   {"image": {...}, "annotations": [{"segmentation": RLE, "predicted_iou": score}]}
    NAME.jpg    the photograph

The score is ``predicted_iou``. ``stability_score`` and ``point_coords`` are not known and left out.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from promerge_d2.coco.records import RecordError, rle_record
from promerge_d2.coco.rle import to_rle
from promerge_d2.pseudo_labels.formats.base import (
    BROKEN,
    Add,
    Format,
    LabelledImage,
    LabelledMask,
    Order,
    Source,
    checked_name,
    new_file,
    score_of,
    side,
    walk_files,
    with_suffix,
)
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import read_json


@contextlib.contextmanager
def write(order: Order) -> Iterator[Add]:
    """Write a JSON file an image."""
    images = masks = 0

    def add(image: LabelledImage) -> str:
        nonlocal images, masks
        images += 1
        records = []
        for mask in image.masks:
            masks += 1
            record = rle_record(mask.rle, mask.score)
            score = float(record.pop("score"))
            crop_box = [0, 0, image.width, image.height]
            records.append({"id": masks, **record, "predicted_iou": score, "crop_box": crop_box})
        info = {
            "image_id": images,
            "file_name": Path(image.name).name,
            "width": image.width,
            "height": image.height,
        }
        with new_file(order.folder / with_suffix(image.name, ".json"), image) as file:
            file.write(json.dumps({"image": info, "annotations": records}, allow_nan=False))
        return image.name

    yield add


def read(source: Source) -> Iterator[LabelledImage]:
    """Read the JSON files under a folder."""
    for path in walk_files(source.path, ".json"):
        content = read_json(path, "SA-1B file")
        where = str(path)
        image = content.get("image") if isinstance(content, dict) else None
        records = content.get("annotations") if isinstance(content, dict) else None
        if not isinstance(image, dict) or not isinstance(records, list):
            raise UserError(f"{path}: it is no SA-1B file: it has no 'image' with 'annotations'")
        try:
            width, height = (side(image.get(key), key, where) for key in ("width", "height"))
        except RecordError as error:
            source.refuse(error)
            continue
        parent = path.parent.relative_to(source.path).as_posix()
        name = checked_name(image.get("file_name"), where)
        masks = []
        for number, record in enumerate(records):
            place = f"{path}: annotations[{number}]"
            try:
                masks.append(_mask(record, width, height, place))
            except RecordError as error:
                source.refuse(error)
        yield LabelledImage(checked_name(f"{parent}/{name}", where), width, height, masks)


def _mask(record: Any, width: int, height: int, where: str) -> LabelledMask:
    if not isinstance(record, dict) or "segmentation" not in record:
        raise RecordError(BROKEN, f"{where}: it has no 'segmentation'")
    rle = to_rle(record["segmentation"], height, width, where)
    return LabelledMask(rle, score_of(record.get("predicted_iou"), where))


FORMAT = Format("sa1b", "SA-1B, a JSON file an image", write, read)
