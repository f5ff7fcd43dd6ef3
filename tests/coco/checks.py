"""What each tool gives for a COCO file, compared with what the plain reader gives."""

from __future__ import annotations

import itertools
import json

import numpy as np
from pycocotools import mask as mask_api

from official.prepare import write_ground_truth
from official.readers import read_coco
from promerge_d2.coco.check import validate_labels
from promerge_d2.coco.ground_truth import read_ground_truth
from promerge_d2.coco.predictions import read_predictions
from promerge_d2.data.lazy import LazyCoco
from promerge_d2.evaluation import align_predictions, evaluate_class_agnostic
from promerge_d2.pseudo_labels.importing import import_labels
from promerge_d2.utils.errors import UserError
from tests.coco import plain

NUMBERS = itertools.count()


def expect(data, **needed):
    """The plain reader's images and objects, or its refusal."""
    try:
        return plain.read(data, **needed)
    except plain.Refused as refused:
        return refused


def attempt(tool, path):
    """What a tool gives, or the words of its refusal, which name the file."""
    try:
        return tool(), None
    except UserError as error:
        words = str(error)
    assert str(path) in words
    return None, words


def run(tool, expected, path):
    """What a tool gives; None where it refuses what the plain reader refuses, by name."""
    result, words = attempt(tool, path)
    if words is not None:
        assert isinstance(expected, plain.Refused), f"refused: {words}"
        section = expected.where.partition("[")[0]
        # official images are read before their sizes are, so of two broken ones any may be named
        assert (section if tool.__name__ == "prepare" else expected.where) in words
        return None
    assert not isinstance(expected, plain.Refused), f"taken, though {expected}"
    return result


def as_rows(instances):
    return [
        (
            *(item.image_id, item.crowd, item.score, item.box),
            None if item.rle is None else mask_api.decode(item.rle).tobytes(),
            item.area,
        )
        for item in instances
    ]


def rows_of(objects, **changes):
    return [
        (
            *(item["image"], item["crowd"], item["score"], item["box"]),
            None if item["mask"] is None else item["mask"].astype(np.uint8, order="C").tobytes(),
            item["area"],
        )
        for item in ({**item, **changes} for item in objects)
    ]


def check_every_tool(path, data):
    """Compare evaluation, preparation, training's reader, import and validation."""
    check_evaluation(path, expect(data, need_images=True))
    for check in (check_prepare, check_training, check_import, check_report):
        check(path, expect(data, need_name=True))


def check_evaluation(path, expected):
    truth = run(lambda: read_ground_truth(path), expected, path)
    if truth is None:
        return
    images, objects = expected
    assert {i.id: (i.height, i.width) for i in truth.images.values()} == images
    assert as_rows(truth.objects) == rows_of(objects)
    predictions = align_predictions(read_predictions(path), truth, "id")
    guesses = [{**item, "crowd": False} for item in objects if not item["crowd"]]
    for item in guesses:
        box = item["box"]
        item["area"] = float(box[2] * box[3] if item["mask"] is None else item["mask"].sum())
    assert as_rows(predictions.instances) == rows_of(guesses)
    for figures in evaluate_class_agnostic(truth, predictions).values():
        assert all(-1 <= figure <= 100 for figure in figures.values())


def check_prepare(path, expected):
    output = path.with_suffix(".prepared")

    def prepare():
        return write_ground_truth(read_coco(path, "a page"), output, None)

    if run(prepare, expected, path) is None:
        assert not output.exists()
        return
    images, objects = expected
    written = plain.read(output.read_bytes(), need_name=True)
    assert written[0] == images
    assert rows_of(written[1]) == rows_of(objects, score=1.0)


def check_training(path, expected):
    items = run(lambda: LazyCoco(path, "root"), expected, path)
    if items is None:
        return
    images, objects = expected
    found = []
    for item in items:
        assert (item["height"], item["width"]) == images[item["image_id"]]
        for thing in item["annotations"]:
            mask = plain.mask_of(thing.get("segmentation"), item["height"], item["width"])
            crowd, score = bool(thing["iscrowd"]), thing.get("score", 1.0)
            found.append(
                {"image": item["image_id"], "crowd": crowd, "score": score, "mask": mask}
                | {"box": tuple(thing["bbox"]), "area": None}
            )
    ids = [item["image_id"] for item in items]
    assert ids == sorted(images, key=lambda i: (isinstance(i, str), i))
    kept = sorted(plain.useful(objects), key=lambda item: ids.index(item["image"]))
    assert rows_of(found) == rows_of(kept, area=None)


def check_import(path, expected):
    output = path.with_suffix(".imported")

    def tool():
        return import_labels(path, output)

    if may_be_exchanged(path):  # import puts that right, or refuses what contradicts itself
        attempt(tool, path)
        return
    if run(tool, expected, path) is None:
        assert not output.exists()
        # leaving out what is damaged, it ends, unless the whole file is refused
        _, words = attempt(lambda: import_labels(path, output, leave_out_damaged=True), path)
        assert words is None or expected.where == ""
        return
    images, objects = expected
    written = plain.read(output.read_bytes(), need_name=True)
    kept = [item for item in objects if item["mask"] is not None and item["mask"].any()]
    sizes = list(images.values())
    assert list(written[0].values()) == sizes
    if all(isinstance(image, int) for image in images):
        assert list(written[0]) == list(images)
    places = {image: place for place, image in enumerate(images)}
    again = {image: place for place, image in enumerate(written[0])}
    rows = [
        {**item, "image": again[item["image"]]}
        for item in sorted(written[1], key=lambda item: again[item["image"]])
    ]
    wanted = [
        {
            **item,
            "image": places[item["image"]],
            "box": plain.tight(item["mask"]),
            "area": float(item["mask"].sum()),
        }
        for item in sorted(kept, key=lambda item: places[item["image"]])
    ]
    assert rows_of(rows) == rows_of(wanted)


def may_be_exchanged(path):
    """Whether a mask or a polygon of the file does not fit the listed size of its image."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    except (ValueError, TypeError, KeyError):
        return True
    for row in content["annotations"] if isinstance(content.get("annotations"), list) else ():
        mask = row.get("segmentation") if isinstance(row, dict) else None
        image_id = row.get("image_id") if isinstance(row, dict) else None
        size = sizes.get(image_id) if isinstance(image_id, int | float | str) else None
        if isinstance(mask, dict) and size and mask.get("size") == [*size][::-1] != [*size]:
            return True
        if isinstance(mask, list) and mask:
            return True
    return False


def check_report(path, expected):
    found, words = attempt(lambda: validate_labels(path), path)
    if words is not None:
        assert isinstance(expected, plain.Refused)
        assert expected.where == ""
        return
    if isinstance(expected, plain.Refused):
        assert expected.where != ""
        named = itertools.chain.from_iterable(found.examples.values())
        assert any(expected.where in example for example in named)
        return
    images, objects = expected
    counted = [item for item in objects if not item["crowd"]]
    assert (found.images, found.masks) == (len(images), len(counted))
    maskless = sum(item["mask"] is None for item in counted)
    assert found.problems["objects without a mask"] == maskless
    useless = sum(item["mask"] is not None and item["empty"] for item in counted)
    assert found.problems["objects without a pixel"] == useless
