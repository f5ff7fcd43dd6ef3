"""A file read image by image: any order, any ids, nothing held."""

import json

import pytest

from promerge_d2.coco.index import CocoIndex
from promerge_d2.coco.records import RecordError
from promerge_d2.utils.errors import UserError
from tests.helpers import coco_json, square


@pytest.fixture
def labels(tmp_path):
    """Three images with 2, 0 and 1 objects, both sections in reverse."""
    mask, other = square(8, 10, 1, 2, 5, 6), square(8, 10, 0, 0, 2, 2)
    images = [("a.png", 8, 10, [mask, other]), ("b.png", 8, 10, []), ("c.png", 8, 10, [other])]
    path = coco_json(tmp_path / "l.json", images)
    return change(path, lambda c: (c["images"].reverse(), c["annotations"].reverse()))


def change(path, how):
    content = json.loads(path.read_text())
    how(content)
    path.write_text(json.dumps(content))
    return path


def as_lists(index):
    return [
        (image.id, image.name, [item.where.record["id"] for item in objects])
        for image, objects in (index.read(place) for place in range(len(index)))
    ]


@pytest.mark.parametrize("first", ["images", "annotations"])
def test_images_by_ascending_id_with_their_objects(labels, first):
    change(labels, lambda c: c.update({key: c.pop(key) for key in list(c) if key != first}))
    assert as_lists(CocoIndex(labels)) == [
        (1, "a.png", [2, 1]),
        (2, "b.png", []),
        (3, "c.png", [3]),
    ]
    assert CocoIndex(labels).image(2).size == (8, 10)


def test_ids_that_fit_no_array(labels):
    def big(content):
        for record, ident in zip(content["images"], ("x", 2**70, -1), strict=True):
            for annotation in content["annotations"]:
                if annotation["image_id"] == record["id"]:
                    annotation["image_id"] = ident
        for record, ident in zip(content["images"], ("x", 2**70, -1), strict=True):
            record["id"] = ident

    index = CocoIndex(change(labels, big))
    assert as_lists(index) == [(-1, "a.png", [2, 1]), (2**70, "b.png", []), ("x", "c.png", [3])]


def test_damaged_records_can_be_left_out(labels):
    def damage(content):
        content["images"][0]["width"] = None  # c.png
        content["annotations"][1]["bbox"] = [1]  # the second of a.png

    change(labels, damage)
    with pytest.raises(RecordError, match=r"images\[0\] \(id 3\)"):
        CocoIndex(labels)
    errors = []
    assert as_lists(CocoIndex(labels, errors.append)) == [(1, "a.png", [1]), (2, "b.png", [])]
    assert [error.kind for error in errors] == [
        "images without a size",
        "objects of images that are not listed",
        "boxes that cannot be read",
    ]


def test_what_is_left_out_is_counted(labels):
    def useless(content):
        content["annotations"][0]["segmentation"] = []
        content["annotations"][1]["segmentation"]["counts"] = [80]

    index = CocoIndex(change(labels, useless))
    assert index.tally.problems == {"objects without a mask": 1, "objects without a pixel": 1}
    assert not index.box_only

    def boxes(content):
        for record in content["annotations"]:
            record["segmentation"] = None

    index = CocoIndex(change(labels, boxes))
    assert (index.box_only, index.tally.problems) == (True, {})


def test_a_file_that_changes_is_noticed(labels):
    index = CocoIndex(labels)
    labels.write_text(labels.read_text() + " ")
    with pytest.raises(UserError, match=r"l\.json was changed"):
        index.read(0)
    labels.unlink()
    with pytest.raises(UserError, match=r"l\.json"):
        index.read(0)
