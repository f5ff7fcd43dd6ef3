import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import read_image
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from promerge_d2.data import register_promerge_instances
from promerge_d2.features import get_backbone
from promerge_d2.features.registry import BACKBONES
from tests.helpers import ROOT, TINY, photo, run_tool, save_image, save_random_vit, use_tiny

FAST = ["--grid", "12", "--set", "stride=2", "--refine", "none"]
BOX = (84, 16, 120, 48)  # of the bright object in photo()


@pytest.fixture
def label(tmp_path, monkeypatch, capsys):
    """``label(input, output, ...)``: exit code, standard output, standard error."""
    weights = use_tiny(monkeypatch, tmp_path)

    def run(source, output, *more, fast=FAST):
        capsys.readouterr()
        where = ["--input", source, "--output", output]
        how = ["--backbone", "tiny", "--weights", weights, *fast]
        code = run_tool(monkeypatch, "label_images.py", *where, *how, *more)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    run.weights = weights
    return run


@pytest.fixture
def photos(tmp_path):
    """Three good images, one of them in a folder below."""
    for number, name in enumerate(("a.png", "b.png", "deep/c.png")):
        save_image(tmp_path / "photos" / name, photo(seed=number))
    return tmp_path / "photos"


def upright(kind):
    """The photo and what to save so that it is shown upright with EXIF orientation ``kind``."""
    pixels = photo()
    return pixels, {
        3: np.rot90(pixels, 2),
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, 1),  # shown turned by 90 degrees clockwise
        8: np.rot90(pixels, -1),
    }[kind]


