"""Ultralytics YOLO, segmentation: a text file an image, a line an object, a polygon a line.

    data.yaml            names of the classes, and which lists
    train.txt, val.txt   the images
    images/NAME.jpg      the photographs
    labels/NAME.txt      class x1 y1 x2 y2 ..., divided by width and height

A line has one polygon, so that holes are joined by seams and parts by bridges, one pixel wide where
OpenCV draws them. Points are pixel indices. A quarter of a pixel is added: readers that round
(supervision) and readers that cut the fraction off (Ultralytics) find the same pixel. There is no
place for scores: training reads no more than the polygon.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

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
    unreadable,
    walk_files,
    with_suffix,
)
from promerge_d2.pseudo_labels.formats.outlines import (
    draw_indices,
    index_rings,
    join_rings,
    three_points,
)
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.image import IMAGE_SUFFIXES

_WITHIN = 0.25  # of a pixel, see above


@contextlib.contextmanager
def write(order: Order) -> Iterator[Add]:
    """Write ``data.yaml``, the lists and a label file an image."""
    folder = order.folder
    counts = [0, 0]
    with contextlib.ExitStack() as stack:
        lists = [
            stack.enter_context(open(folder / name, "w", encoding="utf-8"))
            for name in ("train.txt", "val.txt")
        ]

        def add(image: LabelledImage) -> str:
            if len(image.name.splitlines()) != 1:
                raise UserError(f"{image.name!r}: a list of images cannot hold a line break")
            place = f"images/{image.name}"
            with new_file(folder / _labels_of(place), image) as file:
                for mask in image.masks:
                    file.write(f"0 {_points(mask, image, order)}\n")
            valid = order.for_validation(sum(counts))
            counts[valid] += 1
            lists[valid].write(f"./{place}\n")
            return place

        yield add
    content = {
        "train": "train.txt",
        "val": "val.txt" if counts[1] else "train.txt",
        "names": {0: LABEL},
    }
    (folder / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def _points(mask: LabelledMask, image: LabelledImage, order: Order) -> str:
    part, left, top = crop(mask)
    ring = join_rings(index_rings(part))
    drawn = draw_indices([ring], *part.shape)
    order.changes.note(int((drawn != part).sum()))
    corner = np.array([left, top]) + _WITHIN
    points = (three_points(ring) + corner) / (image.width, image.height)
    return " ".join(f"{value:.6f}" for value in points.ravel().tolist())


def _labels_of(place: str) -> str:
    """Return where Ultralytics looks for an image's labels: its last folder ``images`` differs."""
    before, _, after = f"/{place}".rpartition("/images/")
    return with_suffix(f"{before}/labels/{after}".removeprefix("/"), ".txt")


def read(source: Source) -> Iterator[LabelledImage]:
    """Read a data set by its ``data.yaml``; it is there, or in the folder that is named."""
    file = source.path / "data.yaml" if source.path.is_dir() else source.path
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        unreadable(file, error)
    if not isinstance(content, dict) or "names" not in content:
        raise UserError(f"{file}: it is no data.yaml of YOLO: it has no 'names'")
    names = content["names"]
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict):
        raise UserError(f"{file}: 'names' is neither a list nor a mapping")
    if "kpt_shape" in content:
        raise UserError(f"{file}: it has 'kpt_shape': labels of poses, not of masks")
    root = file.parent / str(content.get("path") or "")
    root = root if root.is_dir() else file.parent
    splits = [content.get(key) for key in ("train", "val", "test")]
    places = [p for s in splits for p in (s if isinstance(s, list) else [s]) if isinstance(p, str)]
    if not places:
        raise UserError(f"{file}: it names no images under 'train', 'val' or 'test'")
    for place in dict.fromkeys(places):
        for path in _images(root, place, file):
            image = _read_image(source, root, path, names)
            if image is not None:
                yield image


def _images(root: Path, place: str, file: Path) -> Iterator[str]:
    """Yield the paths of a split's images, relative to the data set."""
    found = root / place
    if not found.exists() and place.startswith("../"):  # as Roboflow writes them
        found = root / place[3:]
    if found.is_dir():
        for path in walk_files(found, IMAGE_SUFFIXES):
            yield path.relative_to(root).as_posix()
    elif found.is_file() and found.suffix == ".txt":
        with open(found, encoding="utf-8") as lines:
            for line in filter(None, map(str.strip, lines)):
                yield checked_name(line, found)
    else:
        raise UserError(f"{file}: {place} is not there")


def _read_image(
    source: Source, root: Path, place: str, names: dict[Any, Any]
) -> LabelledImage | None:
    name = place.removeprefix("images/")
    size = source.size(place, root) if (root / place).exists() else source.size(name)
    if size is None:
        return None
    masks = []
    labels = root / _labels_of(place)
    try:
        lines = labels.read_text("utf-8").splitlines() if labels.exists() else []
    except (OSError, ValueError) as error:
        unreadable(labels, error)
    for number, line in enumerate(lines, start=1):
        where = f"{labels}, line {number}"
        try:
            mask = _read_line(line.split(), names, *size, where)
        except RecordError as error:
            source.refuse(error)
            continue
        if mask is not None:
            masks.append(mask)
        elif line.strip():
            source.without_mask(where)
    return LabelledImage(name, *size, masks)


def _read_line(
    values: list[str], names: dict[Any, Any], width: int, height: int, where: str
) -> LabelledMask | None:
    """Read an object; None for a box. An even number of values ends with a score."""
    if len(values) in (0, 5, 6):
        return None
    try:
        number, *numbers = (float(value) for value in values)
    except ValueError as error:
        raise RecordError(BROKEN, f"{where}: {error}") from error
    score = score_of(numbers.pop() if len(numbers) % 2 else None, where)
    points = np.array(numbers).reshape(-1, 2)
    if len(points) < 3 or not math.isfinite(number) or not _in_image(points):
        raise RecordError(
            BROKEN,
            f"{where}: it is no polygon of three points or more, from 0 to 1 across the image",
        )
    if number not in names:
        raise RecordError(BROKEN, f"{where}: data.yaml names no class {values[0]}")
    ring = np.rint(points * (width, height)).astype(np.int32)
    mask = draw_indices([ring.clip(0, (width - 1, height - 1))], height, width)
    return LabelledMask(encode(mask), score, str(names[int(number)]))


def _in_image(points: np.ndarray) -> bool:
    return bool((points >= -0.01).all() and (points <= 1.01).all())  # false for NaN


FORMAT = Format("yolo", "Ultralytics YOLO, segmentation", write, read, keeps_scores=False)
