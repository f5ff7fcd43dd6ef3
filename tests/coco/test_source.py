"""Files are never held whole: the records, the refusals and what a file says of itself."""

from __future__ import annotations

import json

import pytest

from promerge_d2.coco.ground_truth import read_ground_truth
from promerge_d2.coco.predictions import read_predictions
from promerge_d2.coco.read import CocoSource
from promerge_d2.utils.errors import UserError
from tests.helpers import parse_ground_truth, parse_predictions

OBJECTS = [(1, 20, 0, 40, 40, {"score": 0.25}), (2, 1.5, 0, 10, 10, {"iscrowd": 1})]


def test_a_file_gives_the_records_of_its_content(coco, save):
    content = coco(OBJECTS, images=(1, 2, 3))
    last = dict(reversed(content.items()))
    for name, whole in (("whole.json", content), ("last.json", last)):
        truth, parsed = read_ground_truth(save(name, whole)), parse_ground_truth(whole, "p")
        assert truth.images == parsed.images
        assert repr([*truth.objects]).replace(truth.name, "p") == repr([*parsed.objects])
    listed, without = content["annotations"], {"annotations": content["annotations"]}
    for name, part in (("list.json", listed), ("without.json", without), ("last.json", last)):
        file, parsed = read_predictions(save(name, part)), parse_predictions(part, "p")
        assert file.images == parsed.images
        assert repr([*file.records]).replace(file.name, "p") == repr([*parsed.records])
    assert read_predictions(save("without.json", without)).images is None
    assert len(read_predictions(save("whole.json", content)).images) == 3


def test_what_a_file_says_of_itself(coco, save):
    content = coco(OBJECTS, images=(1, 2, 3))
    told = save("told.json", {"info": {"description": "weights"}, **content})
    odd = save("odd.json", {"info": [], **content})
    silent = save("silent.json", content)
    listed = save("list.json", content["annotations"])
    for path, said in ((told, "weights"), (odd, ""), (silent, ""), (listed, "")):
        assert CocoSource(path).description == read_predictions(path).description == said


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"images": [{"id": 1, "width": 9, "height": 9}]}', "'annotations'"),
        ('{"images": [{"id": 1, "wid', "not valid JSON"),
        ('{"images": [{"width": 9}], "annotations": []}', r"images\[0\]: .*'id'"),
        ("[]", "bare list"),
        ("0", "not valid JSON"),
        ("[", "not valid JSON"),
        (" ", "not valid JSON"),
        ("", "not valid JSON"),
        ('{"images": [{"id": 1, "width": 9, "height": 9}], "annotations": {"id": 1}}', "'annot"),
        ('{"images": [{"id": 1, "width": 9, "height": 9}], "annotations": 1}', "'annotations'"),
        ('{"images": 5, "annotations": []}', "'images'"),
        ('{"images": [], "images": [], "annotations": []}', "'images' occurs twice"),
        ('{"images": [{"id": 1, "width": ' + "[" * 100_000, "nested too deep"),
        ('{"images": [NaN]}', r"images\[0\] is nan"),
    ],
)
def test_broken_files(tmp_path, text, named):
    path = tmp_path / "truth.json"
    path.write_text(text)
    with pytest.raises(UserError, match=named) as caught:
        read_ground_truth(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_matter(coco, tmp_path, encoding):
    content = coco(OBJECTS, images=(1, 2), names=["söder.jpg", "b.jpg"])
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
    assert read_ground_truth(path).images[1].file_name == "söder.jpg"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_other_encodings_are_refused(coco, tmp_path, encoding):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(coco(OBJECTS, images=(1, 2))), encoding=encoding)
    with pytest.raises(UserError, match=r"truth\.json .*UTF-8"):
        read_ground_truth(path)


def test_numbers_are_as_they_are_in_the_file(save):
    content = [{"image_id": 12345678901, "bbox": [0.1, 2, 3e0, 4.25], "score": 1}]
    (record,) = read_predictions(save("p.json", content)).records
    assert record.image_id == 12345678901
    assert record.box == (0.1, 2.0, 3.0, 4.25)
    assert json.dumps(record.score) == "1.0"
