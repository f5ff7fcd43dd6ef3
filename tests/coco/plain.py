"""A plain reader of COCO files for the property tests: slow, whole in memory, by the rules alone.

It shares no code with ``promerge_d2.coco``; polygons are drawn by pycocotools, which is what the
rules say. The rules are in the docstring of ``promerge_d2.coco``.
"""

from __future__ import annotations

import json
import math
import re

import numpy as np
from pycocotools import mask as mask_api

NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)


class Refused(Exception):
    """Args: where it is (``images[0]``, or empty for the whole file), and why."""

    def __init__(self, where, why=""):
        super().__init__(f"{where}: {why}")
        self.where = where


def number(value):
    """A float, or None."""
    if isinstance(value, str) and NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def identity(value):
    if isinstance(value, float) and math.isfinite(value) and value == math.floor(value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return value


def read_images(rows, need_name):
    images = {}
    for place, row in enumerate(rows):
        where = f"images[{place}]"
        if not isinstance(row, dict):
            raise Refused(where, "no object")
        key = identity(row.get("id"))
        sides = [number(row.get(name)) for name in ("height", "width")]
        name = row.get("file_name")
        if name is None and isinstance(row.get("coco_url"), str):
            name = "/".join(row["coco_url"].split("/")[-2:])
        if key is None or key in images:
            raise Refused(where, "id")
        if not all(s is not None and s == int(s) and 1 <= s <= 65535 for s in sides):
            raise Refused(where, "size")
        if name is not None and (not isinstance(name, str) or "\0" in name):
            raise Refused(where, "name")
        if need_name and not name:
            raise Refused(where, "name")
        images[key] = (int(sides[0]), int(sides[1]))
    return images


def decode(counts):
    """The runs of a compressed RLE, one character after another."""
    runs, value, shift = [], 0, 0
    for char in counts:
        bits = ord(char) - 48
        if not 0 <= bits < 64 or shift > 30:
            return None
        value += (bits & 31) << shift
        shift += 5
        if bits < 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return None if shift else runs


def mask_of(value, height, width):
    """The mask (h, w) bool, None where there is none; or ``Refused``."""
    if value is None or value in ([], {}):
        return None
    if isinstance(value, dict):
        size, runs = value.get("size"), value.get("counts")
        if not isinstance(size, list) or size != [height, width]:
            raise Refused("", "size of the RLE")
        if isinstance(runs, str):
            runs = decode(runs)
        whole = isinstance(runs, list) and all(type(run) is int and run >= 0 for run in runs)
        if not whole or sum(runs) != height * width:
            raise Refused("", "runs")
        bits = np.repeat(np.arange(len(runs)) % 2, runs)
        return bits.reshape(width, height).T.astype(bool)
    if not isinstance(value, list):
        raise Refused("", "segmentation")
    parts = value if any(isinstance(part, list) for part in value) else [value]
    for part in parts:
        if not isinstance(part, list) or len(part) % 2:
            raise Refused("", "polygon")
        for place, point in enumerate(part):
            side = (width, height)[place % 2]
            good = type(point) in (int, float) and -side <= point <= 2 * side
            if not good:
                raise Refused("", "coordinate")
    drawn = [mask_api.frPyObjects([p], height, width)[0] for p in parts if len(p) >= 6]
    if not drawn:
        return None
    return np.any([mask_api.decode(rle) for rle in drawn], axis=0)


def read_object(row, images, where, strangers=False):
    """A dict: image, crowd, score, box, mask, area.

    With ``strangers``, None for what is on an image that is not listed, its mask not looked at.
    """
    if not isinstance(row, dict):
        raise Refused(where, "no object")
    image = identity(row.get("image_id"))
    if image is None or (image not in images and not strangers):
        raise Refused(where, "image")
    crowd = row.get("iscrowd")
    crowd = 0.0 if crowd is None else float(crowd) if crowd in (True, False) else number(crowd)
    if crowd not in (0, 1):
        raise Refused(where, "iscrowd")
    score, area, box = row.get("score"), row.get("area"), row.get("bbox")
    if score is not None and number(score) is None:
        raise Refused(where, "score")
    if area is not None and (number(area) is None or number(area) < 0):
        raise Refused(where, "area")
    if box == []:
        box = None
    if box is not None:
        if not isinstance(box, list) or len(box) != 4:
            raise Refused(where, "box")
        box = [number(side) for side in box]
        if None in box or min(box[2:]) < 0:
            raise Refused(where, "box")
    if strangers and box is None and row.get("segmentation") in (None, [], {}) and not crowd:
        raise Refused(where, "nothing")
    if image not in images or (strangers and crowd):
        return None
    try:
        mask = mask_of(row.get("segmentation"), *images[image])
    except Refused as error:
        raise Refused(where, str(error)) from error
    if box is None and mask is None:
        raise Refused(where, "nothing")
    if mask is not None and (box is None or (not box[2] * box[3] and mask.any())):
        box = tight(mask)
    if area is None:
        area = float(mask.sum()) if mask is not None else box[2] * box[3]
    return {
        "image": image,
        "crowd": bool(crowd),
        "score": 1.0 if score is None else number(score),
        "box": tuple(box),
        "mask": mask,
        "area": float(number(area)),
        "empty": not mask.any() if mask is not None else not box[2] * box[3],
    }


def tight(mask):
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return (0.0, 0.0, 0.0, 0.0)
    x, y = int(columns.min()), int(rows.min())
    return tuple(map(float, (x, y, columns.max() + 1 - x, rows.max() + 1 - y)))


def once(pairs):
    keys = [key for key, _ in pairs]
    return dict(pairs) | ({"": "twice"} if len(set(keys)) < len(keys) else {})


def read(data, need_name=False, need_images=False):
    """The images (id to height and width) and the objects of a file's bytes.

    Raises:
        Refused: with the first record that is refused, images before annotations.
    """
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        raise Refused("", f"no JSON: {error}") from error
    if not isinstance(content, dict):
        raise Refused("", "no object")
    for section in ("images", "annotations"):
        if not isinstance(content.get(section), list):
            raise Refused("", f"no list {section}")
    if need_images and not content["images"]:
        raise Refused("", "no images")
    images = read_images(content["images"], need_name)
    objects, ids = [], set()
    for place, row in enumerate(content["annotations"]):
        where = f"annotations[{place}]"
        objects.append(read_object(row, images, where))
        if row.get("id") is not None:
            key = identity(row["id"])
            if key is None or key in ids:
                raise Refused(where, "id")
            ids.add(key)
    return images, objects


def useful(objects):
    """What training, import and the like keep: objects with a mask that has pixels.

    Where no object of the file has a mask, boxes are what is wanted.
    """
    box_only = all(item["mask"] is None for item in objects)
    return [
        item for item in objects if not item["empty"] and (box_only or item["mask"] is not None)
    ]
