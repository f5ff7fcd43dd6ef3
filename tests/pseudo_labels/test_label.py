import dataclasses
import json
import logging
import platform
import re

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils

import promerge_d2
from promerge_d2.features import FeatureExtractor
from promerge_d2.features.extractor import build_vit
from promerge_d2.labeler import ProMergeConfig, ProMergeLabeler
from promerge_d2.labeler.base import GridProcessor
from promerge_d2.pseudo_labels import label_images, list_images
from promerge_d2.utils.errors import UserError
from tests.helpers import TINY, photo, save_image


@pytest.fixture(scope="module")
def labeler():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = build_vit(TINY)
    extractor = FeatureExtractor(TINY, vit, weights_sha256="5" * 64)
    return ProMergeLabeler(
        extractor, ProMergeConfig.from_preset("release", grid=12, stride=2, refine="none")
    )


@pytest.fixture
def folder(tmp_path):
    """Three images: one object; none (an even surface); one object in a folder below."""
    save_image(tmp_path / "photos" / "a.png", photo())
    save_image(tmp_path / "photos" / "b.png", np.full((50, 60, 3), 90, np.uint8))
    save_image(tmp_path / "photos" / "deep" / "c.png", photo(box=(12, 40, 48, 80), seed=1))
    return tmp_path / "photos"


def label(labeler, folder, output, **options):
    summary = label_images(list_images(folder), output, labeler, "release", **options)
    return summary, json.loads(output.read_text())


def test_the_file_holds_the_objects(labeler, folder, tmp_path):
    summary, coco = label(labeler, folder, tmp_path / "labels.json")
    assert [(i["id"], i["file_name"], i["width"], i["height"]) for i in coco["images"]] == [
        (1, "a.png", 144, 96),
        (2, "b.png", 60, 50),
        (3, "deep/c.png", 144, 96),
    ]
    assert coco["categories"] == [{"id": 1, "name": "object"}]
    assert [
        (a["id"], a["image_id"], a["category_id"], a["iscrowd"]) for a in coco["annotations"]
    ] == [(1, 1, 1, 0), (2, 3, 1, 0)]
    first, second = coco["annotations"]
    assert (first["bbox"], first["area"], first["score"]) == ([84, 16, 36, 32], 1152, 1.0)
    assert (second["bbox"], second["area"]) == ([12, 40, 36, 40], 1440)
    mask = mask_utils.decode(first["segmentation"])
    assert mask.shape == (96, 144)
    assert mask[16:48, 84:120].all()
    assert (summary.images, summary.masks, summary.failures) == (3, 2, [])


def test_an_image_without_masks_says_why_and_counts(labeler, folder, tmp_path):
    summary, coco = label(labeler, folder, tmp_path / "labels.json")
    reasons = [image.get("reason") for image in coco["images"]]
    assert reasons[0] is None
    assert reasons[2] is None
    assert reasons[1] in labeler.reasons
    assert summary.reasons == {reasons[1]: 1}
    run = json.loads((tmp_path / "labels.run.json").read_text())
    assert run["images_without_masks"] == {reasons[1]: 1}
    assert (run["images"], run["masks"], run["failures"]) == (3, 2, [])


def test_info_is_what_the_masks_follow_from(labeler, folder, tmp_path):
    _, coco = label(labeler, folder, tmp_path / "labels.json")
    assert coco["info"] == {
        "description": "ProMerge pseudo-labels; features: random weights, for tests",
        "version": promerge_d2.__version__,
        "labeler": "promerge",
        "preset": "release",
        "settings": json.loads(json.dumps(dataclasses.asdict(labeler.config))),
        "backbone": {
            "name": "tiny",
            "training": "random weights, for tests",
            "licence": "none",
            "weights_sha256": "5" * 64,
            "facet": "key",
            "center": True,
            "precision": "fp32",
        },
    }


