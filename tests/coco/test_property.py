"""Small random COCO files and mutations of them, through every tool: a plain reader's answer.

``PROMERGE_EXAMPLES=10000 pytest tests/coco/test_property.py`` tries more, from new seeds.
"""

from __future__ import annotations

import copy
import itertools
import json
import os

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_api

from official.prepare import write_ground_truth
from official.readers import read_coco
from promerge_d2.coco.check import validate_labels
from promerge_d2.coco.ground_truth import read_ground_truth
from promerge_d2.coco.predictions import read_predictions
from promerge_d2.data.lazy import LazyCoco
from promerge_d2.evaluation import align_predictions, evaluate_class_agnostic
from promerge_d2.pseudo_labels.finding import list_images
from promerge_d2.pseudo_labels.importing import import_labels
from promerge_d2.utils.errors import UserError
from tests.coco import plain
from tests.helpers import parse_ground_truth

ASKED = int(os.environ.get("PROMERGE_EXAMPLES", "0"))
TRIED = settings(
    max_examples=ASKED or 200,
    derandomize=not ASKED,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

ODD = [
    *(None, True, False, "", "7", "0", "1", "1e1", "x", "é", "\ud800", "a\\b.jpg", ".\\a.jpg"),
    *(-1, 0, 1, 2, 7, 0.0, 0.5, 1.0, 7.0, 65535, 65536, 2**31, 2**63, 2**64 - 1, 10**400),
    *(1e308, -1e-308, float("nan"), float("inf"), [], {}, [1], [[]], {"size": [6, 8]}),
    *([0, 0, 0, 0], [1, 1, 3, 0], [1, 2, 3], ["1", 2, 3, 4], [0, 0, 1e200, 1e200]),
    *([[1, 1, 4, 1, 4, 4], [2, 2]], [[1, 1, 2, 2]], [1, 1, 4, 1, 4, 4], [[0, 0, 4, 0, 4, 4, 1]]),
    *(
        [[0, 0, 1e9, 0, 1, 1]],
        [[0, "1", 4, 0, 4, 4]],
        [[1, 1, 1, 1, 1, 1]],
        [[0, 0, 9, 0, 9, 9], 3],
    ),
    *({"size": [6, 8], "counts": "P"}, {"size": [8, 6], "counts": [48]}, "52203"),
    *({"size": [6, 8], "counts": [48]}, {"size": [6, 8], "counts": [0, 48]}),
    *({"size": [6.0, 8], "counts": [8, 40]}, {"size": [6, 8], "counts": [49, -1]}),
]
KEYS = {
    "images": ["id", "file_name", "width", "height", "reason", "coco_url"],
    "annotations": [
        *("id", "image_id", "bbox", "area", "score", "iscrowd", "segmentation", "category_id"),
    ],
}


@st.composite
def files(draw):
    """Bytes of a file that is right, or right but for a few changes."""
    content = draw(good_files())
    for _ in range(draw(st.integers(0, 3))):
        change(draw, content)
    order = draw(st.permutations(list(content)))
    escaped = draw(st.booleans())
    text = json.dumps({key: content[key] for key in order}, ensure_ascii=escaped)
    encodings = ["utf-8"] * 6 + ["utf-8-sig"] * 2 + ["utf-16", "latin-1", "utf-32-le"]
    data = text.encode(draw(st.sampled_from(encodings)), "surrogatepass" if escaped else "replace")
    if draw(st.integers(0, 30)) == 0:
        data = data[: draw(st.integers(0, len(data)))]
    return data


@st.composite
def good_files(draw):
    images, annotations = [], []
    for number in range(draw(st.integers(1, 3))):
        height, width = draw(st.sampled_from([(6, 8), (8, 6), (5, 5)]))
        name = draw(st.sampled_from(["a", "söder/b", "c d"])) + f"{number}.jpg"
        images.append({"id": number + 1, "file_name": name, "width": width, "height": height})
    for number in range(draw(st.integers(0, 4))):
        image = draw(st.sampled_from(images))
        seed = draw(st.integers(0, 999))
        rng = np.random.default_rng(seed)
        mask = rng.random((image["height"], image["width"])) < rng.choice([0.05, 0.5, 1])
        rle = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
        x, y, w, h = rng.integers(1, 5, 4).tolist()
        record = {
            "id": number + 1,
            "image_id": image["id"],
            "category_id": 1,
            "iscrowd": int(seed % 7 == 0),
            "bbox": mask_api.toBbox(rle).tolist(),
            "area": int(mask.sum()),
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        }
        kind = draw(st.integers(0, 3))
        if kind == 1:
            record["segmentation"]["counts"] = plain.decode(record["segmentation"]["counts"])
        elif kind == 2:
            record["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            record |= {"bbox": [x, y, w, h], "area": w * h}
        elif kind == 3:
            del record["segmentation"]
        if draw(st.booleans()):
            record["score"] = float(rng.random())
        annotations.append(record)
    return {"info": {"description": "x"}, "images": images, "annotations": annotations}


def change(draw, content, sections=("images", "annotations", "annotations")):
    """Change a file that is right, or was."""
    odd = st.sampled_from(ODD).map(copy.deepcopy)
    section = draw(st.sampled_from(sections))
    rows = content.get(section)
    if not isinstance(rows, list) or not rows or draw(st.integers(0, 20)) == 0:
        content[section] = draw(odd)
        return
    place = draw(st.integers(0, len(rows) - 1))
    row, key, other = rows[place], *(draw(st.sampled_from(KEYS[section])) for _ in range(2))
    how = draw(st.sampled_from(["drop", "odd", "odd", "odd", "text", "swap", "twice", "record"]))
    if how == "record":
        rows[place] = draw(odd)
    elif how == "twice":
        rows.insert(draw(st.integers(0, len(rows))), copy.deepcopy(row))
    elif not isinstance(row, dict):
        rows.pop(place)
    elif how == "drop":
        row.pop(key, None)
    elif how == "odd":
        row[key] = draw(odd)
    elif how == "text":
        row[key] = str(row.get(key))
    else:
        row[key], row[other] = row.get(other), row.get(key)


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


@TRIED
@given(data=files())
def test_every_tool_gives_the_plain_readers_answer(tmp_path, data):
    path = tmp_path / f"{next(NUMBERS)}.json"  # a new one each time: an index knows it by its time
    path.write_bytes(data)
    check_evaluation(path, expect(data, need_images=True))
    for check in (check_prepare, check_training, check_import, check_report):
        check(path, expect(data, need_name=True))
    for left in tmp_path.glob("*"):
        left.unlink()


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


def read_list(rows, images):
    """The plain reader's predictions on some images, or its refusal."""
    if not isinstance(rows, list):
        return plain.Refused("")
    objects = []
    for masks in (False, True):  # masks are looked at when all records are read
        for place, row in enumerate(rows):
            try:
                item = plain.read_object(row, images if masks else {}, f"record {place}", True)
            except plain.Refused as refused:
                return refused
            if item is not None:
                objects.append({**item, "crowd": False})
    for item in objects:
        box = item["box"]
        item["area"] = float(box[2] * box[3] if item["mask"] is None else item["mask"].sum())
    return objects


@TRIED
@given(truth=good_files(), guesses=good_files(), draw=st.data())
def test_a_result_list_gives_the_plain_readers_answer(tmp_path, truth, guesses, draw):
    for _ in range(draw.draw(st.integers(0, 2))):
        change(draw.draw, guesses, sections=("annotations",))
    rows = guesses["annotations"]
    images = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    ground_truth = parse_ground_truth(truth, "truth")
    expected = read_list(rows, images)
    if not isinstance(expected, plain.Refused):
        known = {plain.identity(row["image_id"]) for row in rows if not crowd_of(row)}
        if known and not known & images.keys():
            expected = plain.Refused("truth")  # no image in common

    def evaluate():
        return align_predictions(read_predictions(path), ground_truth)

    path = tmp_path / f"{next(NUMBERS)}.json"
    path.write_text(json.dumps(rows))
    found = run(evaluate, expected, path)
    path.unlink()
    if found is not None:
        assert as_rows(found.instances) == rows_of(expected)


def crowd_of(row):
    return row.get("iscrowd") not in (None, False, 0, "0")


@TRIED
@given(data=files())
def test_an_input_list_gives_names_and_ids(tmp_path, data):
    path = tmp_path / "input.json"
    path.write_bytes(data)
    images, _ = attempt(lambda: list_images(path, tmp_path), path)
    if images is not None:
        assert len({image.id for image in images.files}) == len(images.files)
