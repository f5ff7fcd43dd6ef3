"""``prepare_*.py``: official files, real ones and ones written here in their format."""

from __future__ import annotations

import hashlib
import json
import runpy
import sys

import numpy as np
import pytest
from pycocotools import mask as mask_api

from official.readers import LVIS_NAMES, cocofied
from promerge_d2.coco.ground_truth import read_ground_truth
from promerge_d2.data.benchmarks import BENCHMARKS
from promerge_d2.evaluation import align_predictions, evaluate_class_agnostic
from tests.helpers import ROOT, parse_predictions, save_image, square

GREY = np.full((60, 80, 3), 99, np.uint8)


@pytest.fixture
def prepare(monkeypatch, capsys, caplog):
    """``prepare("kitti", root, ...)``: exit code, what was printed and logged."""

    def run(name, root, *arguments):
        script = ROOT / "datasets" / f"prepare_{name}.py"
        monkeypatch.setattr(sys, "argv", [str(script), "--root", str(root), *map(str, arguments)])
        caplog.clear()
        with caplog.at_level("INFO"), pytest.raises(SystemExit) as caught:
            runpy.run_path(str(script), run_name="__main__")
        out, err = capsys.readouterr()
        return caught.value.code, out + err + caplog.text

    return run


def rle(mask):
    encoded = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


def result(root, name):
    path = root / BENCHMARKS[name].json_file
    content = json.loads(path.read_text())
    summary = json.loads(path.with_suffix(".summary.json").read_text())
    assert summary["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert content["categories"] == [{"id": 1, "name": "object"}]
    assert all(record["category_id"] == 1 for record in content["annotations"])
    return content, summary


def boxes(content):
    return [(r["image_id"], r["bbox"], r["iscrowd"]) for r in content["annotations"]]


@pytest.fixture
def coco_root(tmp_path):
    """Two images, a polygon, a crowd; ids and areas of their own."""
    for name in ("000000000007.jpg", "000000000003.jpg"):
        save_image(tmp_path / "coco" / "val2017" / name, GREY)
    content = {
        "images": [
            {"id": 7, "file_name": "000000000007.jpg", "width": 80, "height": 60},
            {"id": 3, "file_name": "000000000003.jpg", "width": 80, "height": 60},
        ],
        "annotations": [
            {
                "id": 900,
                "image_id": 7,
                "category_id": 44,
                "segmentation": [[10, 10, 30, 10, 30, 20, 10, 20]],
                "bbox": [10, 10, 20, 10],
                "area": 199.5,
                "iscrowd": 0,
            },
            {
                "id": 900100,
                "image_id": 3,
                "category_id": 1,
                "segmentation": {"size": [60, 80], "counts": [600, 1200, 3000]},
                "bbox": [10, 0, 20, 60],
                "area": 1200,
                "iscrowd": 1,
            },
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 44, "name": "bottle"}],
    }
    write(tmp_path / "coco" / "annotations" / "instances_val2017.json", content)
    return tmp_path, content


def test_coco(prepare, coco_root):
    root, official = coco_root
    code, said = prepare("coco", root)
    assert code == 0, said
    content, summary = result(root, "cls_agnostic_coco")
    assert [image["id"] for image in content["images"]] == [3, 7]
    polygons, crowd = official["annotations"]
    crowd["segmentation"]["counts"] = "hb0`U1hm2"  # the same runs, compressed
    assert content["annotations"] == [{**a, "category_id": 1} for a in (polygons, crowd)]
    assert (summary["objects"], summary["ignore_regions"]) == (1, 1)
    assert "kept as ignore regions" in said
    assert "the whole data set has 5000 images, this one 2" in said
    first = (root / BENCHMARKS["cls_agnostic_coco"].json_file).read_bytes()
    assert prepare("coco", root)[0] == 0
    assert (root / BENCHMARKS["cls_agnostic_coco"].json_file).read_bytes() == first


