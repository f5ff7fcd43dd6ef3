"""Files of others: what is read, what is refused by name."""

import json

import numpy as np
import pytest
from pycocotools import mask as mask_api

from promerge_d2.cli.import_labels import main
from promerge_d2.coco.check import validate_labels
from promerge_d2.pseudo_labels.formats import FORMATS
from promerge_d2.pseudo_labels.importing import import_format
from promerge_d2.utils.errors import UserError
from tests.helpers import save_image, square


@pytest.fixture
def read(tmp_path):
    """Import; returns names, masks with their scores and labels, and what was left out."""

    def imported(name, source, **options):
        output = tmp_path / "ours.json"
        found = import_format(source, output, name, **options)
        assert not [p for p in validate_labels(output).problems if "reason" not in p]
        content = json.loads(output.read_text())
        objects = [
            (mask_api.decode(a["segmentation"]).astype(bool), a["score"], a.get("label"))
            for a in content["annotations"]
        ]
        assert content["categories"] == [{"id": 1, "name": "object"}]
        return [i["file_name"] for i in content["images"]], objects, found.left_out.problems

    return imported


def save(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def photograph(path, height=8, width=10):
    return save_image(path, np.zeros((height, width, 3), np.uint8))


def yolo(folder, *lines, names="{0: cat}"):
    save(folder / "data.yaml", f"train: train/images\nnames: {names}\n")
    photograph(folder / "train/images/a.jpg")
    save(folder / "train/labels/a.txt", "\n".join(lines))
    return folder


def test_yolo_of_others(tmp_path, read):
    """Roboflow's folders; a box, a polygon, a polygon with a score."""
    upper, lower = "0.2 0.25 0.5 0.25 0.5 0.5 0.2 0.5", "0.2 0.5 0.5 0.5 0.5 0.75 0.2 0.75"
    yolo(tmp_path, "0 0.5 0.5 0.2 0.2", f"0 {upper}", f"1 {lower} 0.75", names="[cat, dog]")
    photograph(tmp_path / "train/images/b/none.png")
    names, objects, left_out = read("yolo", tmp_path / "data.yaml")
    assert names == ["train/images/a.jpg", "train/images/b/none.png"]
    assert [each[1:] for each in objects] == [(1.0, "cat"), (0.75, "dog")]
    # pixel indices, border included
    assert np.array_equal(objects[0][0], square(8, 10, 2, 2, 6, 5))
    assert np.array_equal(objects[1][0], square(8, 10, 2, 4, 6, 7))
    assert left_out == {"objects without a mask": 1}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("0 0.1 0.1 0.5 0.5 x 0.2", "'x'"),
        ("0 0.1 0.1 0.5 0.5", None),
        ("0 0.1 0.1 0.5 0.5 1.5 0.2", "from 0 to 1"),
        ("0 0.1 0.1 0.5 0.5 nan 0.2", "from 0 to 1"),
        ("7 0.1 0.1 0.5 0.5 0.1 0.2", "no class 7"),
        ("0 0.1 0.1 0.5 0.5 0.1 0.2 3", "score is 3"),
    ],
)
def test_a_line_of_yolo_that_cannot_be_read_is_named(tmp_path, read, line, why):
    source = yolo(tmp_path / "set", "0 0.1 0.1 0.5 0.5 0.5 0.1", line)
    if why is None:
        assert read("yolo", source)[2] == {"objects without a mask": 1}
        return
    with pytest.raises(UserError, match=rf"a\.txt, line 2.*{why}"):
        read("yolo", source)
    _, objects, left_out = read("yolo", source, leave_out_damaged=True)
    assert len(objects) == 1
    assert sum(left_out.values()) == 1


def test_yolo_without_photographs_wants_their_folder(tmp_path, read):
    source = yolo(tmp_path / "set", "0 0.1 0.1 0.5 0.5 0.5 0.1")
    save(source / "data.yaml", "train: list.txt\nnames: [cat]\n")
    save(source / "list.txt", "./images/b/a.jpg\n\n")
    save(source / "labels/b/a.txt", "0 0.1 0.1 0.5 0.5 0.5 0.1")
    with pytest.raises(UserError, match=r"b/a\.jpg.*--image-root"):
        read("yolo", source)
    photograph(tmp_path / "photos/b/a.jpg")
    names, objects, _ = read("yolo", source, image_root=tmp_path / "photos")
    assert (names, len(objects)) == (["b/a.jpg"], 1)
    save(source / "list.txt", "../../secret.jpg\n")
    with pytest.raises(UserError, match=r"list\.txt: .*\.\./\.\./secret\.jpg"):
        read("yolo", source)
    save(source / "data.yaml", "train: gone\nnames: [cat]\n")
    with pytest.raises(UserError, match=r"data\.yaml: gone"):
        read("yolo", source)


VOC = """<annotation><filename>a.jpg</filename>
<size><width>10</width><height>8</height><depth>3</depth></size>{}</annotation>"""
VOC_OBJECT = (
    "<object><name>cat</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>5</xmax><ymax>6</ymax>"
    "</bndbox>{}</object>"
)


