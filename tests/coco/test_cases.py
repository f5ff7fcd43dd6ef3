"""Kinds of files that people report trouble with: the same right answer in every tool."""

from __future__ import annotations

import json
import logging
import os
import unicodedata

import numpy as np
import pytest
from pycocotools import mask as mask_api

from official.prepare import write_ground_truth
from official.readers import read_coco
from promerge_d2.coco.check import validate_labels
from promerge_d2.coco.ground_truth import read_ground_truth
from promerge_d2.coco.predictions import read_predictions
from promerge_d2.data.lazy import LazyCoco
from promerge_d2.evaluation import align_predictions
from promerge_d2.pseudo_labels.finding import list_images
from promerge_d2.pseudo_labels.importing import import_labels
from promerge_d2.pseudo_labels.inputs import find_image
from promerge_d2.utils.errors import UserError
from tests.helpers import photo, run_tool, save_image, square

UPPER, LOWER = [67, 9, 107, 9, 107, 46, 67, 46], [11, 48, 43, 48, 43, 83, 11, 83]
BOXES = [(67.0, 9.0, 40.0, 37.0), (11.0, 48.0, 32.0, 35.0)]
AREAS = [40 * 37, 32 * 35]


def two_objects():
    """An image of 120 x 90 pixels with two rectangles."""
    annotations = [
        {"id": n, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": area, "bbox": [*box]}
        | {"segmentation": [polygon]}
        for n, (polygon, box, area) in enumerate(zip((UPPER, LOWER), BOXES, AREAS, strict=True), 1)
    ]
    image = {"id": 1, "file_name": "a.jpg", "width": 120, "height": 90}
    return {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "o"}]}


def each(section, **values):
    """A change of every record of a section; a key whose value is ``...`` is dropped."""

    def change(content):
        for record in content[section]:
            record.update(values)
            for key in [key for key, value in values.items() if value is ...]:
                del record[key]

    return change


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def as_evaluated(path):
    truth = read_ground_truth(path)
    predicted = align_predictions(read_predictions(path), truth, "id").instances
    crowds = [item for item in truth.objects if item.crowd]
    assert [(i.box, i.image_id) for i in truth.objects if not i.crowd] == [
        (item.box, item.image_id) for item in predicted
    ]
    objects = [(i.image_id, i.box, mask_api.decode(i.rle).sum(), i.crowd) for i in truth.objects]
    assert len(crowds) == sum(crowd for *_, crowd in objects)
    return objects


def as_trained(path):
    return [
        (item["image_id"], tuple(thing["bbox"]), area_of(thing, item), bool(thing["iscrowd"]))
        for item in LazyCoco(path, "images")
        for thing in item["annotations"]
    ]


def area_of(record, image):
    mask = record["segmentation"]
    if isinstance(mask, list):
        mask = mask_api.merge(mask_api.frPyObjects(mask, image["height"], image["width"]))
    return mask_api.decode(mask).sum()


def as_written(path):
    content = json.loads(path.read_text())
    images = {image["id"]: image for image in content["images"]}
    return [
        (a["image_id"], tuple(a["bbox"]), area_of(a, images[a["image_id"]]), bool(a["iscrowd"]))
        for a in content["annotations"]
    ]


def as_imported(path):
    import_labels(path, path.with_suffix(".imported"))
    return as_written(path.with_suffix(".imported"))


def as_prepared(path):
    write_ground_truth(read_coco(path, "a page"), path.with_suffix(".prepared"), None)
    return as_written(path.with_suffix(".prepared"))


TOOLS = [as_evaluated, as_trained, as_imported, as_prepared]
BIG = 2**64 - 1


def nothing(content):
    pass


@pytest.mark.parametrize(
    "change",
    [
        nothing,
        each("images", width="120", height="90"),
        each("images", width=120.0, height=90.0),
        each("annotations", iscrowd="0"),
        each("annotations", iscrowd=False),
        each("annotations", iscrowd=...),
        each("annotations", iscrowd=None),
        each("annotations", score=None),
        each("annotations", bbox=...),
        each("annotations", bbox=[]),
        each("annotations", bbox=[5, 5, 0, 7]),
        each("annotations", area=...),
        each("annotations", area=None),
        each("annotations", id=...),
        lambda content: content["annotations"][0].update(segmentation=UPPER),
        lambda content: content["annotations"][0]["segmentation"].append([60.0, 45.0, 60.0, 46.0]),
        lambda content: content["annotations"][0]["segmentation"].insert(0, [60.0, 45.0]),
        each("images", file_name=".\\a.jpg"),
    ],
)
@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_reads_the_two_objects(tmp_path, tool, change):
    content = two_objects()
    change(content)
    found = tool(write(tmp_path / "l.json", content))
    assert found == [(1, box, area, False) for box, area in zip(BOXES, AREAS, strict=True)]


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("image_id", [BIG, 2**70, -3, "a", "0001", "1"])
def test_ids_of_any_size_or_as_text(tmp_path, tool, image_id):
    content = two_objects()
    content["images"][0]["id"] = image_id
    each("annotations", image_id=image_id)(content)
    found = tool(write(tmp_path / "l.json", content))
    number = 1 if tool is as_imported and isinstance(image_id, str) else image_id
    assert [image for image, *_ in found] == [number, number]


