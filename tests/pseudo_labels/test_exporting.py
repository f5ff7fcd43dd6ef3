import json
import os
import signal
import tarfile

import numpy as np
import pytest

from promerge_d2.cli.export import main
from promerge_d2.pseudo_labels.exporting import export_labels
from promerge_d2.pseudo_labels.formats import FORMATS
from promerge_d2.utils.errors import UserError
from tests.helpers import coco_json, save_image, square
from tests.pseudo_labels.helpers import in_a_fork, wait_until

MASK = square(8, 10, 1, 2, 5, 6)
EVERY = sorted(FORMATS)


def labels_of(folder, *names):
    return coco_json(folder / "labels.json", [(name, 8, 10, [MASK]) for name in names])


def files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


@pytest.mark.parametrize("name", EVERY)
def test_killed_in_the_middle_it_leaves_no_folder(tmp_path, name):
    labels = labels_of(tmp_path, *(f"{n % 7}/{n}.jpg" for n in range(400)))
    output = tmp_path / "out"
    process = in_a_fork(lambda: export_labels(labels, output, name))
    ended = wait_until(lambda: any(files(p) for p in tmp_path.glob(".out.*.part")), process)
    assert not ended
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert not output.exists()
    export_labels(labels, output, name)
    assert output.is_dir()


@pytest.mark.parametrize("name", EVERY)
def test_a_failure_leaves_nothing(tmp_path, name):
    labels = labels_of(tmp_path, "a.jpg", "../b.jpg")
    with pytest.raises(UserError, match=r"\.\./b\.jpg"):
        export_labels(labels, tmp_path / "out", name, valid_share=0.5)
    assert {path.name for path in tmp_path.iterdir()} == {"labels.json"}


@pytest.mark.parametrize("name", EVERY)
def test_equal_names_in_different_folders_stay_apart(tmp_path, name):
    names = "a/x.jpg", "b/x.jpg", "x.jpg", "b/images/x.jpg"
    labels = labels_of(tmp_path, *names)
    for n, each in enumerate(names):
        save_image(tmp_path / "photos" / each, np.full((8, 10, 3), 40 * n, np.uint8))
    photos = tmp_path / "photos"
    found = export_labels(labels, tmp_path / "out", name, "copy", photos, valid_share=0.3)
    assert (found.images, found.masks, found.photographs) == (4, 4, 4)
    for each in names:
        (copy,) = [p for p in files(tmp_path / "out") if p in sums(each)]
        assert (tmp_path / "out" / copy).read_bytes() == (photos / each).read_bytes()


def sums(name):
    return {f"{folder}{name}" for folder in ("", "images/", "JPEGImages/", "train/", "valid/")}