@pytest.mark.parametrize(
    ("choice", "flags", "words"),
    [
        ("ignore", [0, 1], "kept as ignore regions"),
        ("drop", [0], "left out"),
        ("object", [0, 0], "counted as objects"),
    ],
)
def test_ignore_regions_are_a_choice(prepare, coco_root, choice, flags, words):
    root, _ = coco_root
    code, said = prepare("coco", root, "--ignore-regions", choice)
    assert code == 0
    assert words in said
    content, summary = result(root, "cls_agnostic_coco")
    assert [record["iscrowd"] for record in content["annotations"]] == flags
    assert summary["ignore_regions_are"] == choice
    assert summary["objects"] == flags.count(0)


def test_a_ready_made_file_is_not_replaced(prepare, coco_root):
    root, _ = coco_root
    path = write(root / BENCHMARKS["cls_agnostic_coco"].json_file, "ready made")
    code, said = prepare("coco", root)
    assert code == 3
    assert "was not made by this tool" in said
    assert path.read_text() == "ready made"
    assert prepare("coco", root, "--overwrite")[0] == 0


def test_a_file_that_is_cut_off_leaves_the_old_result(prepare, coco_root):
    root, _ = coco_root
    assert prepare("coco", root)[0] == 0
    path = root / BENCHMARKS["cls_agnostic_coco"].json_file
    whole = path.read_bytes()
    official = root / "coco" / "annotations" / "instances_val2017.json"
    official.write_text(official.read_text()[:-40])
    code, said = prepare("coco", root)
    assert code == 3
    assert f"{official} is not valid JSON" in said
    assert path.read_bytes() == whole  # the old file stands


def test_coco20k(prepare, tmp_path):
    folder = tmp_path / "coco"
    names = [f"COCO_train2014_{n:012d}.jpg" for n in (9, 25, 30)]
    for name in names[:2]:
        save_image(folder / "train2014" / name, GREY)
    images = [
        {"id": n, "file_name": name, "width": 80, "height": 60}
        for n, name in zip((9, 25, 30), names, strict=True)
    ]
    annotations = [
        {"id": n, "image_id": i, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 0}
        for n, i in enumerate((30, 25, 9, 25), start=1)
    ]
    write(
        folder / "annotations" / "instances_train2014.json",
        {"images": images, "annotations": annotations, "categories": []},
    )
    listed = write(
        folder / "annotations" / "coco_20k_filenames.txt", f"{names[1]}\n\n{names[0]}\n{names[1]}\n"
    )  # one twice
    code, said = prepare("coco20k", tmp_path)
    assert code == 0, said
    assert "the whole data set has 19817 images, this one 2" in said
    content, _ = result(tmp_path, "cls_agnostic_coco20k")
    assert [image["id"] for image in content["images"]] == [9, 25]
    assert [record["id"] for record in content["annotations"]] == [2, 3, 4]
    listed.write_text("train2014/COCO_train2014_000000000001.jpg\n")
    code, said = prepare("coco20k", tmp_path)
    assert code == 3
    assert "does not list 1 of the 1 images, among them COCO_train2014_000000000001.jpg" in said


def test_lvis_v1(prepare, tmp_path):
    """Images of two folders, found by ``coco_url``; categories of COCO only."""
    for path in ("val2017/000000000001.jpg", "train2017/000000000002.jpg"):
        save_image(tmp_path / "coco" / path, GREY)
    official = {
        "images": [
            {
                "id": n,
                "coco_url": f"http://images.cocodataset.org/{path}",
                "width": 80,
                "height": 60,
                "neg_category_ids": [5],
            }
            for n, path in ((1, "val2017/000000000001.jpg"), (2, "train2017/000000000002.jpg"))
        ],
        "annotations": [
            {
                "id": n,
                "image_id": 1 + n % 2,
                "category_id": category,
                "segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]],
                "bbox": [0, 0, 10, 10],
                "area": 100,
            }
            for n, category in enumerate((3, 4, 5), start=1)
        ],
        "categories": [
            {"id": 3, "name": "fireplug"},
            {"id": 4, "name": "acorn"},
            {"id": 5, "name": "stop_sign"},
        ],
    }
    write(tmp_path / "coco" / "annotations" / "lvis_v1_val.json", official)
    code, said = prepare("lvis", tmp_path)
    assert code == 0, said
    assert "2 categories that COCO has" in said
    content, summary = result(tmp_path, "cls_agnostic_lvis")
    names = [image["file_name"] for image in content["images"]]
    assert names == ["val2017/000000000001.jpg", "train2017/000000000002.jpg"]
    assert [record["id"] for record in content["annotations"]] == [1, 3]
    assert "hot dog" in summary["notes"][0]
    official["annotations"][1]["category_id"] = 77
    write(tmp_path / "coco" / "annotations" / "lvis_v1_val.json", official)
    code, said = prepare("lvis", tmp_path)
    assert code == 3
    assert "annotations[1] (id 2) has the category_id 77, which the file does not list" in said
    assert prepare("lvis", tmp_path, "--categories", "all")[0] == 0
    assert len(result(tmp_path, "cls_agnostic_lvis")[0]["annotations"]) == 3