def polygon(*points):
    inside = "".join(f"<x{n}>{x}</x{n}><y{n}>{y}</y{n}>" for n, (x, y) in enumerate(points, 1))
    return f"<polygon>{inside}</polygon>"


def test_voc_of_others(tmp_path, read):
    drawn = polygon((2, 3), (5, 3), (5, 6), (2, 6))
    objects = VOC_OBJECT.format(""), VOC_OBJECT.format(drawn)
    save(tmp_path / "in/Annotations/b/a.xml", VOC.format("".join(objects)))
    names, found, left_out = read("voc", tmp_path / "in")
    assert names == ["b/a.jpg"]
    assert left_out == {"objects without a mask": 1}
    assert np.array_equal(found[0][0], square(8, 10, 1, 2, 5, 6))
    assert found[0][1:] == (1.0, "cat")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (VOC.format(VOC_OBJECT.format(polygon((2, 3), (5, 3)))), "<object> 1"),
        (VOC.format(VOC_OBJECT.format(polygon((2, 3), (5, 3), (999, 1)))), "<object> 1"),
        (VOC.format("").replace("10", "ten"), "'ten'"),
        (VOC.format("").replace("a.jpg", "../a.jpg"), r"\.\./a\.jpg"),
        ("<annotation>", "not valid XML"),
        ('<!DOCTYPE x [<!ENTITY y "z">]><annotation/>', "document type"),
        ("<html/>", "<html>"),
    ],
)
def test_a_file_of_voc_that_cannot_be_read_is_named(tmp_path, read, text, why):
    save(tmp_path / "in/a.xml", text)
    with pytest.raises(UserError, match=rf"a\.xml.*{why}"):
        read("voc", tmp_path / "in")


CVAT = (
    '<annotations><version>1.1</version><image id="0" name="b/a.jpg" width="10" height="8">{}'
    "</image></annotations>"
)


def test_cvat_of_others(tmp_path, read):
    shapes = (
        '<polygon label="cat" points="1.00,2.00;5.00,2.00;5.00,6.00;1.00,6.00" z_order="0"/>'
        '<box label="cat" xtl="1" ytl="1" xbr="2" ybr="2"/>'
        '<mask label="dog" rle="0, 2, 1, 1" left="3" top="1" width="2" height="2"/>'
    )
    source = save(tmp_path / "task.xml", CVAT.format(shapes))
    names, found, left_out = read("cvat", source)
    assert names == ["b/a.jpg"]
    assert left_out == {"objects without a mask": 1}
    assert [each[1:] for each in found] == [(1.0, "cat"), (1.0, "dog")]
    assert np.array_equal(found[0][0], square(8, 10, 1, 2, 5, 6))
    assert np.argwhere(found[1][0]).tolist() == [[1, 3], [1, 4], [2, 4]]


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ('<polyline label="x" points="1,1;2,2"/>', "<polygon>"),
        ('<mask label="x" rle="1, 2" left="3" top="1" width="2" height="2"/>', "2 x 2"),
        ('<mask label="x" rle="0, 4" left="9" top="1" width="2" height="2"/>', "10 x 8"),
        ('<mask label="x" rle="0, 4" left="9" top="1" width="2"/>', "height"),
        ('<polygon label="x" points="1,1;2,y;3,3"/>', "'y'"),
    ],
)
def test_a_shape_of_cvat_that_cannot_be_read_is_named(tmp_path, read, shape, why):
    good = '<mask label="x" rle="0, 4" left="1" top="1" width="2" height="2"/>'
    source = save(tmp_path / "task.xml", CVAT.format(good + shape))
    with pytest.raises(UserError, match=rf"task\.xml: <image> 'b/a\.jpg', .* 2.*{why}"):
        read("cvat", source)
    _, found, left_out = read("cvat", source, leave_out_damaged=True)
    assert (len(found), sum(left_out.values())) == (1, 1)


def test_tracks_of_cvat_are_of_videos(tmp_path, read):
    source = save(tmp_path / "t.xml", '<annotations><track id="4"/></annotations>')
    with pytest.raises(UserError, match="<track> 4"):
        read("cvat", source)


def result(kind, **value):
    size = {"original_width": 10, "original_height": 8, "image_rotation": 0}
    return {"type": kind, **size, "value": value}


