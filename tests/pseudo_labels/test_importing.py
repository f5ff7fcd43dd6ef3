import json
import os
import signal

import numpy as np
import pytest
from pycocotools import mask as mask_api

from promerge_d2.coco.check import validate_labels
from promerge_d2.coco.records import mask_record
from promerge_d2.pseudo_labels.importing import import_labels
from promerge_d2.utils.errors import UserError
from tests.helpers import coco_json, run_tool, square
from tests.pseudo_labels.helpers import in_a_fork, wait_until


@pytest.fixture
def output(tmp_path):
    return tmp_path / "ours.json"


def save(path, content):
    path.write_text(json.dumps(content))
    return path


def sizes(path):
    return [
        (i["file_name"], i["width"], i["height"]) for i in json.loads(path.read_text())["images"]
    ]


def test_cutler_has_width_and_height_exchanged(tmp_path, output):
    """As CutLER writes it: sizes exchanged in the images, right in the masks, no scores."""
    masks = [mask_record(square(8, 10, 1, 2, 5, 6)), mask_record(square(7, 7, 0, 0, 3, 3))]
    source = {
        "images": [
            {"id": 1, "file_name": "n01/a.JPEG", "width": 8, "height": 10},
            {"id": 2, "file_name": "n01/b.JPEG", "width": 7, "height": 7},
            {"id": 3, "file_name": "n02/c.JPEG", "width": 20, "height": 30},
        ],
        "annotations": [
            {**mask, "id": n, "image_id": n, "category_id": 1, "iscrowd": 0}
            for n, mask in enumerate(masks, start=1)
        ],
        "categories": [{"id": 1, "name": "fg", "supercategory": "fg"}],
    }
    for annotation in source["annotations"]:
        del annotation["score"]
    found = import_labels(save(tmp_path / "cutler.json", source), output)
    assert (found.images, found.masks, found.swapped) == (3, 2, 3)
    assert not found.left_out.problems
    assert sizes(output) == [
        ("n01/a.JPEG", 10, 8),
        ("n01/b.JPEG", 7, 7),
        ("n02/c.JPEG", 30, 20),
    ]
    content = json.loads(output.read_text())
    assert content["categories"] == [{"id": 1, "name": "object"}]
    assert content["annotations"][0] == {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "iscrowd": 0,
        **masks[0],
    }
    assert not validate_labels(output).problems


def test_promerge_is_a_bare_list_of_floats(tmp_path, output):
    mask = mask_record(square(8, 10, 1, 2, 5, 6))
    source = [{**mask, "image_id": 139.0, "category_id": 1.0, "id": 1.0}]
    source = save(tmp_path / "promerge.json", source)
    truth = {
        "images": [
            {"id": 139, "file_name": "000000000139.jpg", "width": 10, "height": 8},
            {"id": 285, "file_name": "000000000285.jpg", "width": 10, "height": 8},
        ],
        "annotations": [],
    }
    truth = save(tmp_path / "truth.json", truth)
    found = import_labels(source, output, truth)
    assert (found.images, found.masks, found.swapped) == (1, 1, 0)
    content = json.loads(output.read_text())
    assert [(i["id"], i["file_name"]) for i in content["images"]] == [(139, "000000000139.jpg")]
    assert content["annotations"][0]["image_id"] == 139
    with pytest.raises(UserError, match=r"--images-from"):
        import_labels(source, output)


def test_cuvler_has_scores(tmp_path, output):
    objects = [{"mask": square(8, 10, 0, 0, 4, 4), "score": 0.125}]
    import_labels(coco_json(tmp_path / "cuvler.json", [("a.jpg", 8, 10, objects)]), output)
    (annotation,) = json.loads(output.read_text())["annotations"]
    assert annotation["score"] == 0.125


def test_any_coco_file_becomes_one_class_of_rle(tmp_path, output):
    things = [
        {"mask": square(8, 10, 0, 0, 4, 4), "category_id": 7, "iscrowd": 1},
        {"mask": square(8, 10, 0, 0, 4, 4), "segmentation": [[2, 1, 6, 1, 6, 5, 2, 5]]},
        {
            "mask": square(8, 10, 0, 0, 4, 4),
            "segmentation": {"size": [8, 10], "counts": [16, 8, 56]},
        },
        {"mask": square(8, 10, 0, 0, 4, 4), "segmentation": []},
        {"mask": square(8, 10, 0, 0, 4, 4), "image_id": 99},
    ]
    animals = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]
    source = coco_json(tmp_path / "any.json", [("a.jpg", 8, 10, things)], animals)
    with pytest.raises(UserError, match=r"annotations\[4\] \(id 5, image_id 99\)"):
        import_labels(source, output)
    assert not output.exists()
    found = import_labels(source, output, leave_out_damaged=True)
    assert found.masks == 3
    assert found.left_out.problems == {
        "objects without a mask": 1,
        "objects of images that are not listed": 1,
    }
    content = json.loads(output.read_text())
    assert {a["category_id"] for a in content["annotations"]} == {1}
    assert [a["iscrowd"] for a in content["annotations"]] == [1, 0, 0]
    _, polygon, runs = (mask_api.decode(a["segmentation"]) for a in content["annotations"])
    assert np.array_equal(polygon, square(8, 10, 2, 1, 6, 5))
    assert np.array_equal(runs, square(8, 10, 2, 0, 3, 8))
    assert content["annotations"][2]["bbox"] == [2, 0, 1, 8]