def test_cocofied_categories_of_detectron2():
    from detectron2.data.datasets import lvis_v0_5_categories, lvis_v1_categories

    v1, lacking = cocofied(c["name"] for c in lvis_v1_categories.LVIS_CATEGORIES)
    assert (len(v1), lacking) == (79, ["hot dog"])
    old, lacking = cocofied(c["name"] for c in lvis_v0_5_categories.LVIS_CATEGORIES)
    assert (len(old), lacking) == (78, ["hot dog", "oven"])
    assert len(set(v1.values())) == 79
    # an exception is only where the names differ
    assert all(
        name.replace(" ", "_") != to
        for to, name in v1.items()
        if name in LVIS_NAMES and name != "person"
    )
    assert (v1["mouse_(computer_equipment)"], old["baby"]) == ("mouse", "person")


def objects365(root, nested=True):
    """Patches of both versions; one listed image is not in the archive, one box sticks out."""
    files = {
        11: "images/v1/patch8/objects365_v1_00000011.jpg",
        12: "images/v2/patch16/objects365_v2_00000012.jpg",
        13: "images/v2/patch40/objects365_v2_00000013.jpg",
        14: "images/v2/patch41/objects365_v2_00000014.jpg",
        15: "images/v2/patch16/objects365_v2_00000015.jpg",
    }
    for number, name in files.items():
        path = name if nested else "/".join(name.split("/")[-2:])
        if number != 15:
            save_image(root / "objects365" / "val" / path, GREY)
    content = {
        "images": [
            {"id": n, "file_name": name, "width": 80, "height": 60, "license": 1}
            for n, name in files.items()
        ],
        "annotations": [
            {
                "id": 1000 + n,
                "image_id": n,
                "category_id": 200,
                "bbox": [70.25, 5.5, 12.0, 20.0],
                "area": 240.0,
                "iscrowd": int(n == 13),
                "isfake": 0,
                "isreflected": 1,
            }
            for n in files
        ],
        "categories": [{"id": 200, "name": "Lamp"}],
    }
    write(root / "objects365" / "annotations" / "zhiyuan_objv2_val.json", content)


@pytest.mark.parametrize("nested", [True, False])
def test_objects365(prepare, tmp_path, nested):
    objects365(tmp_path, nested)
    code, said = prepare("objects365", tmp_path)
    assert code == 3
    assert "1 of 3 images" in said
    assert "objects365_v2_00000015.jpg: it is not there" in said
    assert "--skip-bad-images" in said
    code, said = prepare("objects365", tmp_path, "--skip-bad-images")
    assert code == 0, said
    assert "inferred" in said
    content, summary = result(tmp_path, "cls_agnostic_objects365_16-40")
    assert boxes(content) == [(12, [70.25, 5.5, 12, 20], 0), (13, [70.25, 5.5, 12, 20], 1)]
    prefix = "images/v2/" if nested else ""
    assert content["images"][0]["file_name"] == f"{prefix}patch16/objects365_v2_00000012.jpg"
    assert len(summary["images_left_out"]) == 1
    code, _ = prepare("objects365", tmp_path, "--skip-bad-images", "--patches", "all")
    assert code == 0
    content, _ = result(tmp_path, "cls_agnostic_objects365")
    assert [image["id"] for image in content["images"]] == [11, 12, 13, 14]
    assert read_ground_truth(tmp_path / BENCHMARKS["cls_agnostic_objects365"].json_file).box_only