@pytest.mark.parametrize("name", ["yolo", "voc", "sa1b"])
def test_images_that_differ_in_their_suffix_only_are_refused_by_name(tmp_path, name):
    labels = labels_of(tmp_path, "b/a.jpg", "b/a.png")
    with pytest.raises(UserError, match=r"b/a\.png"):
        export_labels(labels, tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


def test_yolos_labels_are_where_ultralytics_looks(tmp_path):
    labels = labels_of(tmp_path, "x/images/a.jpg", "b.jpg")
    export_labels(labels, tmp_path / "out", "yolo", valid_share=0.5)
    assert files(tmp_path / "out") == {
        *("data.yaml", "train.txt", "val.txt"),
        *("images/x/labels/a.txt", "labels/b.txt"),
    }
    assert (tmp_path / "out/train.txt").read_text() == "./images/x/images/a.jpg\n"
    assert (tmp_path / "out/val.txt").read_text() == "./images/b.jpg\n"
    line = (tmp_path / "out/labels/b.txt").read_text().split()
    points = np.array(line[1:], float).reshape(-1, 2) * (10, 8)
    assert set(map(tuple, np.floor(points))) == {(1, 2), (1, 5), (4, 5), (4, 2)}
    assert np.array_equal(np.floor(points), np.rint(points))


def test_photographs_are_linked_copied_or_left(tmp_path):
    labels = labels_of(tmp_path, "a.jpg", "t.tar/b.jpg", "gone.jpg")
    photo = save_image(tmp_path / "photos/a.jpg", np.zeros((8, 10, 3), np.uint8))
    with tarfile.open(tmp_path / "photos/t.tar", "w") as tar:
        tar.add(photo, "b.jpg")
    for images, linked in (("link", True), ("copy", False)):
        output = tmp_path / images
        found = export_labels(labels, output, "cvat", images, tmp_path / "photos")
        assert found.photographs == 2
        assert found.left_out.examples == {"photographs that are not there": ["gone.jpg"]}
        assert (output / "images/a.jpg").is_symlink() == linked
        assert not (output / "images/t.tar/b.jpg").is_symlink()
        for name in ("a.jpg", "t.tar/b.jpg"):
            assert (output / "images" / name).read_bytes() == photo.read_bytes()
    export_labels(labels, tmp_path / "none", "cvat")
    assert files(tmp_path / "none") == {"annotations.xml"}
    with pytest.raises(UserError, match="--image-root"):
        export_labels(labels, tmp_path / "other", "cvat", "link")


def test_what_has_no_mask_is_counted(tmp_path):
    objects = [
        *({"mask": MASK, "segmentation": []}, {"mask": MASK & False}),
        *({"mask": MASK, "iscrowd": 1}, MASK),
    ]
    labels = coco_json(tmp_path / "labels.json", [("a.jpg", 8, 10, objects)])
    found = export_labels(labels, tmp_path / "out", "png")
    assert found.masks == 1
    assert found.left_out.problems == {
        "objects without a mask": 1,
        "objects without a pixel": 1,
        "crowds (no format but COCO has them)": 1,
    }


@pytest.mark.parametrize("name", ["cvat", "voc"])
def test_a_name_that_xml_cannot_hold_is_refused(tmp_path, name):
    labels = labels_of(tmp_path, "a\x01.jpg")
    with pytest.raises(UserError, match=r"a\\x01\.jpg"):
        export_labels(labels, tmp_path / "out", name)


def test_a_folder_that_is_there_is_not_overwritten(tmp_path):
    labels = labels_of(tmp_path, "a.jpg")
    (tmp_path / "out").mkdir()
    export_labels(labels, tmp_path / "out", "png")
    before = files(tmp_path / "out")
    with pytest.raises(UserError, match="out is there"):
        export_labels(labels, tmp_path / "out", "yolo")
    assert files(tmp_path / "out") == before


def test_rfdetr_wants_images_for_validation(tmp_path):
    labels = labels_of(tmp_path, *"abcde")
    with pytest.raises(UserError, match=r"--valid-share"):
        export_labels(labels, tmp_path / "out", "rfdetr", valid_share=0.1)
    export_labels(labels, tmp_path / "out", "rfdetr", valid_share=0.4)
    names = [
        [i["file_name"] for i in json.loads(path.read_text())["images"]]
        for path in sorted((tmp_path / "out").glob("*/_annotations.coco.json"))
    ]
    assert names == [["a", "b", "d"], ["c", "e"]]


def test_the_command(tmp_path, capsys):
    parts = MASK | square(8, 10, 7, 2, 9, 6)
    labels = coco_json(tmp_path / "labels.json", [("a.jpg", 8, 10, [MASK, parts])])
    output = tmp_path / "out"
    assert main([str(labels), "--to", "yolo", "--output", str(output)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"2 masks on 1 images: {output}",
        "  photographs: 0 (none)",
        "  1 masks differ by 2 pixels in all: bridges between their parts",
        "  scores are not in it: the format has no place for them",
    ]
    command = [str(labels), "--to", "cvat", "--output", f"{output}2", "--image-root", str(tmp_path)]
    assert main(command) == 2
    assert capsys.readouterr().out.splitlines() == [
        f"2 masks on 1 images: {output}2",
        "  photographs: 0 (link)",
        "  left out: 1 photographs that are not there:",
        "    a.jpg",
    ]