def test_label_studio_of_others(tmp_path, read):
    """What people drew counts, not the prediction; what was cancelled does not."""
    points = [[10, 25], [50, 25], [50, 75], [10, 75]]
    drawn = result("polygonlabels", points=points, polygonlabels=["cat"])
    tasks = [
        {
            "data": {"image": "/data/local-files/?d=photos/b%20c/a.jpg"},
            "annotations": [
                {"result": [drawn, result("rectanglelabels")]},
                {"was_cancelled": True, "result": [drawn] * 3},
            ],
            "predictions": [{"result": [drawn] * 2}],
        },
        {"data": {"image": "/data/upload/1/x-b.jpg", "width": 10, "height": 8}, "predictions": []},
        {"data": {"image": "s3://bucket/b/a.jpg", "width": 10, "height": 8}},
    ]
    source = save(tmp_path / "project.json", tasks)
    names, found, left_out = read("labelstudio", source)
    assert names == ["photos/b c/a.jpg", "upload/1/x-b.jpg", "b/a.jpg"]
    assert left_out == {"objects without a mask": 1}
    assert len(found) == 1
    assert np.array_equal(found[0][0], square(8, 10, 1, 2, 5, 6))
    assert found[0][1:] == (1.0, "cat")


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (result("keypointlabels", x=1), "'keypointlabels'"),
        (result("brushlabels", format="rle", rle=[1, 2]), "rle"),
        (result("polygonlabels", points=[[1, 2], [3]]), "points"),
        ({**result("brushlabels", rle=[]), "original_width": 11}, "size"),
        ({**result("brushlabels", rle=[]), "image_rotation": 90}, "rotat"),
        ({"type": "relation"}, "value"),
    ],
)
def test_a_result_of_label_studio_that_cannot_be_read_is_named(tmp_path, read, broken, why):
    results = [result("rectanglelabels"), broken]
    tasks = [{"data": {"image": "a.jpg"}, "annotations": [{"result": results}]}]
    source = save(tmp_path / "project.json", tasks)
    with pytest.raises(UserError, match=rf"task 1 \(a\.jpg\), result 2.*{why}"):
        read("labelstudio", source)
    assert sum(read("labelstudio", source, leave_out_damaged=True)[2].values()) == 2


def test_sa1b_of_others(tmp_path, read):
    rle = {"size": [2, 2], "counts": [1, 2, 1]}
    content = {
        "image": {"image_id": 9, "file_name": "sa_9.jpg", "width": 2, "height": 2},
        "annotations": [{"id": 1, "segmentation": rle, "predicted_iou": 0.5, "bbox": [0, 0, 1, 1]}],
    }
    save(tmp_path / "in/sa_000/sa_9.json", content)
    names, found, _ = read("sa1b", tmp_path / "in")
    assert names == ["sa_000/sa_9.jpg"]
    assert found[0][0].tolist() == [[False, True], [True, False]]
    assert found[0][1] == 0.5
    content["annotations"][0]["segmentation"] = {"size": [2, 3], "counts": [1, 2, 3]}
    save(tmp_path / "in/sa_000/sa_9.json", content)
    with pytest.raises(UserError, match=r"sa_9\.json: annotations\[0\]"):
        read("sa1b", tmp_path / "in")
    save(tmp_path / "in/sa_000/sa_9.json", {"images": []})
    with pytest.raises(UserError, match=r"sa_9\.json.*'image'"):
        read("sa1b", tmp_path / "in")


def test_pngs_of_another_size_are_refused(tmp_path, read):
    save_image(tmp_path / "in/m.png", np.array([[0, 255, 7]], np.uint8))
    line = {"image": "a.jpg", "width": 3, "height": 1, "masks": [{"file": "m.png", "score": 0.5}]}
    save(tmp_path / "in/labels.jsonl", line)
    assert read("png", tmp_path / "in")[1][0][0].tolist() == [[False, True, True]]
    save(tmp_path / "in/labels.jsonl", {**line, "width": 4})
    with pytest.raises(UserError, match=r"line 1: masks\[0\].*3 x 1"):
        read("png", tmp_path / "in")
    line["masks"][0]["file"] = "/etc/x.png"
    save(tmp_path / "in/labels.jsonl", line)
    with pytest.raises(UserError, match=r"/etc/x\.png"):
        read("png", tmp_path / "in")


def test_a_mask_without_a_pixel_is_left_out(tmp_path, read):
    shape = '<mask label="x" rle="4" left="1" top="1" width="2" height="2"/>'
    source = save(tmp_path / "task.xml", CVAT.format(shape))
    assert read("cvat", source)[1:] == ([], {"objects without a pixel": 1})


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_what_is_not_there_is_named(tmp_path, read, name):
    with pytest.raises(UserError, match="nowhere"):
        read(name, tmp_path / "nowhere")
    assert not (tmp_path / "ours.json").exists()


def test_the_command(tmp_path, capsys):
    source = save(tmp_path / "task.xml", CVAT.format('<box label="x"/>'))
    output = tmp_path / "ours.json"
    command = ["--input", str(source), "--output", str(output)]
    assert main([*command, "--from", "cvat"]) == 2
    assert capsys.readouterr().out.splitlines() == [
        f"0 masks on 1 images: {output}",
        "  left out: 1 objects without a mask:",
        f"    {source}: <image> 'b/a.jpg', <box> 1",
    ]
    with pytest.raises(UserError, match="--images-from"):
        main([*command, "--from", "cvat", "--images-from", "x"])
    with pytest.raises(UserError, match="--image-root"):
        main([*command, "--image-root", "x"])