def sa1b(root, folder, number, masks, **changes):
    name = f"sa_{number}.jpg"
    save_image(root / "sa1b" / folder / name, GREY)
    annotations = [
        {
            "id": 500000 + 10 * number + k,
            "segmentation": rle(mask),
            "bbox": mask_api.toBbox(rle(mask)).tolist(),
            "area": int(mask.sum()),
            "predicted_iou": 0.9,
            "stability_score": 0.97,
            "crop_box": [0, 0, 80, 60],
            "point_coords": [[5, 5]],
        }
        for k, mask in enumerate(masks)
    ]
    image = {"image_id": number, "width": 80, "height": 60, "file_name": name, **changes}
    return write(
        (root / "sa1b" / folder / name).with_suffix(".json"),
        {"image": image, "annotations": annotations},
    )


def test_sa1b(prepare, tmp_path):
    small, large = square(60, 80, 2, 3, 12, 13), square(60, 80, 0, 0, 70, 50)
    sa1b(tmp_path, "", 5, [small])
    sa1b(tmp_path, "sa_000000/deeper", 2, [large, small])
    file = sa1b(tmp_path, "sa_000001", 9, [])  # an image without masks counts too
    file.write_text(file.read_text(), encoding="utf-8-sig")  # and a byte-order mark changes nothing
    code, said = prepare("sa1b", tmp_path)
    assert code == 0, said
    content, summary = result(tmp_path, "cls_agnostic_sa1b")
    assert [(i["id"], i["file_name"]) for i in content["images"]] == [
        (2, "sa_000000/deeper/sa_2.jpg"),
        (5, "sa_5.jpg"),
        (9, "sa_000001/sa_9.jpg"),
    ]
    assert sorted(r["id"] for r in content["annotations"]) == [500020, 500021, 500050]
    assert content["annotations"][0]["segmentation"] == rle(large)
    assert (summary["images"], summary["images_with_objects"], summary["objects"]) == (3, 2, 3)
    assert summary["objects_without_mask"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file_name": "../sa_7.jpg"}, "'../sa_7.jpg'"),
        ({"width": 90}, "80 x 60"),
        ({"image_id": None}, "None"),
        ({"image_id": 5}, "id 5"),
    ],
)
def test_broken_sa1b_names_the_record(prepare, tmp_path, changes, message):
    sa1b(tmp_path, "", 5, [])
    sa1b(tmp_path, "", 7, [square(60, 80, 2, 3, 12, 13)], **changes)
    code, said = prepare("sa1b", tmp_path)
    assert code == 3
    assert message in said
    assert not (tmp_path / BENCHMARKS["cls_agnostic_sa1b"].json_file).exists()


KITTI = """\
Car 0.00 0 -1.67 57.39 20.13 70.07 43.39 1.41 1.58 4.36 3.18 2.27 34.38 -1.58
DontCare -1 -1 -10 5.00 1.00 9.50 4.00 -1 -1 -1 -1000 -1000 -1000 -10
Person_sitting 0.00 0 0 1.00 2.00 11.00 32.00 1 1 1 1 1 1 1
"""