def test_the_machine_and_the_time_are_beside_the_labels_not_in_them(
    labeler, folder, tmp_path, monkeypatch
):
    def run(number, host, command, start):
        monkeypatch.setattr(platform, "node", lambda: host)
        monkeypatch.setattr("sys.argv", [command])
        clock = iter(range(start, start + 1000))
        monkeypatch.setattr("promerge_d2.pseudo_labels.label.time.time", lambda: next(clock))
        output = tmp_path / f"out{number}" / "labels.json"
        label(labeler, folder, output)
        return output.read_bytes(), json.loads((output.parent / "labels.run.json").read_text())

    first, first_run = run(1, "host-one", "command-one", 1_000_000)
    second, second_run = run(2, "host-two", "command-two", 2_000_000)
    assert first == second
    for word in ("host-one", "command-one", str(tmp_path), platform.platform(), "1970"):
        assert word not in first.decode()
    assert (first_run["host"], first_run["command"]) == ("host-one", ["command-one"])
    assert (second_run["host"], second_run["command"]) == ("host-two", ["command-two"])
    assert first_run["started"] == "1970-01-12T13:46:40+00:00"  # 1,000,000 s
    assert first_run["image_root"] == str(folder)
    assert list(first_run["seconds_by_stage"]) == [
        "decoding",
        "features",
        "masks",
        "refinement",
        "encoding",
    ]


def test_a_failed_image_shifts_no_other(labeler, folder, tmp_path, caplog):
    _, before = label(labeler, folder, tmp_path / "before.json")
    (folder / "b.png").write_text("not an image")
    with caplog.at_level(logging.ERROR, "promerge_d2"):
        summary, after = label(labeler, folder, tmp_path / "after.json")
    assert [image["id"] for image in after["images"]] == [1, 3]
    assert after["annotations"] == before["annotations"]
    assert [failure["file_name"] for failure in summary.failures] == ["b.png"]
    assert "cannot read the image" in summary.failures[0]["error"]
    assert "failed: b.png: cannot read the image" in caplog.text
    run = json.loads((tmp_path / "after.run.json").read_text())
    assert run["failures"] == summary.failures


def test_an_unexpected_error_is_named_with_its_traceback(labeler, folder, tmp_path, monkeypatch):
    preprocess = GridProcessor.preprocess

    def fail_on_small(self, path):
        if path.name == "b.png":
            raise ZeroDivisionError("surprise")
        return preprocess(self, path)

    monkeypatch.setattr(GridProcessor, "preprocess", fail_on_small)
    summary, coco = label(labeler, folder, tmp_path / "labels.json")
    assert [image["id"] for image in coco["images"]] == [1, 3]
    (failure,) = summary.failures
    assert failure["file_name"] == "b.png"
    assert failure["error"] == "ZeroDivisionError: surprise"
    assert "fail_on_small" in failure["traceback"]


def test_overlays_are_one_png_an_image(labeler, folder, tmp_path):
    save_image(folder / "a.jpg", photo(seed=3), quality=95)  # the same stem as a.png
    before = (folder / "a.png").read_bytes()
    overlays = tmp_path / "pictures"
    label(labeler, folder, tmp_path / "labels.json", overlays=overlays)
    written = sorted(p.relative_to(overlays).as_posix() for p in overlays.rglob("*.png"))
    assert written == ["a.jpg.png", "a.png.png", "b.png.png", "deep/c.png.png"]
    with Image.open(overlays / "a.png.png") as drawn:
        assert (drawn.format, drawn.mode, drawn.size) == ("PNG", "RGB", (144, 96))
        changed = (np.asarray(drawn) != photo()).any(axis=2)
    assert changed[16:48, 84:120].all()
    assert changed.sum() == 1152
    assert (folder / "a.png").read_bytes() == before


def test_overlays_beside_the_photographs_overwrite_none(labeler, folder, tmp_path):
    before = {p: p.read_bytes() for p in folder.rglob("*.png")}
    label(labeler, folder, tmp_path / "labels.json", overlays=folder)
    assert {p: p.read_bytes() for p in before} == before
    assert (folder / "a.png.png").is_file()


@pytest.mark.parametrize("place", ["folder.json", "file/labels.json"])
def test_unwritable_places_are_refused_before_any_work(labeler, folder, tmp_path, place):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").write_text("")
    images = list_images(folder)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        label_images(images, tmp_path / place, labeler, "release")
    with pytest.raises(UserError, match="file"):
        label_images(images, tmp_path / "ok.json", labeler, "release", tmp_path / "file")
    assert not (tmp_path / "ok.json").exists()
