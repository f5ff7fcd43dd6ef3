"""Files beyond a size are streamed: the same records, the same refusals."""

from __future__ import annotations

import json

import pytest

from promerge_d2.coco import sections
from promerge_d2.coco.read import read_ground_truth, read_predictions
from promerge_d2.utils.errors import UserError

OBJECTS = [(1, 20, 0, 40, 40, {"score": 0.25}), (2, 1.5, 0, 10, 10, {"iscrowd": 1})]


@pytest.fixture
def streamed(monkeypatch):
    """``streamed(function, path)``: called as if the file were too large to be read at once."""

    def call(function, path):
        with monkeypatch.context() as patch:
            patch.setattr(sections, "WHOLE", 0)
            patch.setattr(sections, "read_json", None)
            return function(path)

    return call


def test_the_same_records(coco, save, streamed):
    content = coco(OBJECTS, images=(1, 2, 3))
    whole = save("whole.json", content)
    listed = save("list.json", content["annotations"])
    without = save("without.json", {"annotations": content["annotations"]})
    last = save("last.json", dict(reversed(content.items())))
    for path in (whole, last):
        many, one = streamed(read_ground_truth, path), read_ground_truth(path)
        assert many.images == one.images
        assert list(many.objects) == list(one.objects)
    for path in (whole, listed, without, last):
        many, one = streamed(read_predictions, path), read_predictions(path)
        assert many.images == one.images
        assert repr(list(many.records)) == repr(list(one.records))  # NaN equals no NaN
    assert streamed(read_predictions, listed).images is None
    assert streamed(read_predictions, without).images is None
    assert len(streamed(read_predictions, whole).images) == 3


def test_what_a_file_says_of_itself(coco, save, streamed):
    content = coco(OBJECTS, images=(1, 2, 3))
    told = save("told.json", {"info": {"description": "weights"}, **content})
    odd = save("odd.json", {"info": [], **content})
    silent = save("silent.json", content)
    listed = save("list.json", content["annotations"])
    for path, said in ((told, "weights"), (odd, ""), (silent, ""), (listed, "")):
        assert read_predictions(path).description == said
        assert streamed(read_predictions, path).description == said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [{"id": 1, "width": 9, "height": 9}]}', "it has no list 'annotations'"),
        ('{"images": [{"id": 1, "wid', "is not valid JSON"),
        ('{"images": [{"width": 9}], "annotations": []}', r"images\[0\]: it has no 'id'"),
        ("[]", "is a bare list"),
        ("0", "is not valid JSON"),
        ("[", "is a bare list"),
        (" ", "is not valid JSON"),
        ('{"images": [{"id": 1, "width": 9, "height": 9}], "annotations": {"id": 1}}', "image_id"),
        ('{"images": [{"id": 1, "width": 9, "height": 9}], "annotations": 1}', "is 1, not an obj"),
        ('{"images": 5, "annotations": []}', r"images\[0\] is 5"),
        ('{"images": [{"id": 1, "width": ' + "[" * 100_000, "nested too deep"),
        ('{"images": [NaN]}', r"images\[0\] is nan, not an object"),
    ],
)
def test_broken_files(tmp_path, streamed, text, message):
    path = tmp_path / "truth.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        streamed(read_ground_truth, path)
    assert str(path) in str(caught.value)


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "truth.json"
    path.write_bytes(b"")
    for read in (read_ground_truth, read_predictions):
        with pytest.raises(UserError, match=r"truth\.json is not valid JSON"):
            read(path)


def test_streaming_reads_numbers_as_they_are(save, streamed):
    content = [{"image_id": 12345678901, "bbox": [0.1, 2, 3e0, 4.25], "score": 1}]
    (record,) = streamed(read_predictions, save("p.json", content)).records
    assert record.image_id == 12345678901
    assert record.box == (0.1, 2.0, 3.0, 4.25)
    assert json.dumps(record.score) == "1.0"