def test_kitti(prepare, tmp_path):
    for number, text in ((12, KITTI), (3, "\n"), (40, KITTI.splitlines()[1])):
        write(tmp_path / "kitti" / "training" / "label_2" / f"{number:06d}.txt", text)
        save_image(tmp_path / "kitti" / "training" / "image_2" / f"{number:06d}.png", GREY)
    code, said = prepare("kitti", tmp_path)
    assert code == 0, said
    content, summary = result(tmp_path, "cls_agnostic_kitti")
    assert [image["id"] for image in content["images"]] == [3, 12, 40]
    assert content["images"][1] == {
        "id": 12, "file_name": "training/image_2/000012.png", "width": 80, "height": 60,
    }  # fmt: skip
    assert boxes(content) == [
        (12, [57.39, 20.13, 12.68, 23.26], 0),
        (12, [5, 1, 4.5, 3], 1),
        (12, [1, 2, 10, 30], 0),
        (40, [5, 1, 4.5, 3], 1),
    ]
    assert (summary["objects"], summary["ignore_regions"]) == (2, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Car 0 0 0 1 2 three 4", "000012.txt, line 1: 'Car 0 0 0 1 2 three 4'"),
        ("\nCar 0 0 0 1 2", "000012.txt, line 2"),
        ("Car 0 0 0 9 2 3 4", "-6.0"),
        ("Car 0 0 0 nan 2 3 4", "nan"),
    ],
)
def test_broken_kitti_names_the_record(prepare, tmp_path, text, message):
    write(tmp_path / "kitti" / "training" / "label_2" / "000012.txt", text)
    save_image(tmp_path / "kitti" / "training" / "image_2" / "000012.png", GREY)
    code, said = prepare("kitti", tmp_path)
    assert code == 3
    assert message in said


def voc_xml(name, objects):
    items = "".join(
        f"<object><name>cat</name><difficult>{difficult}</difficult><bndbox><xmin>{x0}</xmin>"
        f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for x0, y0, x1, y1, difficult in objects
    )
    return (
        f"<annotation><filename>{name}.jpg</filename><size><width>80</width><height>60</height>"
        f"<depth>3</depth></size>{items}</annotation>"
    )


@pytest.mark.parametrize(
    ("tool", "inner", "sets"),
    [("voc", "VOCdevkit/VOC2007", ("trainval", "test")), ("watercolor", "", ("train", "test"))],
)
def test_voc_layouts(prepare, tmp_path, tool, inner, sets):
    base = tmp_path / tool / inner
    for name, objects in (("000005", [(1, 1, 10, 20, 0), (3, 4, 5, 6, 1)]), ("000009", [])):
        write(base / "Annotations" / f"{name}.xml", voc_xml(name, objects))
        save_image(base / "JPEGImages" / f"{name}.jpg", GREY)
    write(base / "ImageSets" / "Main" / f"{sets[0]}.txt", "000009\n")
    write(base / "ImageSets" / "Main" / f"{sets[1]}.txt", "000005 \n000009\n")
    code, said = prepare(tool, tmp_path)
    assert code == 0, said
    content, _ = result(tmp_path, f"cls_agnostic_{tool}")
    assert [image["id"] for image in content["images"]] == [5, 9]
    assert boxes(content) == [(5, [0, 0, 10, 20], 0), (5, [2, 3, 3, 3], 1)]
    assert (tmp_path / tool / content["images"][0]["file_name"]).is_file()
    write(base / "Annotations" / "000005.xml", "<annotation>")
    code, said = prepare(tool, tmp_path)
    assert code == 3
    assert "000005.xml is not a VOC annotation" in said


def test_openimages(prepare, tmp_path):
    folder = tmp_path / "openImages"
    save_image(folder / "validation" / "0001eeaf4aed83f9.jpg", GREY)
    head = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf"
    )
    row = "0001eeaf4aed83f9,xclick,/m/0cmf2,1,0.25,0.75,0.1,0.9,0,0"
    table = folder / "annotations" / "validation-annotations-bbox.csv"
    write(table, f"{head}\n{row},0\n{row},1\n")
    code, said = prepare("openimages", tmp_path)
    assert code == 0, said
    content, _ = result(tmp_path, "cls_agnostic_openimages")
    assert [image["id"] for image in content["images"]] == ["0001eeaf4aed83f9"]
    assert [(r["id"], r["iscrowd"]) for r in content["annotations"]] == [(1, 0), (2, 1)]
    assert content["annotations"][0]["bbox"] == pytest.approx([20, 6, 40, 48])
    write(table, f"{head}\n{row},0\n{row.replace('0.75', '?')},0\n")
    code, said = prepare("openimages", tmp_path)
    assert code == 3
    assert "bbox.csv, line 3" in said


