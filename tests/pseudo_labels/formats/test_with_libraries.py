"""What is exported, as other tools read it."""

import importlib
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from promerge_d2.coco.records import RecordError
from promerge_d2.pseudo_labels.exporting import export_labels
from promerge_d2.pseudo_labels.formats.label_studio import decode_brush, encode_brush
from promerge_d2.pseudo_labels.importing import import_format
from promerge_d2.utils.errors import UserError
from tests.helpers import coco_json
from tests.pseudo_labels.formats.helpers import content_of, label_file

# a hole, two parts, a part of one pixel, a whole picture
HOLE = np.ones((7, 9), bool)
HOLE[0, 0] = HOLE[2:4, 3:5] = HOLE[2, 6] = False
PARTS = np.zeros((7, 9), bool)
PARTS[1:3, 1:3] = PARTS[6, 8] = True
DRAWN = [("a.jpg", [HOLE, PARTS, np.ones((7, 9), bool)]), ("ü.jpg", [HOLE.T]), ("none.png", [])]

# label_studio_sdk 2.1.2, converter.brush.mask2rle of SMALL; cvat_sdk 2.80, masks.encode_mask
SMALL = np.array([[0, 1, 1, 0, 0], [1, 1, 0, 0, 1], [0, 0, 0, 1, 1]], np.uint8)
BRUSH = [
    *(0, 0, 0, 60, 57, 27, 252, 96, 19, 255, 206, 1, 63, 252, 224, 17, 255, 219, 0, 159, 252),
]
RUNS = [1, 2, 2, 2, 2, 1, 3, 2]


@pytest.fixture
def exported(tmp_path):
    def export(name, **options):
        labels = label_file(tmp_path, DRAWN)
        photos = {"images": "copy", "image_root": tmp_path / "photos", **options}
        found = export_labels(labels, tmp_path / name, name, **photos)
        return tmp_path / name, found

    return export


def same(expected, found):
    assert len(expected) == len(found)
    return [int((a != b).sum()) for a, b in zip(expected, found, strict=True)]


def test_supervision_reads_yolo(exported):
    supervision = pytest.importorskip("supervision")
    folder, found = exported("yolo")
    data = supervision.DetectionDataset.from_yolo(
        str(folder / "images"), str(folder / "labels"), str(folder / "data.yaml")
    )
    assert data.classes == ["object"]
    for name, masks in DRAWN:
        read = data.annotations[str(folder / "images" / name)]
        differing = same(masks, [] if read.mask is None else read.mask)
        assert differing == ([0, found.changes.pixels, 0] if name == "a.jpg" else [0] * len(masks))
    assert found.changes.masks == 1


def test_supervision_reads_voc(exported):
    supervision = pytest.importorskip("supervision")
    folder, _ = exported("voc")
    data = supervision.DetectionDataset.from_pascal_voc(
        str(folder / "JPEGImages"), str(folder / "Annotations")
    )
    for name, masks in DRAWN:
        read = data.annotations[str(folder / "JPEGImages" / name)]
        assert not any(same(masks, [] if read.mask is None else read.mask))
    assert data.annotations[str(folder / "JPEGImages/a.jpg")].xyxy.tolist() == [
        *([0, 0, 9, 7], [1, 1, 9, 7], [0, 0, 9, 7]),
    ]


def test_torchvision_reads_the_pictures_of_voc(tmp_path):
    voc = pytest.importorskip("torchvision.datasets").VOCSegmentation
    labels = label_file(tmp_path, [(name, masks) for name, masks in DRAWN if name == "a.jpg"])
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    export_labels(labels, folder, "voc", images="link", image_root=tmp_path / "photos")
    ((photograph, classes),) = voc(tmp_path, image_set="trainval")
    assert photograph.size == classes.size == (9, 7)
    assert np.array_equal(classes, np.ones((7, 9)))
    assert classes.convert("RGB").getpixel((0, 0)) == (128, 0, 0)  # as VOC's aeroplanes
    # its third mask has the highest score, and hides the others
    with Image.open(folder / "SegmentationObject" / "a.png") as numbers:
        assert np.unique(numbers).tolist() == [3]


def test_vocs_own_files_have_no_polygons(tmp_path):
    right = ~HOLE
    right[2, 6] = False
    labels = label_file(tmp_path, [("sub/a.jpg", [HOLE, right]), ("none.png", [])])
    export_labels(labels, tmp_path / "voc", "voc", images="none")
    file = tmp_path / "voc" / "Annotations" / "sub" / "a.xml"
    file.write_text(re.sub("<polygon>.*</polygon>", "", file.read_text()))
    found = import_format(tmp_path / "voc", tmp_path / "back.json", "voc")
    assert (found.images, found.masks) == (2, 2)
    masks = [mask for mask, _ in content_of(tmp_path / "back.json")["sub/a.jpg"]]
    assert same([HOLE, right], masks) == [0, 0]

    (tmp_path / "voc" / "SegmentationObject" / "sub" / "a.png").write_bytes(b"no picture")
    with pytest.raises(RecordError, match=r"SegmentationObject/sub/a\.png"):
        import_format(tmp_path / "voc", tmp_path / "again.json", "voc")


