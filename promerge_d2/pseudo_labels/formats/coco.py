"""COCO JSON for others: masks as polygons, or as RLE in the folders that RF-DETR wants.

    coco-polygons:  annotations.json, images/NAME
    rfdetr:         train/_annotations.coco.json, train/NAME, and the same under valid/

Polygons are in pixel edges, a part of the mask each, holes joined by seams: pycocotools draws the
mask again pixel by pixel. They come back through ``import`` like any COCO file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_api

from promerge_d2.coco.index import CocoIndex
from promerge_d2.coco.records import rle_record
from promerge_d2.coco.rle import draw
from promerge_d2.coco.write import CocoWriter, coco_writer
from promerge_d2.pseudo_labels.formats.base import (
    LABEL,
    Add,
    Format,
    LabelledImage,
    LabelledMask,
    Order,
    Source,
    crop,
)
from promerge_d2.pseudo_labels.formats.outlines import edge_rings
from promerge_d2.utils.errors import UserError
from promerge_d2.version import __version__

_INFO = {"description": f"exported by promerge_d2 {__version__}"}
_SPLITS = "train", "valid"
_RFDETR = "_annotations.coco.json"


@contextlib.contextmanager
def write_polygons(order: Order) -> Iterator[Add]:
    """Write ``annotations.json``."""
    with coco_writer(order.folder / "annotations.json", _INFO) as out:

        def add(image: LabelledImage) -> str:
            _add(out, image)
            for mask in image.masks:
                record = rle_record(mask.rle, mask.score)
                record["segmentation"] = _polygons(mask, order)
                out.add_annotation({"image_id": out.images, **record})
            return f"images/{image.name}"

        yield add


def _add(out: CocoWriter, image: LabelledImage) -> None:
    size = {"width": image.width, "height": image.height}
    out.add_image({"id": out.images + 1, "file_name": image.name, **size})


def _polygons(mask: LabelledMask, order: Order) -> list[list[int]]:
    part, left, top = crop(mask)
    rings = edge_rings(part)
    drawn = draw([[float(v) for v in ring.ravel()] for ring in rings], *part.shape)
    order.changes.note(int((mask_api.decode(drawn) != part).sum()))
    corner = np.array([left, top])
    return [(ring + corner).ravel().tolist() for ring in rings]


@contextlib.contextmanager
def write_rfdetr(order: Order) -> Iterator[Add]:
    """Write a COCO file each for training and validation."""
    if int(order.images * order.valid_share) < 1:
        raise UserError(
            f"RF-DETR wants images for validation, and of {order.images} a share of "
            f"{order.valid_share} is none; choose a larger --valid-share"
        )
    categories = [{"id": 1, "name": LABEL, "supercategory": "none"}]
    with contextlib.ExitStack() as stack:
        outs = [
            stack.enter_context(coco_writer(order.folder / split / _RFDETR, _INFO, categories))
            for split in _SPLITS
        ]

        def add(image: LabelledImage) -> str:
            valid = order.for_validation(sum(out.images for out in outs))
            out = outs[valid]
            _add(out, image)
            for mask in image.masks:
                out.add_annotation({"image_id": out.images, **rle_record(mask.rle, mask.score)})
            return f"{_SPLITS[valid]}/{image.name}"

        yield add


def read_polygons(source: Source) -> Iterator[LabelledImage]:
    """Read ``annotations.json``, or any COCO file that is named."""
    yield from _read(source, source.path / "annotations.json", source.path)


def read_rfdetr(source: Source) -> Iterator[LabelledImage]:
    """Read the files of both folders, and of ``test`` where there is one."""
    found = [source.path / split / _RFDETR for split in (*_SPLITS, "test")]
    found = [path for path in found if path.exists()]
    if not found:
        raise UserError(f"{source.path} holds no train/{_RFDETR}")
    for path in found:
        yield from _read(source, path, path)


def _read(source: Source, inside: Path, path: Path) -> Iterator[LabelledImage]:
    file = inside if path.is_dir() else path
    index = CocoIndex(file, damaged=source.refuse)
    source.left_out.add(index.tally)
    for place in range(len(index)):
        image, items = index.read(place)
        width, height = image.size[::-1]
        masks = [LabelledMask(item.rle, item.score) for item in items if item.rle is not None]
        yield LabelledImage(image.name, width, height, masks)


POLYGONS = Format("coco-polygons", "COCO JSON with polygons", write_polygons, read_polygons)
RFDETR = Format("rfdetr", "RF-DETR's folders of COCO JSON", write_rfdetr, read_rfdetr)