@pytest.mark.parametrize("crowd", ["1", True, 1.0])
@pytest.mark.parametrize("tool", TOOLS)
def test_crowds_as_text_or_boolean(tmp_path, tool, crowd):
    content = two_objects()
    content["annotations"][1]["iscrowd"] = crowd
    assert [c for *_, c in tool(write(tmp_path / "l.json", content))] == [False, True]


@pytest.mark.parametrize("tool", [as_trained, as_imported])
@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (None, "objects without a mask"),
        ([[60, 45, 60, 46]], "objects without a mask"),
        ({"size": [90, 120], "counts": [90 * 120]}, "objects without a pixel"),
    ],
)
def test_objects_of_no_use_are_left_out_and_counted(tmp_path, caplog, tool, mask, reason):
    content = two_objects()
    content["annotations"][0]["segmentation"] = mask
    path = write(tmp_path / "l.json", content)
    with caplog.at_level(logging.WARNING):
        assert [box for _, box, *_ in tool(path)] == BOXES[1:]
    if tool is as_trained:
        assert f"l.json: 1 {reason}, the first" in caplog.text
    else:
        assert import_labels(path, tmp_path / "o.json").left_out.problems == {reason: 1}
    assert validate_labels(path).problems[reason] == 1


def test_where_no_object_has_a_mask_boxes_are_trained_on(tmp_path):
    content = two_objects()
    each("annotations", segmentation=...)(content)
    content["annotations"].append({"id": 3, "image_id": 1, "bbox": [5, 5, 0, 3]})
    (item,) = LazyCoco(write(tmp_path / "l.json", content), "images")
    assert [tuple(thing["bbox"]) for thing in item["annotations"]] == BOXES


def test_what_was_mended_is_counted(tmp_path, caplog):
    content = two_objects()
    content["annotations"][0]["segmentation"] += [[60, 45, 60, 46], [1, 1]]
    content["annotations"][1]["bbox"] = [5, 5, 0, 7]
    path = write(tmp_path / "l.json", content)
    stray = "polygon parts of fewer than three points"
    flat = "boxes of no area beside a mask (the mask's box is taken)"
    with caplog.at_level(logging.WARNING):
        read_ground_truth(path)
    assert f"l.json: 2 {stray}" in caplog.text
    assert f"l.json: 1 {flat}" in caplog.text
    assert validate_labels(path).problems == {stray: 2, flat: 1}
    assert import_labels(path, tmp_path / "o.json").mended.problems == {stray: 2, flat: 1}


@pytest.mark.parametrize(
    ("change", "record"),
    [
        (each("images", width="12O"), "images[0] (id 1)"),
        (each("images", height=90.5), "images[0] (id 1)"),
        (each("images", width=True), "images[0] (id 1)"),
        (each("images", file_name=3), "images[0] (id 1)"),
        (each("annotations", iscrowd="no"), "annotations[0] (id 1, image_id 1)"),
        (each("annotations", score="high"), "annotations[0] (id 1, image_id 1)"),
        (each("annotations", area=-1), "annotations[0] (id 1, image_id 1)"),
        (each("annotations", id=1), "annotations[1] (id 1, image_id 1)"),
        (each("annotations", id=1.5), "annotations[0] (id 1.5, image_id 1)"),
        (each("annotations", image_id="1"), "annotations[0] (id 1, image_id '1')"),
        (each("annotations", bbox=[1, 2, 3]), "annotations[0] (id 1, image_id 1)"),
        (each("annotations", bbox=..., segmentation=...), "annotations[0] (id 1, image_id 1)"),
        (each("annotations", segmentation=[[1, 2, 3, 4, 5]]), "annotations[0] (id 1, image_id 1)"),
    ],
)
def test_every_tool_refuses_the_same_record_by_name(tmp_path, change, record):
    content = two_objects()
    change(content)
    path = write(tmp_path / "l.json", content)
    for tool in TOOLS:
        with pytest.raises(UserError) as caught:
            tool(path)
        assert f"l.json: {record}" in str(caught.value)
    examples = validate_labels(path).examples.values()
    assert any(record in example for kind in examples for example in kind)
    found = import_labels(path, tmp_path / "o.json", leave_out_damaged=True)
    assert found.left_out.problems


