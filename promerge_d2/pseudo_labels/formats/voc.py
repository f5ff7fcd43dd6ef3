"""Pascal VOC: an XML file an image, with boxes, and polygons as supervision and Roboflow have them.

    Annotations/NAME.xml   the labels
    JPEGImages/NAME.jpg    the photographs

Boxes count pixels from 1, both ends included. A part of a mask is a ``<polygon>`` in pixel indices
from 1; holes are joined to it by seams. ``<score>`` is our own element, which others skip.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from promerge_d2.coco.records import RecordError
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
    crop,
    encode,
    new_file,
    score_of,
    side,
    walk_files,
    with_suffix,
)
from promerge_d2.pseudo_labels.formats.outlines import draw_indices, index_rings, three_points
from promerge_d2.pseudo_labels.formats.xml import parse_file, text_of
from promerge_d2.utils.errors import UserError

_FOLDER = "Annotations"


@contextlib.contextmanager
def write(order: Order) -> Iterator[Add]:
    """Write an XML file an image."""

    def add(image: LabelledImage) -> str:
        folder, _, name = image.name.rpartition("/")
        with new_file(order.folder / _FOLDER / with_suffix(image.name, ".xml"), image) as file:
            file.write(
                f"<annotation>\n  <folder>{text_of(folder or 'JPEGImages')}</folder>\n"
                f"  <filename>{text_of(name)}</filename>\n  <size><width>{image.width}</width>"
                f"<height>{image.height}</height><depth>3</depth></size>\n"
                "  <segmented>0</segmented>\n"
            )
            for mask in image.masks:
                file.write(_object(mask, order))
            file.write("</annotation>\n")
        return f"JPEGImages/{image.name}"

    yield add


def _object(mask: LabelledMask, order: Order) -> str:
    part, left, top = crop(mask)
    height, width = part.shape
    rings = index_rings(part)
    order.changes.note(int((draw_indices(rings, height, width) != part).sum()))
    polygons = []
    for ring in rings:
        corner = np.array([left + 1, top + 1])
        corners = enumerate((three_points(ring) + corner).tolist(), start=1)
        points = (f"<x{n}>{x}</x{n}><y{n}>{y}</y{n}>" for n, (x, y) in corners)
        polygons.append(f"    <polygon>{''.join(points)}</polygon>\n")
    return (
        f"  <object>\n    <name>{LABEL}</name>\n    <pose>Unspecified</pose>\n"
        "    <truncated>0</truncated>\n    <difficult>0</difficult>\n"
        f"    <bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{left + width}</xmax>"
        f"<ymax>{top + height}</ymax></bndbox>\n    <score>{mask.score!r}</score>\n"
        f"{''.join(polygons)}  </object>\n"
    )


def read(source: Source) -> Iterator[LabelledImage]:
    """Read the XML files under ``Annotations``, or under the folder that is named."""
    folder = source.path / _FOLDER
    folder = folder if folder.is_dir() else source.path
    for path in walk_files(folder, ".xml"):
        root = parse_file(path)
        if root.tag != "annotation":
            raise UserError(f"{path}: its root is <{root.tag}>, not <annotation>")
        where = str(path)
        try:
            width, height = (
                side(root.findtext(f"size/{key}"), key, where) for key in ("width", "height")
            )
        except RecordError as error:
            source.refuse(error)
            continue
        parent = path.parent.relative_to(folder).as_posix()
        name = checked_name(f"{parent}/{root.findtext('filename') or ''}", where)
        yield LabelledImage(name, width, height, _masks(root, (width, height), source, path))


def _masks(root: Element, size: tuple[int, int], source: Source, path: Path) -> list[LabelledMask]:
    masks = []
    for number, item in enumerate(root.findall("object"), start=1):
        where = f"{path}: <object> {number}"
        polygons = item.findall("polygon")
        if not polygons:
            source.without_mask(where)
            continue
        try:
            rings = [_ring(polygon, size, where) for polygon in polygons]
            score = score_of(item.findtext("score"), where)
        except RecordError as error:
            source.refuse(error)
            continue
        mask = draw_indices(rings, size[1], size[0])
        masks.append(LabelledMask(encode(mask), score, item.findtext("name") or LABEL))
    return masks


def _ring(polygon: Element, size: tuple[int, int], where: str) -> np.ndarray:
    """Read the points of a polygon, in pixel indices from 0."""
    try:
        values = [float(point.text or "") for point in polygon]
    except ValueError as error:
        raise RecordError(BROKEN, f"{where}: its polygon cannot be read: {error}") from error
    tags = [point.tag for point in polygon]
    right = [f"{axis}{n // 2 + 1}" for n, axis in enumerate("xy" * (len(tags) // 2))]
    points = np.array(values)
    if tags != right or len(points) < 6 or not (np.abs(points) <= 2 * max(size)).all():
        raise RecordError(
            BROKEN, f"{where}: its polygon is not x1, y1, x2, ... of three points in the image"
        )
    return np.rint(points.reshape(-1, 2) - 1).astype(np.int32)


FORMAT = Format("voc", "Pascal VOC, with polygons", write, read)