def save_with_orientation(path, pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save_image(path, np.ascontiguousarray(pixels), exif=exif, quality=95)


# Broken files


@pytest.fixture
def broken_list(tmp_path):
    """A list of five: good, missing, truncated, text, good."""
    folder = tmp_path / "mixed"
    save_image(folder / "a_good.jpg", photo(), quality=95)
    whole = save_image(folder / "c_truncated.jpg", photo(seed=1), quality=95).read_bytes()
    (folder / "c_truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "d_text.jpg").write_text("this is a text\n")
    save_image(folder / "e_good.jpg", photo(seed=2), quality=95)
    names = ("a_good.jpg", "b_missing.jpg", "c_truncated.jpg", "d_text.jpg", "e_good.jpg")
    (folder / "list.txt").write_text("\n".join(names) + "\n")
    return folder / "list.txt"


def check_broken(labels, code, out):
    assert code == 2
    coco = json.loads(labels.read_text())
    assert [(i["id"], i["file_name"]) for i in coco["images"]] == [
        (1, "a_good.jpg"),
        (5, "e_good.jpg"),
    ]
    failures = json.loads(labels.with_suffix(".run.json").read_text())["failures"]
    assert [f["file_name"] for f in failures] == ["b_missing.jpg", "c_truncated.jpg", "d_text.jpg"]
    for failure, reason in zip(
        failures, ("No such file or directory", "truncated", "cannot identify"), strict=True
    ):
        assert reason in failure["error"]
        assert f"    {failure['file_name']}: {failure['error']}\n" in out
    assert "  3 images failed:\n" in out


def test_broken_files_are_named_and_the_others_labelled(label, broken_list, tmp_path):
    code, out, err = label(broken_list, tmp_path / "labels.json")
    check_broken(tmp_path / "labels.json", code, out)
    assert out.startswith("2 masks on 2 images: ")
    assert "Traceback" not in out + err
    coco = json.loads((tmp_path / "labels.json").read_text())
    assert [a["image_id"] for a in coco["annotations"]] == [1, 5]


def test_broken_files_from_a_shell(broken_list, tmp_path):
    weights = save_random_vit(get_backbone("dino_vits16"), tmp_path / "random.pth")
    labels = tmp_path / "made" / "on" / "the" / "way" / "labels.json"
    command = [sys.executable, str(ROOT / "tools" / "label_images.py")]
    command += ["--input", broken_list, "--output", labels, "--backbone", "dino_vits16"]
    command += ["--weights", weights, "--grid", "6", "--refine", "none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    check_broken(labels, done.returncode, done.stdout)


# Odd but good images


def odd_images(folder):
    """One of each kind; returns the (height, width) that a viewer shows."""
    pixels, grey = photo(), photo()[:, :, 0]
    shape = pixels.shape[:2]
    save_image(folder / "one_pixel.png", np.full((1, 1, 3), 7, np.uint8))
    save_image(folder / "grey.png", grey)
    save_image(folder / "grey_alpha.png", np.stack([grey, np.full_like(grey, 128)], 2))
    save_image(folder / "alpha.png", np.dstack([pixels, np.full_like(grey, 0)]))
    Image.fromarray(pixels).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(pixels).convert("P").save(folder / "palette.gif")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "sixteen_bit.png")
    Image.fromarray(pixels).convert("1").save(folder / "bilevel.png")
    panorama = np.full((60, 12_000, 3), 30, np.uint8)
    panorama[10:40, 9000:11_000] = 240
    save_image(folder / "panorama.jpg", panorama)
    sizes = dict.fromkeys(
        ("grey.png", "grey_alpha.png", "alpha.png", "cmyk.jpg", "palette.gif"), shape
    )
    sizes |= {"sixteen_bit.png": shape, "bilevel.png": shape}
    sizes |= {"one_pixel.png": (1, 1), "panorama.jpg": (60, 12_000)}
    for orientation in (3, 5, 6, 8):
        save_with_orientation(
            folder / f"exif{orientation}.jpg", upright(orientation)[1], orientation
        )
        sizes[f"exif{orientation}.jpg"] = shape
    return sizes


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """All odd images labelled in one run, and where and how big they are."""
    folder = tmp_path_factory.mktemp("odd")
    photos = folder / "photos"
    photos.mkdir()
    sizes = odd_images(photos)
    with pytest.MonkeyPatch.context() as patch:
        weights = use_tiny(patch, folder)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = run_tool(
                patch,
                "label_images.py",
                *["--input", photos, "--output", folder / "labels.json"],
                *["--backbone", "tiny", "--weights", weights, *FAST],
            )
    return code, photos, folder / "labels.json", sizes


def test_odd_images_are_all_processed(odd):
    code, _, labels, sizes = odd
    assert code == 0
    images = json.loads(labels.read_text())["images"]
    assert {i["file_name"]: (i["height"], i["width"]) for i in images} == sizes


@pytest.mark.parametrize(
    "name",
    ["grey.png", "grey_alpha.png", "alpha.png", "cmyk.jpg", "palette.gif", "sixteen_bit.png"]
    + [f"exif{orientation}.jpg" for orientation in (3, 5, 6, 8)],
)
def test_labels_lie_on_what_detectron2_shows(odd, name):
    _, photos, labels, _ = odd
    register_promerge_instances("odd_images", labels, photos)
    try:
        records = DatasetCatalog.get("odd_images")
    finally:
        DatasetCatalog.remove("odd_images")
        MetadataCatalog.remove("odd_images")
    (record,) = (r for r in records if os.path.basename(r["file_name"]) == name)
    shown = read_image(record["file_name"], "RGB")
    assert shown.shape[:2] == (record["height"], record["width"])
    (annotation,) = record["annotations"]
    mask = mask_utils.decode(annotation["segmentation"]).astype(bool)
    x0, y0, x1, y1 = BOX
    assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0]
    assert mask[y0:y1, x0:x1].all()
    if name != "sixteen_bit.png":  # detectron2 clips 16-bit samples, all are white to it
        assert shown[mask].mean() > 180
        assert shown[~mask].mean() < 60


def test_stock_loaders_read_the_file(odd):
    _, photos, labels, sizes = odd
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(labels))
    assert len(coco.imgs) == len(sizes)
    for annotation in coco.anns.values():
        image = coco.imgs[annotation["image_id"]]
        mask = coco.annToMask(annotation)
        assert mask.shape == (image["height"], image["width"]) == sizes[image["file_name"]]
        assert mask.sum() == annotation["area"] > 0
    try:
        records = load_coco_json(str(labels), str(photos), "stock_loader")
        assert MetadataCatalog.get("stock_loader").thing_classes == ["object"]
    finally:
        MetadataCatalog.remove("stock_loader")
    assert {os.path.basename(r["file_name"]): (r["height"], r["width"]) for r in records} == sizes
    assert sum(len(r["annotations"]) for r in records) == len(coco.anns) >= 10
    assert {a["category_id"] for r in records for a in r["annotations"]} == {0}


# What is written