def test_voc_numbers_254_objects(tmp_path):
    labels = coco_json(tmp_path / "l.json", [("a.jpg", 7, 9, [{"mask": HOLE}] * 255)])
    with pytest.raises(UserError, match=r"a\.jpg has 255 masks"):
        export_labels(labels, tmp_path / "voc", "voc", images="none")


def test_pycocotools_reads_polygons_and_rfdetr(exported):
    folder, _ = exported("coco-polygons")
    rfdetr, _ = exported("rfdetr", valid_share=0.4)
    expected = {name: masks for name, masks in DRAWN}
    seen = []
    for file in (
        folder / "annotations.json",
        *(rfdetr / split / "_annotations.coco.json" for split in ("train", "valid")),
    ):
        coco = COCO(file)
        for image in coco.imgs.values():
            masks = [coco.annToMask(a) for a in coco.imgToAnns[image["id"]]]
            assert not any(same(expected[image["file_name"]], masks))
            photograph = file.parent / image["file_name"]
            assert photograph.exists() or (folder / "images" / image["file_name"]).exists()
            seen.append((file.parent.name, image["file_name"]))
    names = ["a.jpg", "ü.jpg", "none.png"]
    assert seen == [
        *(("coco-polygons", name) for name in names),
        *(("train", name) for name in names[:2]),
        ("valid", names[2]),
    ]


def test_cvat_has_its_own_run_lengths(exported):
    folder, _ = exported("cvat")
    root = ElementTree.parse(folder / "annotations.xml").getroot()
    assert [image.get("name") for image in root.iter("image")] == [name for name, _ in DRAWN]
    for image, (_, masks) in zip(root.iter("image"), DRAWN, strict=True):
        read = []
        for mask in image.iter("mask"):
            box = [int(mask.get(key)) for key in ("top", "left", "height", "width")]
            pixels, on = [], 0
            for run in mask.get("rle").split(", "):
                pixels += [on] * int(run)
                on = 1 - on
            whole = np.zeros((int(image.get("height")), int(image.get("width"))), bool)
            top, left, height, width = box
            whole[top : top + height, left : left + width] = np.reshape(pixels, (height, width))
            read.append(whole)
        assert not any(same(masks, read))


def test_cvat_writes_what_its_library_does(tmp_path):
    mask = np.zeros((6, 7), bool)
    mask[2:5, 1:6] = SMALL
    labels = label_file(tmp_path, [("a.jpg", [mask])])
    export_labels(labels, tmp_path / "out", "cvat")
    found = ElementTree.parse(tmp_path / "out/annotations.xml").find("image/mask")
    assert [int(run) for run in found.get("rle").split(",")] == RUNS
    assert [found.get(key) for key in ("left", "top", "width", "height")] == ["1", "2", "5", "3"]
    assert found.find("attribute").text == "0.25"


def test_a_brush_is_what_label_studio_writes():
    assert encode_brush(SMALL) == BRUSH
    assert np.array_equal(decode_brush(BRUSH, 3, 5, "mask"), SMALL)
    with pytest.raises(RecordError, match="mask 7"):
        decode_brush(BRUSH[:-3], 3, 5, "mask 7")
    with pytest.raises(RecordError, match=r"60 values, not 4 x 4 x 3"):
        decode_brush(BRUSH, 3, 4, "mask")


def test_a_brush_of_a_long_run_and_of_single_values():
    long = np.zeros((300, 300), np.uint8)
    long[-1, -1] = 1
    assert np.array_equal(decode_brush(encode_brush(long), 300, 300, ""), long)
    # two pixels as eight values one by one: opaque to 0 and to 255, then runs that fill 2 x 2
    bits = f"{16:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}"
    bits += "000" + f"{7:03b}" + "".join(f"{v:08b}" for v in (9, 9, 9, 0, 9, 9, 9, 255))
    bits += "100" + f"{7:03b}{128:08b}"
    bits += "0" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    assert decode_brush(list(data), 2, 2, "").tolist() == [[0, 1], [1, 1]]


def test_label_studios_library_reads_the_tasks(exported):
    try:
        brush = importlib.import_module("label_studio_sdk.converter.brush")
    except ImportError:
        pytest.skip("label_studio_sdk is not installed: it wants an older OpenCV than we do")
    folder, _ = exported("labelstudio")
    for task, (_, masks) in zip(
        json.loads((folder / "tasks.json").read_text()), DRAWN, strict=True
    ):
        read = []
        for result in task["predictions"][0]["result"]:
            size = result["original_height"], result["original_width"], 4
            read.append(brush.decode_rle(result["value"]["rle"]).reshape(size)[..., 3] > 0)
        assert not any(same(masks, read))


def test_sa1b_is_beside_the_photograph(exported):
    folder, _ = exported("sa1b")
    for name, masks in DRAWN:
        assert (folder / name).exists()
        content = json.loads((folder / name).with_suffix(".json").read_text())
        assert content["image"]["file_name"] == name
        records = content["annotations"]
        assert not any(same(masks, [mask_api.decode(r["segmentation"]) for r in records]))
        assert [r["predicted_iou"] for r in records] == [0.25, 0.5, 1.0][: len(masks)]