def test_imagenet(prepare, tmp_path):
    save_image(tmp_path / "imagenet" / "train" / "n01440764" / "a.png", GREY)
    write(tmp_path / "imagenet" / "train" / "n01443537" / "n01443537_1.JPEG", "")
    code, said = prepare("imagenet", tmp_path)
    assert code == 0
    assert "2 class folders, 1 images" in said
    assert "ImageNet-1K has 1000 class folders with 1281167 images" in said


TOOLS = sorted(
    path.stem.removeprefix("prepare_")
    for path in (ROOT / "datasets").glob("prepare_*.py")
    if path.stem not in ("prepare_sample", "prepare_coco_semi")  # they convert nothing official
)


@pytest.mark.parametrize("tool", TOOLS)
def test_missing_files_are_named_with_their_page(prepare, tmp_path, tool):
    code, said = prepare(tool, tmp_path)
    assert code == 3
    assert f"error: {tmp_path}" in said
    assert " is missing: get " in said
    assert "https://" in said or "http://" in said
    assert f"into {tmp_path}" in said


def test_every_benchmark_has_its_tool():
    for benchmark in BENCHMARKS.values():
        assert (ROOT / "datasets" / benchmark.prepare.split()[0]).is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][0].pop("id"), "images[0]"),
        (lambda c: c["images"][1].update(id=7), "images[1] (id 7)"),
        (lambda c: c["images"][0].update(file_name="../x.jpg"), "../x.jpg"),
        (lambda c: c["images"][0].update(file_name="/etc/passwd"), "/etc/passwd"),
        (lambda c: c["images"][0].update(file_name="C:\\x.jpg"), "C:"),
        (lambda c: c["images"][0].update(file_name="./"), "image 7"),
        (lambda c: c["images"][0].update(file_name="gone.jpg"), "gone.jpg"),
        (lambda c: c["images"][0].pop("file_name"), "images[0] (id 7): it has no 'file_name'"),
        (lambda c: c["annotations"][0].pop("image_id"), "annotations[0] (id 900): it has no"),
        (lambda c: c["annotations"][0].update(image_id=8), "image_id 8)"),
        (lambda c: c["annotations"][1].update(id=900), "annotations[1] (id 900, image_id 3): "),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 4]), "nan"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, -3, 4]), "-3"),
        (lambda c: c["annotations"][0].update(segmentation={"size": [6, 8], "counts": [48]}),
         "8 x 6 pixels"),
        (lambda c: c["annotations"].insert(0, 5), "annotations[0] is 5"),
        (lambda c: c.pop("annotations"), "'annotations'"),
        (lambda c: c["annotations"][0].update(image_id=[7]), "[7]"),
        (lambda c: c["images"][0].update(id={}), "images[0]"),
        (lambda c: c["images"][0].update(file_name="a" * 300), "image 7"),
    ],
)  # fmt: skip
def test_hostile_coco_names_the_record(prepare, coco_root, change, message):
    root, content = coco_root
    change(content)
    write(root / "coco" / "annotations" / "instances_val2017.json", content)
    code, said = prepare("coco", root)
    assert code == 3
    assert message in said
    assert "Traceback" not in said
    assert not (root / BENCHMARKS["cls_agnostic_coco"].json_file).exists()


def test_an_empty_file_is_refused(prepare, coco_root):
    root, _ = coco_root
    write(root / "coco" / "annotations" / "instances_val2017.json", "")
    code, said = prepare("coco", root)
    assert code == 3
    assert "instances_val2017.json is not valid JSON" in said


# --- the same on the real files -------------------------------------------------------------------


def _link(shared_data, root, *folders):
    for folder in folders:
        (root / folder).parent.mkdir(parents=True, exist_ok=True)
        (root / folder).symlink_to(shared_data / "data" / folder)