def test_the_same_input_gives_the_same_bytes(label, photos, tmp_path, monkeypatch):
    code, *_ = label(photos, tmp_path / "first" / "labels.json")
    assert code == 0
    monkeypatch.chdir(photos.parent)
    monkeypatch.setattr("platform.node", lambda: "another-host")
    code, *_ = label("photos", tmp_path / "second.json", "--preset", "release", "--device", "cpu")
    assert code == 0
    first, second = tmp_path / "first" / "labels.json", tmp_path / "second.json"
    assert first.read_bytes() == second.read_bytes()
    runs = [json.loads(p.with_suffix(".run.json").read_text()) for p in (first, second)]
    assert runs[0]["command"] != runs[1]["command"]
    assert runs[1]["host"] == "another-host" != runs[0]["host"]
    text = first.read_text()
    for word in (str(tmp_path), runs[0]["host"], runs[0]["machine"], runs[0]["started"][:10]):
        assert word not in text


def test_folder_glob_and_list_are_one_input(label, photos, tmp_path):
    (photos / "list.txt").write_text("deep/c.png\nb.png\na.png\n")  # sorted by the tool
    sources = [photos, f"{photos}/**/*.png", photos / "list.txt"]
    files = [tmp_path / f"{number}.json" for number in range(3)]
    for source, file in zip(sources, files, strict=True):
        assert label(source, file)[0] == 0
    names = [i["file_name"] for i in json.loads(files[0].read_text())["images"]]
    assert names == ["a.png", "b.png", "deep/c.png"]
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()


def test_one_image_with_the_crf(label, photos, tmp_path):
    pytest.importorskip("pydensecrf")
    code, out, _ = label(photos / "a.png", tmp_path / "l.json", "--refine", "dense_crf")
    assert code == 0
    assert out == f"1 masks on 1 images: {tmp_path / 'l.json'}\n"
    coco = json.loads((tmp_path / "l.json").read_text())
    assert coco["info"]["settings"]["refine"] == "dense_crf"
    mask = mask_utils.decode(coco["annotations"][0]["segmentation"]).astype(bool)
    wanted = np.zeros_like(mask)
    wanted[BOX[1] : BOX[3], BOX[0] : BOX[2]] = True
    assert (mask & wanted).sum() / (mask | wanted).sum() > 0.9


def test_options_reach_the_labeler(label, photos, tmp_path):
    more = ["--preset", "paper", "--facet", "query", "--center", "off", "--set", "tau_b=0.3"]
    code, *_ = label(photos, tmp_path / "l.json", *more, "--grid", "6x9", "--set", "stride=3")
    assert code == 0
    info = json.loads((tmp_path / "l.json").read_text())["info"]
    assert info["preset"] == "paper"
    settings = info["settings"]
    assert settings["grid"] == [6, 9]
    assert (settings["stride"], settings["tau_b"]) == (3, 0.3)
    assert settings["side_rule"] == "at_least_half"  # the preset's
    assert (info["backbone"]["facet"], info["backbone"]["center"]) == ("query", False)
    assert len(info["backbone"]["weights_sha256"]) == 64


def test_another_labeler_by_its_preset(label, photos, tmp_path):
    more = ["--preset", "maskcut", "--set", "masks=2", "--set", "tau=0.3"]
    code, out, _ = label(photos, tmp_path / "l.json", *more, fast=["--grid", "12"])
    assert code == 0
    coco = json.loads((tmp_path / "l.json").read_text())
    assert coco["info"]["labeler"] == "maskcut"
    assert coco["info"]["description"].startswith("MaskCut pseudo-labels; ")
    settings = coco["info"]["settings"]
    assert (settings["masks"], settings["tau"]) == (2, 0.3)
    assert "stride" not in settings
    assert 3 <= len(coco["annotations"]) <= 6
    assert out.startswith(f"{len(coco['annotations'])} masks on 3 images: ")


def test_precision_and_compile_reach_the_network(label, photos, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        torch, "compile", lambda model, **options: compiled.append(options) or model
    )
    assert label(photos, tmp_path / "l.json", "--precision", "bf16", "--compile")[0] == 0
    info = json.loads((tmp_path / "l.json").read_text())["info"]
    assert info["backbone"]["precision"] == "bf16"
    assert compiled == [{"dynamic": False}]


def test_images_without_masks_are_processed_and_counted_by_reason(label, tmp_path):
    save_image(tmp_path / "photos" / "even.png", np.full((40, 40, 3), 90, np.uint8))
    code, out, _ = label(tmp_path / "photos", tmp_path / "l.json")
    assert code == 0
    (image,) = json.loads((tmp_path / "l.json").read_text())["images"]
    assert out.splitlines()[0].startswith("0 masks on 1 images: ")
    assert f"  1 images without a mask: {image['reason']} (" in out


