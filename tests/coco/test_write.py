import json
import os

import pytest

from promerge_d2.coco.write import CATEGORIES, coco_writer
from promerge_d2.utils.errors import UserError


def test_images_and_annotations_in_any_order(tmp_path):
    path = tmp_path / "deep" / "o.json"
    with coco_writer(path, {"made": "söder"}) as out:
        out.add_annotation({"image_id": 1, "score": 0.5})
        out.add_image({"id": 1, "file_name": "söder.jpg"})
        out.add_annotation({"image_id": 1, "iscrowd": 1, "id": 70})
        out.add_image({"id": 2, "file_name": os.fsdecode(b"\xe9.jpg")})
        assert (out.images, out.annotations) == (2, 2)
        assert not path.exists()
    text = path.read_text(encoding="ascii")
    assert len(text.splitlines()) == 2 + 2 + 2 + 2 + 2  # a record a line
    content = json.loads(text)
    assert list(content) == ["info", "images", "annotations", "categories"]
    assert content["info"] == {"made": "söder"}
    assert [image["file_name"] for image in content["images"]] == ["söder.jpg", "\udce9.jpg"]
    assert content["annotations"] == [
        {"id": 1, "category_id": 1, "iscrowd": 0, "image_id": 1, "score": 0.5},
        {"id": 70, "category_id": 1, "iscrowd": 1, "image_id": 1},
    ]
    assert content["categories"] == CATEGORIES
    assert os.listdir(path.parent) == ["o.json"]


def test_a_file_without_records(tmp_path):
    with coco_writer(tmp_path / "o.json", {}, [{"id": 3, "name": "x"}]):
        pass
    content = json.loads((tmp_path / "o.json").read_text())
    assert content == {
        "info": {},
        "images": [],
        "annotations": [],
        "categories": [{"id": 3, "name": "x"}],
    }


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_failure_leaves_the_old_file(tmp_path, number):
    path = tmp_path / "o.json"
    path.write_text("old")

    def fail():
        with coco_writer(path, {}) as out:
            out.add_image({"id": 1})
            out.add_annotation({"image_id": 1, "score": number})

    with pytest.raises(ValueError, match="JSON"):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["o.json"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"), coco_writer(tmp_path / "file" / "o.json", {}):
        pass
