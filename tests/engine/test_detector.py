"""A detector as a labeler: the detections of detectron2's own way, weights that must fit."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetMapper
from detectron2.modeling import build_model
from PIL import Image
from pycocotools import mask as mask_api

from promerge_d2.engine.detector import (
    NOTHING,
    DetectorMaskGenerator,
    load_detector,
    settings_of,
    weights_sha256,
)
from promerge_d2.engine.setup import read_config
from promerge_d2.evaluation.evaluator import detection_records
from promerge_d2.pseudo_labels import LocalEngine, label_images, list_images
from promerge_d2.utils.errors import UserError


@pytest.fixture
def detector(config, tmp_path):
    """A configuration with random weights in a file."""
    cfg = read_config(str(config()), [])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(cfg)
    DetectionCheckpointer(model, str(tmp_path)).save("random")
    cfg.MODEL.WEIGHTS = str(tmp_path / "random.pth")
    return cfg


def changed(cfg, *opts):
    cfg = cfg.clone()
    cfg.merge_from_list(list(opts))
    return cfg


def test_detections_are_those_of_detectron2(detector, photos):
    labeler = DetectorMaskGenerator(detector)
    records = labeler.processor.postprocess(labeler.detect(photos / "1.png")).records
    entry = {"file_name": str(photos / "1.png"), "height": 96, "width": 144}
    with torch.no_grad():
        (output,) = load_detector(detector)([DatasetMapper(detector, False)(entry)])
    expected = detection_records(output["instances"], 1)
    expected = [e for e in expected if mask_api.area(e["segmentation"])]
    assert len(expected) > 1
    assert [r["score"] for r in records] == [e["score"] for e in expected]
    assert [r["segmentation"] for r in records] == [e["segmentation"] for e in expected]
    mask = mask_api.decode(records[0]["segmentation"])
    rows, columns = np.nonzero(mask)
    assert records[0]["area"] == mask.sum()
    width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
    assert records[0]["bbox"] == [columns.min(), rows.min(), width, height]


@pytest.mark.parametrize("format_", ["RGB", "BGR"])
def test_pixels_are_those_of_detectron2(detector, tmp_path, format_):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    files = {
        "a.jpg": (image, {}),
        "turned.jpg": (image, {"exif": exif}),
        "grey.png": (image.convert("L"), {}),
        "palette.png": (image.convert("P"), {}),
        "alpha.png": (image.convert("RGBA"), {}),
    }
    processor = dataclasses.replace(DetectorMaskGenerator(detector).processor, channels=format_)
    mapper = DatasetMapper(changed(detector, "INPUT.FORMAT", format_), False)
    for name, (picture, options) in files.items():
        picture.save(tmp_path / name, **options)
        expected = mapper({"file_name": str(tmp_path / name)})
        found = processor.preprocess(tmp_path / name)
        assert (found.height, found.width) == ((90, 70) if name == "turned.jpg" else (70, 90))
        assert torch.equal(found.image, expected["image"].float()), name


def test_settings_are_those_that_act(detector):
    settings = settings_of(detector)
    assert settings["INPUT.MIN_SIZE_TEST"] == 96
    assert settings_of(changed(detector, "INPUT.MIN_SIZE_TEST", 90)) != settings
    other = changed(detector, "MODEL.WEIGHTS", "elsewhere.pth", "SOLVER.BASE_LR", 5.0)
    assert settings_of(other) == settings


def test_the_minimum_score_and_images_without_detections(detector, photos):
    labeler = DetectorMaskGenerator(detector)
    found = labeler.detect(photos / "0.png")
    scores = [r["score"] for r in labeler.processor.postprocess(found).records]
    assert scores == sorted(scores, reverse=True)
    middle = scores[len(scores) // 2]
    processor = DetectorMaskGenerator(detector, middle).processor
    assert [r["score"] for r in processor.postprocess(found).records] == [
        s for s in scores if s >= middle
    ]
    again = processor.postprocess(found).records  # nothing is scaled twice
    assert again == processor.postprocess(found).records
    nothing = DetectorMaskGenerator(detector, 1.0).processor.postprocess(found)
    assert (nothing.records, nothing.reason) == ([], NOTHING)
    assert nothing.reason in DetectorMaskGenerator.reasons


def test_the_label_engine_runs_it_and_names_it(detector, photos, tmp_path):
    labeler = DetectorMaskGenerator(changed(detector, "TEST.DETECTIONS_PER_IMAGE", 3), 0.1)
    (photos / "9.png").write_text("not an image")
    images = list_images(photos)
    summary = label_images(images, tmp_path / "a.json", labeler, "tiny.yaml")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["info"] == {
        "description": ("detections of a trained detector; backbone: random weights, for tests"),
        "version": content["info"]["version"],
        "labeler": "detector",
        "config": "tiny.yaml",
        "settings": settings_of(detector),
        "weights_sha256": weights_sha256(labeler.model),
        "min_score": 0.1,
        "detections_per_image": 3,
    }
    assert [image["id"] for image in content["images"]] == [1, 2, 3, 4]
    assert [failure["file_name"] for failure in summary.failures] == ["9.png"]
    counts = [sum(a["image_id"] == n for a in content["annotations"]) for n in (1, 2, 3, 4)]
    assert max(counts) == 3
    label_images(images, tmp_path / "b.json", labeler, "tiny.yaml", engine=LocalEngine(0, 3))
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "a.json").read_bytes()


@pytest.mark.slow
def test_workers_find_the_same(detector, photos, tmp_path):
    labeler = DetectorMaskGenerator(detector)
    for workers in (0, 2):
        output = tmp_path / f"{workers}.json"
        label_images(list_images(photos), output, labeler, "c", engine=LocalEngine(workers))
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "2.json").read_bytes()


def test_the_hash_is_of_weights_not_of_files(detector, tmp_path):
    model = load_detector(detector)
    first = weights_sha256(model)
    DetectionCheckpointer(model, str(tmp_path)).save("again", iteration=7)
    again = load_detector(changed(detector, "MODEL.WEIGHTS", str(tmp_path / "again.pth")))
    assert weights_sha256(again) == first
    with torch.no_grad():
        next(again.parameters()).add_(1)
    assert weights_sha256(again) != first


def test_the_frozen_vit_counts(detector):
    labeler = DetectorMaskGenerator(detector)
    frozen = sum(p.numel() for p in labeler.model.backbone.net.extractor.parameters())
    own = sum(p.numel() for p in labeler.model.parameters())
    assert sum(w.numel() for w in labeler.weights()) == own + frozen
    before = weights_sha256(labeler.model)
    labeler.model.backbone.net.extractor.weights_sha256 = "another"
    assert weights_sha256(labeler.model) != before


# Weights that do not fit


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.ROI_MASK_HEAD.NUM_CONV", 2, "roi_heads.mask_head.mask_fcn2.weight is missing"),
        ("MODEL.ROI_BOX_HEAD.FC_DIM", 32, "box_head.0.fc1.weight is (64, 3136), not (32, 3136)"),
        ("MODEL.ROI_MASK_HEAD.NUM_CONV", 0, "roi_heads.mask_head.mask_fcn1.weight is unknown"),
    ],
)
def test_weights_of_another_detector_are_refused(detector, key, value, message):
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS") as caught:
        load_detector(changed(detector, key, value))
    assert message in str(caught.value)


def test_many_keys_are_counted(detector, tmp_path):
    torch.save({"model": {}}, tmp_path / "empty.pth")
    with pytest.raises(UserError, match=r"is missing and \d+ more$") as caught:
        load_detector(changed(detector, "MODEL.WEIGHTS", str(tmp_path / "empty.pth")))
    assert str(caught.value).count("is missing") == 3


def test_no_checkpoint_at_all(detector, tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match=r"text\.pth"):
        load_detector(changed(detector, "MODEL.WEIGHTS", str(tmp_path / "text.pth")))


def test_a_detector_without_masks_is_refused(detector):
    with pytest.raises(UserError, match=r"MODEL\.MASK_ON True"):
        DetectorMaskGenerator(changed(detector, "MODEL.MASK_ON", False))