def _own_truth_scores_100(path):
    """Ground truth as predictions: AP and AR100 of 100, AR1 and AR10 in closed form."""
    truth = read_ground_truth(path)
    guesses = [r for r in json.loads(path.read_text())["annotations"] if not r["iscrowd"]]
    placed = align_predictions(parse_predictions(guesses, "truth"), truth)
    counts = dict.fromkeys(truth.images, 0)
    for item in truth.objects:
        counts[item.image_id] += not item.crowd
    assert max(counts.values()) <= 100
    results = evaluate_class_agnostic(truth, placed)
    for metrics in results.values():
        for name in ("AP", "AP50", "AP75", "AR100"):
            assert f"{metrics[name]:.1f}" == "100.0"
        for k in (1, 10):
            closed = 100 * sum(min(k, n) for n in counts.values()) / sum(counts.values())
            assert metrics[f"AR{k}"] == pytest.approx(closed)
    return results


def test_real_coco(prepare, shared_data, tmp_path):
    _link(shared_data, tmp_path, "coco/val2017")
    (tmp_path / "coco" / "annotations").mkdir()
    _link(shared_data, tmp_path, "coco/annotations/instances_val2017.json")
    code, said = prepare("coco", tmp_path)
    assert code == 0, said
    content, summary = result(tmp_path, "cls_agnostic_coco")
    official = json.loads(
        (tmp_path / "coco" / "annotations" / "instances_val2017.json").read_text()
    )
    crowds = sum(record["iscrowd"] for record in official["annotations"])
    assert summary["images"] == len(official["images"]) == 110
    assert (summary["objects"], summary["ignore_regions"]) == (926 - crowds, crowds)
    assert [r["id"] for r in content["annotations"]] == [r["id"] for r in official["annotations"]]
    path = tmp_path / BENCHMARKS["cls_agnostic_coco"].json_file
    assert list(_own_truth_scores_100(path)) == ["bbox", "segm"]


def test_real_lvis(prepare, shared_data, tmp_path):
    _link(shared_data, tmp_path, "coco/val2017", "coco/annotations/lvis_v0.5_val.json")
    code, said = prepare("lvis", tmp_path, "--version", "v0.5")
    assert code == 0, said
    content, summary = result(tmp_path, "cls_agnostic_lvis_v0.5")
    assert summary["images"] == 11
    assert all(image["file_name"].startswith("val2017/0") for image in content["images"])
    official = json.loads((tmp_path / "coco" / "annotations" / "lvis_v0.5_val.json").read_text())
    names = {category["id"]: category["name"] for category in official["categories"]}
    kept = {record["id"] for record in content["annotations"]}
    chosen, _ = cocofied(names.values())
    for record in official["annotations"]:
        assert (record["id"] in kept) == (names[record["category_id"]] in chosen)
    _own_truth_scores_100(tmp_path / BENCHMARKS["cls_agnostic_lvis_v0.5"].json_file)


def test_real_kitti(prepare, shared_data, tmp_path):
    _link(shared_data, tmp_path, "kitti/training")
    code, said = prepare("kitti", tmp_path)
    assert code == 0, said
    content, summary = result(tmp_path, "cls_agnostic_kitti")
    lines = [
        line
        for file in (tmp_path / "kitti" / "training" / "label_2").glob("*.txt")
        for line in file.read_text().splitlines()
    ]
    regions = sum(line.startswith("DontCare") for line in lines)
    assert summary["images"] == 34
    assert (summary["objects"], summary["ignore_regions"]) == (len(lines) - regions, regions)
    assert all(image["width"] > 1200 > image["height"] for image in content["images"])
    path = tmp_path / BENCHMARKS["cls_agnostic_kitti"].json_file
    assert list(_own_truth_scores_100(path)) == ["bbox"]


def test_real_dense_masks(prepare, shared_data, tmp_path):
    """Dense segments through the reader of COCO-style files, under UVO's folders."""
    dense = shared_data / "data" / "bsds_dense"
    (tmp_path / "uvo").mkdir()
    (tmp_path / "uvo" / "all_UVO_frames").symlink_to(dense / "images")
    code, said = prepare("uvo", tmp_path, "--annotations", dense / "annotations.json")
    assert code == 0, said
    _, summary = result(tmp_path, "cls_agnostic_uvo")
    assert (summary["images"], summary["objects"], summary["objects_without_mask"]) == (
        185,
        3745,
        0,
    )
    _own_truth_scores_100(tmp_path / BENCHMARKS["cls_agnostic_uvo"].json_file)