def test_ids_that_are_words_become_numbers(tmp_path, output):
    source = coco_json(tmp_path / "s.json", [("a.jpg", 8, 10, [square(8, 10, 0, 0, 4, 4)])])
    content = json.loads(source.read_text())
    content["images"][0]["id"] = content["annotations"][0]["image_id"] = "word"
    import_labels(save(source, content), output)
    content = json.loads(output.read_text())
    assert content["images"][0]["id"] == content["annotations"][0]["image_id"] == 1


def test_of_a_mixture_only_what_is_exchanged_is_put_right(tmp_path, output):
    """One turned image among good ones: an RLE or a polygon tells, or nothing does."""
    wide, high = square(8, 10, 0, 0, 4, 4), square(10, 8, 0, 0, 4, 4)
    polygon = {"mask": wide, "segmentation": [[0, 0, 10, 0, 10, 4]]}
    images = [
        *(("a.jpg", 8, 10, [wide]), ("b.jpg", 8, 10, [high])),
        *(("c.jpg", 8, 10, [polygon]), ("d.jpg", 10, 8, [polygon])),
        ("e.jpg", 8, 10, [{"mask": wide, "segmentation": [[0, 0, 4, 0, 4, 4]]}]),
    ]
    found = import_labels(coco_json(tmp_path / "s.json", images), output)
    assert (found.masks, found.swapped) == (5, 2)
    assert sizes(output) == [
        *(("a.jpg", 10, 8), ("b.jpg", 8, 10), ("c.jpg", 10, 8), ("d.jpg", 10, 8)),
        ("e.jpg", 10, 8),
    ]
    assert not [p for p in validate_labels(output).problems if "size" in p]


def test_an_image_that_contradicts_itself_is_refused(tmp_path, output):
    masks = [square(8, 10, 0, 0, 4, 4), square(10, 8, 0, 0, 4, 4)]
    source = coco_json(tmp_path / "s.json", [("a.jpg", 8, 10, masks)])
    with pytest.raises(UserError, match=r"annotations\[1\] .*8 x 10"):
        import_labels(source, output)


def test_killed_in_the_middle_it_leaves_nothing_and_ends_the_same(tmp_path, output):
    masks = [square(60, 80, n, n, n + 9, n + 9) for n in range(40)]
    images = [(f"{n}.jpg", 60, 80, masks) for n in range(100)]
    source = coco_json(tmp_path / "source.json", images)
    import_labels(source, tmp_path / "whole.json")
    process = in_a_fork(lambda: import_labels(source, output))
    ended = wait_until(lambda: list(tmp_path.glob(".ours.json.*")), process)
    assert not ended
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert not output.exists()
    import_labels(source, output)
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_the_tool(tmp_path, output, monkeypatch, capsys):
    source = coco_json(tmp_path / "s.json", [("a.jpg", 8, 10, [square(8, 10, 0, 0, 4, 4)])])
    assert run_tool(monkeypatch, "import_labels.py", "--input", source, "--output", output) == 0
    assert capsys.readouterr().out == f"1 masks on 1 images: {output}\n"
    content = json.loads(source.read_text())
    content["images"][0] |= {"width": 8, "height": 10}
    content["annotations"].append({"image_id": 1, "bbox": [0, 0, 2, 2]})
    save(source, content)
    assert run_tool(monkeypatch, "import_labels.py", "--input", source, "--output", output) == 2
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  width and height of 1 images were exchanged, as CutLER's are",
        "  left out: 1 objects without a mask:",
        f"    {source}: annotations[1] (image_id 1)",
    ]
    save(source, {"images": []})
    assert run_tool(monkeypatch, "import_labels.py", "--input", source, "--output", output) == 3
    assert "it has no list 'annotations'" in capsys.readouterr().err