def test_one_turned_photograph_among_good_ones(tmp_path):
    """Four upright images, whose polygons tell, and one whose RLE says that it is turned."""
    content = {"images": [], "annotations": []}
    for number in range(1, 6):
        image = {"id": number, "file_name": f"p{number}.jpg", "width": 120, "height": 90}
        content["images"].append(image)
        record = {"id": number, "image_id": number, "segmentation": [UPPER]}
        if number == 5:
            rle = mask_api.encode(np.asfortranarray(square(120, 90, 10, 67, 40, 110), np.uint8))
            record["segmentation"] = {"size": [120, 90], "counts": rle["counts"].decode()}
        content["annotations"].append(record)
    path = write(tmp_path / "l.json", content)
    found = import_labels(path, tmp_path / "o.json")
    assert (found.swapped, found.masks) == (1, 5)
    sizes = [
        (i["width"], i["height"]) for i in json.loads((tmp_path / "o.json").read_text())["images"]
    ]
    assert sizes == [(120, 90)] * 4 + [(90, 120)]
    for tool in (as_evaluated, as_trained, as_prepared):
        with pytest.raises(UserError, match=r"annotations\[4\] \(id 5.*promerge import"):
            tool(path)


# Names


@pytest.mark.parametrize(
    ("listed", "on_disk"),
    [
        (".\\deep\\a.jpg", "deep/a.jpg"),
        (unicodedata.normalize("NFC", "söder.jpg"), unicodedata.normalize("NFD", "söder.jpg")),
        (unicodedata.normalize("NFD", "söder.jpg"), unicodedata.normalize("NFC", "söder.jpg")),
        ("a\\b.jpg", "a\\b.jpg"),
        (os.fsdecode(b"caf\xe9.jpg"), os.fsdecode(b"caf\xe9.jpg")),
    ],
)
def test_names_are_found_however_they_are_spelled(tmp_path, listed, on_disk):
    save_image(tmp_path / "in" / on_disk, photo(90, 120))
    content = two_objects()
    content["images"][0] |= {"id": 70, "file_name": listed}
    each("annotations", image_id=70)(content)
    path = write(tmp_path / "l.json", content)
    assert find_image(tmp_path / "in", listed) == tmp_path / "in" / on_disk
    (item,) = LazyCoco(path, tmp_path / "in")
    assert os.path.samefile(item["file_name"], tmp_path / "in" / on_disk)
    (image,) = list_images(path, tmp_path / "in").files
    assert (image.id, image.name) == (70, on_disk)
    if "\\" not in on_disk:  # official files name no such file
        output = tmp_path / "o.json"
        write_ground_truth(read_coco(path, "a page"), output, tmp_path / "in")
        assert as_written(output)[0][0] == 70


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_predictions_are_matched_whatever_the_normal_form(tmp_path, form):
    truth, guesses = two_objects(), two_objects()
    truth["images"][0]["file_name"] = unicodedata.normalize("NFC", "in/söder.jpg")
    guesses["images"][0] |= {"id": 9, "file_name": unicodedata.normalize(form, ".\\in\\söder.jpg")}
    each("annotations", image_id=9)(guesses)
    ground_truth = read_ground_truth(write(tmp_path / "t.json", truth))
    file = read_predictions(write(tmp_path / "p.json", guesses))
    assert len(align_predictions(file, ground_truth, "file_name").instances) == 2


def test_a_name_that_is_not_utf8_is_printed(tmp_path, monkeypatch, capsys):
    content = two_objects()
    content["images"][0]["file_name"] = os.fsdecode(b"caf\xe9.jpg")
    path = write(tmp_path / "l.json", content)
    (tmp_path / "in").mkdir()
    assert run_tool(monkeypatch, "validate_labels.py", path, "--images", tmp_path / "in") == 2
    assert "1 files missing" in capsys.readouterr().out
    save_image(tmp_path / "in" / os.fsdecode(b"caf\xe9.jpg"), photo(90, 120))
    arguments = [path, "--images", tmp_path / "in", "--gallery", tmp_path / "page"]
    assert run_tool(monkeypatch, "validate_labels.py", *arguments) == 0
    assert r"caf\udce9.jpg" in (tmp_path / "page" / "index.html").read_text()
