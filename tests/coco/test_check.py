import functools
import json

import numpy as np
import pytest

from promerge_d2.coco.check import Validation, validate_labels
from promerge_d2.pseudo_labels.inputs import find_size
from promerge_d2.utils.errors import UserError
from tests.helpers import coco_json, photo, run_tool, save_image, square


@pytest.fixture
def labels(tmp_path):
    """Three good images, the last without a mask; photographs beside."""
    for name, size in (("a.png", (8, 10)), ("b.png", (6, 5)), ("c.png", (4, 4))):
        save_image(tmp_path / "photos" / name, photo(*size, (0, 0, 2, 2)))
    objects = [{"mask": square(8, 10, 0, 0, 3, 3), "score": 0.25}, square(8, 10, 4, 4, 9, 8)]
    images = [("a.png", 8, 10, objects), ("b.png", 6, 5, [square(6, 5, 0, 0, 5, 6)])]
    path = coco_json(tmp_path / "labels.json", [*images, ("c.png", 4, 4, [])])
    change(path, lambda c: c["images"][2].update(reason="no_foreground"))
    return path


def check(labels, folder):
    return validate_labels(labels, functools.partial(find_size, folder / "photos"))


def change(path, how):
    content = json.loads(path.read_text())
    how(content)
    path.write_text(json.dumps(content))


def test_a_good_file(labels, tmp_path):
    found = check(labels, tmp_path)
    assert (found.images, found.masks, found.scores) == (3, 3, (0.25, 1.0))
    assert found.masks_per_image == {0: 1, 1: 1, 2: 1}
    assert found.empty == {"no_foreground": 1}
    assert not found.problems


def test_the_histogram_has_a_dozen_bins():
    found = Validation(masks_per_image={0: 4, 1: 2, 5: 1, 6: 3, 23: 2})
    assert found.histogram() == [
        *(("0", 4), ("1-2", 2), ("3-4", 0), ("5-6", 4), ("7-8", 0), ("9-10", 0), ("11-12", 0)),
        *(("13-14", 0), ("15-16", 0), ("17-18", 0), ("19-20", 0), ("21-22", 0), ("23-24", 2)),
    ]
    assert Validation().histogram() == [("0", 0)]


def first(key, **values):
    return lambda c: c[key][0].update(values)


def bad_counts(content):
    content["annotations"][0]["segmentation"]["counts"] = "52203"


@pytest.mark.parametrize(
    ("how", "problem", "example"),
    [
        (first("images", file_name="x.png"), "files missing", "x.png"),
        (
            first("images", width=8, height=10),
            "sizes that disagree with the photograph",
            "a.png (id 1): 8 x 10 in the labels, the photograph has 10 x 8, swapped",
        ),
        (
            lambda c: c["images"][1].update(width=6, height=5),
            "sizes that disagree with the mask",
            "its mask is 5 x 6 pixels (width x height), but the image is 6 x 5",
        ),
        (bad_counts, "masks that do not decode", "runs do not add up"),
        (
            first("annotations", bbox=[8, 0, 3, 3]),
            "boxes out of the image",
            "[8.0, 0.0, 3.0,",
        ),
        (first("annotations", bbox=[0, 0]), "boxes that cannot be read", "[0, 0]"),
        (first("annotations", id=2), "annotation ids that occur twice", "annotations[1] (id 2"),
        (first("images", id=2), "image ids that occur twice", "images[1] (id 2)"),
        (first("images", file_name="b.png"), "file names that occur twice", "image id 2"),
        (first("annotations", image_id=9), "objects of images that are not listed", "image_id 9"),
        (
            lambda c: c["annotations"].append({**c["annotations"][0], "id": 77}),
            "masks that their image has twice",
            "annotations[3]",
        ),
        (first("annotations", segmentation=[]), "objects without a mask", "annotations[0]"),
        (first("annotations", score="high"), "scores that are no number", "'high'"),
        (first("images", width=None), "images without a size", "images[0] (id 1): width is None"),
        (
            lambda c: c["annotations"].insert(0, 5),
            "entries that cannot be read",
            "[0] is 5",
        ),
        (lambda c: c["annotations"][0].pop("id"), "objects without an id", "annotations[0]"),
    ],
)
def test_each_kind_of_problem_is_found(labels, tmp_path, how, problem, example):
    change(labels, how)
    found = check(labels, tmp_path)
    assert found.problems[problem] == 1
    assert example in found.examples[problem][0]


def test_a_turned_photograph_has_the_size_that_is_shown(tmp_path, labels):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(tmp_path / "photos" / "a.png", np.zeros((10, 8, 3), np.uint8), exif=exif)
    assert not check(labels, tmp_path).problems


def test_annotations_may_come_first(labels, tmp_path):
    content = json.loads(labels.read_text())
    labels.write_text(json.dumps({key: content[key] for key in ("annotations", "images")}))
    found = validate_labels(labels)
    assert (found.images, found.masks, dict(found.problems)) == (3, 3, {})


def test_what_is_no_coco_file_is_refused(tmp_path):
    (tmp_path / "l.json").write_text("[{}]")
    with pytest.raises(UserError, match=r"l\.json is a bare list .*promerge import"):
        validate_labels(tmp_path / "l.json")
    (tmp_path / "l.json").write_text('{"images": []}')
    with pytest.raises(UserError, match=r"l\.json .*'annotations'"):
        validate_labels(tmp_path / "l.json")


# The tool


def test_the_tool_says_what_is_there(labels, tmp_path, monkeypatch, capsys):
    photos, report = tmp_path / "photos", tmp_path / "report.json"
    more = ["--images", photos, "--report", report, "--gallery", tmp_path / "pages"]
    assert run_tool(monkeypatch, "validate_labels.py", labels, *more) == 0
    assert capsys.readouterr().out.splitlines() == [
        "3 images, 3 masks, scores 0.25 to 1",
        "images without a mask: no_foreground: 1",
        "images by number of masks:",
        *(f"            {number}         1 {'#' * 40}" for number in range(3)),
        "nothing is wrong",
        f"to look at: {tmp_path}/pages/index.html",
    ]
    assert json.loads(report.read_text())["masks"] == 3
    page = (tmp_path / "pages" / "index.html").read_text()
    assert page.count("<figure") == 3
    assert 'data-masks="0" data-score="" data-reason="no_foreground"' in page
    assert "evenly spaced" not in page
    assert run_tool(monkeypatch, "validate_labels.py", labels, *more, "--count", 2) == 0
    page = (tmp_path / "pages" / "index.html").read_text()
    assert page.count("<figure") == 2
    assert "below: 2 of them, evenly spaced" in page


def test_the_tool_names_problems(labels, tmp_path, monkeypatch, capsys):
    change(labels, first("images", file_name="x.png"))
    photos = tmp_path / "photos"
    assert run_tool(monkeypatch, "validate_labels.py", labels, "--images", photos) == 2
    assert capsys.readouterr().out.endswith("1 files missing:\n    x.png\n")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--gallery", "g"], "--images"),
        (["--images", "gone"], "--images gone"),
        (["--count", "0"], "--count is 0"),
    ],
)
def test_the_tool_refuses(labels, monkeypatch, capsys, more, message):
    assert run_tool(monkeypatch, "validate_labels.py", labels, *more) == 3
    assert message in capsys.readouterr().err