def test_overlays(label, photos, tmp_path):
    assert label(photos, tmp_path / "l.json", "--overlays")[0] == 0
    folder = tmp_path / "l.overlays"
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert names == {"a.png.png", "b.png.png", "deep/c.png.png"}
    assert label(photos, tmp_path / "m.json", "--overlays", tmp_path / "here")[0] == 0
    with Image.open(tmp_path / "here" / "deep" / "c.png.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (144, 96))
        assert not np.array_equal(np.asarray(picture), photo(seed=2))


# Refused before anything is done


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--preset", "relase"], ["'relase'", "release"]),
        (["--backbone", "dino_vitb_8"], ["'dino_vitb_8'", "dino_vitb8?"]),
        (["--set", "tau_bb=0.3"], ["'tau_bb'", "tau_b?"]),
        (["--set", "tau_b=high"], ["tau_b", "'high'"]),
        (["--set", "tau_b=7"], ["tau_b", "7.0", "-1 and 1"]),
        (["--set", "tau_b"], ["--set", "'tau_b'"]),
        (["--grid", "big"], ["grid", "'big'", "HxW"]),
        (["--facet", "kye"], ["--facet", "'kye'"]),
        (["--refine", "crf"], ["--refine", "'crf'"]),
        (["--prest", "paper"], ["--prest"]),
        (["--preset", "maskcut"], ["'stride'", "grid"]),
        (["--precision", "fp16"], ["--precision", "'fp16'"]),
        (["--workers", "-1"], ["--workers", "-1"]),
        (["--batch-size", "0"], ["--batch-size", "0"]),
        (["--device", "cuda:99"], ["'cuda:99'"]),
        (["--weights", "gone.pth"], ["gone.pth"]),
        (["--weights", __file__], [__file__]),
    ],
)
def test_misspelt_requests_are_refused(label, photos, tmp_path, monkeypatch, more, named):
    monkeypatch.setattr("promerge_d2.features.weights.check_hash", lambda *_: "0" * 64)
    code, out, err = label(photos, tmp_path / "l.json", *more)
    assert code == 3
    assert [part for part in named if part not in err] == []
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "l.json").exists()


def test_inputs_that_are_nothing_are_refused(label, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (photos / "twice.txt").write_text("a.png\nb.png\na.png\n")
    for source, message in (
        (tmp_path / "empty", str(tmp_path / "empty")),
        (tmp_path / "gone", str(tmp_path / "gone")),
        (f"{tmp_path}/*.jpg", f"{tmp_path}/*.jpg"),
        (photos / "twice.txt", "a.png"),
    ):
        code, _, err = label(source, tmp_path / "l.json")
        assert code == 3
        assert message in err
    assert not (tmp_path / "l.json").exists()


@pytest.mark.parametrize(
    ("output", "named"),
    [("folder.json", "folder.json"), ("file/labels.json", "file"), ("file/deep/l.json", "file")],
)
def test_places_that_cannot_be_written_are_refused(label, photos, tmp_path, output, named):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").write_text("in the way")
    code, _, err = label(photos, tmp_path / output)
    assert code == 3
    assert str(tmp_path / named) in err
    assert (tmp_path / "file").read_text() == "in the way"


def test_overlays_that_cannot_be_written_are_refused(label, photos, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, _, err = label(photos, tmp_path / "l.json", "--overlays", tmp_path / "file")
    assert code == 3
    assert str(tmp_path / "file") in err
    assert not (tmp_path / "l.json").exists()


def test_changed_weights_are_refused(label, photos, tmp_path):
    assert label(photos, tmp_path / "l.json")[0] == 0  # notes the hash of the first use
    before = (tmp_path / "l.json").read_bytes()
    save_random_vit(TINY, label.weights, seed=1)
    code, _, err = label(photos, tmp_path / "l.json")
    assert code == 3
    assert f"{label.weights} has SHA-256 " in err
    assert (tmp_path / "l.json").read_bytes() == before


def test_weights_with_another_hash_than_the_official_are_refused(
    label, photos, tmp_path, monkeypatch
):
    official = dataclasses.replace(TINY, sha256="ab" * 32)
    monkeypatch.setitem(BACKBONES, "tiny", official)
    code, _, err = label(photos, tmp_path / "l.json")
    assert code == 3
    assert "ab" * 32 in err
