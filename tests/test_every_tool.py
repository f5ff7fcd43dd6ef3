"""Random photographs and label files, most of them damaged, through every tool to a training step.

A tool gives the right answer, or an error that names the file or the record: never a traceback,
never a wrong number. ``PROMERGE_EXAMPLES=10000 pytest tests/test_every_tool.py`` tries more.
"""

from __future__ import annotations

import copy
import functools
import io
import itertools
import json
import math
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from promerge_d2.coco.check import validate_labels
from promerge_d2.coco.ground_truth import read_ground_truth
from promerge_d2.coco.predictions import read_predictions
from promerge_d2.data.lazy import LazyCoco
from promerge_d2.data.mapper import LabelMapper
from promerge_d2.engine.setup import read_config
from promerge_d2.evaluation import align_predictions, evaluate_class_agnostic
from promerge_d2.pseudo_labels import label_images, list_images
from promerge_d2.pseudo_labels.inputs import find_size
from promerge_d2.utils.image import image_size, load_image
from tests.coco import plain
from tests.coco.checks import attempt, check_every_tool
from tests.coco.mutations import ASKED, TRIED, good_files, mutated
from tests.helpers import ROOT, exif_of, stored_pixels
from tests.pseudo_labels.helpers import tiny_labeler

FORMATS = {
    "JPEG": {"quality": 90},
    "PNG": {},
    "WEBP": {"lossless": True, "exact": True},  # colours under full transparency too
    "TIFF": {},
    "LZW": {"format": "TIFF", "compression": "tiff_lzw"},
    **({"AVIF": {"quality": 90, "speed": 10}} if features.check("avif") else {}),
}
LOSSY = "JPEG", "AVIF"
KINDS = ["RGB", "L", "RGBA", "I;16", "RGB;16", "F"]  # what a file's samples are


@st.composite
def photographs(draw, height, width):
    """Bytes of a photograph, and its upright pixels: None where the bytes are damaged.

    Pixels are None too where the format loses some; then the shape is all that is known.
    """
    name = draw(st.sampled_from([*FORMATS]))
    kind = draw(st.sampled_from(KINDS[: {"PNG": 5, "TIFF": 6}.get(name, 3)]))
    odd = [] if name == "LZW" else [0, 9]  # libtiff writes no such orientation
    orientation = draw(st.sampled_from([1, 1, *range(1, 9), *odd]))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    shape = (height, width) if kind in ("L", "I;16", "F") else (height, width, len(kind[:4]))
    if kind == "RGB;16":
        name, orientation, shape = "PNG", 1, (height, width, 3)
    top = 4095 if kind.endswith("16") else 1 if kind == "F" else 255
    samples = rng.uniform(0, top, shape)
    samples.flat[0] = top
    samples = samples.astype({"I;16": "u2", "RGB;16": "u2", "F": "f4"}.get(kind, "u1"))
    seen = samples if top == 255 else np.floor(samples * (255 / top) + 0.5)
    seen = seen[..., None].repeat(3, axis=2) if seen.ndim == 2 else seen[..., :3]
    stream = io.BytesIO()
    if kind == "RGB;16":
        stream.write(cv2.imencode(".png", samples[..., ::-1])[1].tobytes())
    else:
        turn = orientation if 1 <= orientation <= 8 else 1
        stored = stored_pixels(samples.reshape(height, width, -1), turn)
        stored = np.ascontiguousarray(stored if samples.ndim == 3 else stored[..., 0])
        picture = Image.fromarray(stored)
        picture = picture.convert("RGB") if name == "JPEG" and kind == "RGBA" else picture
        options = {"format": name, **FORMATS[name], "exif": exif_of(orientation)}
        picture.save(stream, **options)
    content = stream.getvalue()
    if draw(st.booleans()):
        return damaged(draw, content), None
    return content, (seen.shape, None if name in LOSSY else seen)


def damaged(draw, content):
    """A file's bytes with a few changed, taken out or put in, or the end cut off."""
    place = draw(st.integers(0, len(content) - 1))
    how = draw(st.sampled_from(["cut", "put in", "take out", "change", "change", "head"]))
    if how == "cut":
        return content[:place]
    if how == "put in":
        return content[:place] + draw(st.binary(max_size=9)) + content[place:]
    if how == "take out":
        return content[:place] + content[place + draw(st.integers(1, 9)) :]
    changed = bytearray(content)
    last = min(64, len(content)) - 1 if how == "head" else len(content) - 1
    for _ in range(draw(st.integers(1, 4))):
        changed[draw(st.integers(0, last))] = draw(st.sampled_from([0, 1, 127, 128, 255, 6, 42]))
    return bytes(changed)


@st.composite
def data_sets(draw):
    """Photographs by name, as ``photographs`` gives them, and the bytes of their label file."""
    content = draw(good_files())
    files = {
        image["file_name"]: draw(photographs(image["height"], image["width"]))
        for image in content["images"]
    }
    return files, draw(mutated(content))


NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def labeler():
    return tiny_labeler(grid=3)


@functools.cache
def settings_of_the_detector():
    """A cascade so small that a step takes hundredths of a second; photographs are not resized."""
    options = {
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.NORM": "FrozenBN",
        "MODEL.FPN.NORM": "",
        "MODEL.FPN.OUT_CHANNELS": 8,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
        "INPUT.MIN_SIZE_TRAIN": (0,),
        "INPUT.RANDOM_FLIP": "none",
        "INPUT.FORMAT": "RGB",
    }
    pairs = [item for key, value in options.items() for item in (key, str(value))]
    return read_config(str(ROOT / "configs" / "promerge_cascade.yaml"), pairs)


@functools.cache
def detector():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(settings_of_the_detector()).train()


@settings(TRIED, max_examples=ASKED or 100)
@given(data_set=data_sets())
def test_right_answers_or_errors_that_name_the_culprit(tmp_path, labeler, data_set):
    files, labels = data_set
    folder = tmp_path / str(next(NUMBERS))
    for name, (content, _) in files.items():
        (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "in" / name).write_bytes(content)
    (folder / "labels.json").write_bytes(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of what is damaged
        seen = {name: check_image(folder / "in" / name, files[name][1]) for name in files}
        check_labelling(folder, labeler, seen)
        check_validation(folder, seen)
        check_training(folder, labels, seen)
    check_every_tool(folder / "labels.json", labels)


def check_image(path, known):
    """The pixels that every tool has to show, None of a file that cannot be read."""
    pixels, refused = attempt(lambda: load_image(path), path)
    if refused:
        assert known is None, refused
        return None
    assert image_size(path) == pixels.shape[1::-1]
    if known is not None:
        shape, wanted = known
        assert pixels.shape == shape
        assert wanted is None or np.array_equal(pixels, wanted)
    return pixels


def check_labelling(folder, labeler, seen):
    """Photographs that can be read have their size and masks of that size, the others a reason."""
    output = folder / "out.json"
    summary = label_images(list_images(folder / "in"), output, labeler, "release")
    sizes = {name: pixels.shape[:2] for name, pixels in seen.items() if pixels is not None}
    errors = {failure["file_name"]: failure["error"] for failure in summary.failures}
    assert errors.keys() == seen.keys() - sizes.keys()
    assert all(str(folder / "in" / name) in error for name, error in errors.items())
    content = json.loads(output.read_bytes())
    images, objects = plain.read(output.read_bytes(), need_name=True)
    names = {image["id"]: image["file_name"] for image in content["images"]}
    assert {names[key]: size for key, size in images.items()} == sizes
    assert all(item["mask"].any() and item["box"] == plain.tight(item["mask"]) for item in objects)
    report = validate_labels(output, functools.partial(find_size, folder / "in"))
    assert (report.problems, report.masks) == ({}, len(objects))
    if images:
        truth = read_ground_truth(output)
        predictions = align_predictions(read_predictions(output), truth, "file_name")
        figures = evaluate_class_agnostic(truth, predictions)["segm"]
        assert figures["AR100"] == (100 if objects else -1)


def check_validation(folder, seen):
    """Sizes and files are compared with the photographs."""
    path = folder / "labels.json"
    size_of = functools.partial(find_size, folder / "in")
    found, _ = attempt(lambda: validate_labels(path, size_of), path)
    try:
        images = plain_images(path)
    except plain.Refused:
        return
    wanted = dict.fromkeys(["files missing", "sizes that disagree with the photograph"], 0)
    for name, size in images:
        if name not in seen:
            wanted["files missing"] += 1
        elif seen[name] is not None:
            wanted["sizes that disagree with the photograph"] += seen[name].shape[:2] != size
    for problem, count in wanted.items():
        if all(name in seen or "\\" not in name for name, _ in images):
            assert found.problems.get(problem, 0) >= count


def plain_images(path):
    """Name and size (height, width) of every image of a file that is right."""
    plain.read(path.read_bytes(), need_name=True)
    content = json.loads(path.read_bytes().decode("utf-8-sig"))
    return [
        (image.get("file_name") or "", (int(float(image["height"])), int(float(image["width"]))))
        for image in content["images"]
    ]


def check_training(folder, labels, seen):
    """An example has the pixels of its file and the masks of its objects; its losses are finite."""
    try:
        images, objects = plain.read(labels, need_name=True)
    except plain.Refused:
        return  # refused before a step, see check_every_tool
    cfg = settings_of_the_detector()
    mapper, examples = LabelMapper(cfg, True), []
    useful = plain.useful(objects)
    for item in LazyCoco(folder / "labels.json", folder / "in"):
        file = item["file_name"]
        pixels = next((seen[n] for n in seen if Path(file) == folder / "in" / n), None)
        example, refused = attempt(lambda item=item: mapper(dict(item)), Path(file).name)
        if refused:
            assert pixels is None or pixels.shape[:2] != images[item["image_id"]]
            continue
        assert np.array_equal(example["image"].permute(1, 2, 0).numpy(), pixels)
        things = [o for o in useful if o["image"] == item["image_id"] and not o["crowd"]]
        instances = example["instances"]
        if all(thing["mask"] is not None for thing in things):
            found = [] if not things else instances.gt_masks.tensor.numpy()
            assert [mask.tolist() for mask in found] == [o["mask"].tolist() for o in things]
            examples.append(example)
    if examples:
        check_step(examples)


def check_step(examples):
    """One step's losses, and their gradients."""
    model = detector()
    with torch.random.fork_rng(), EventStorage():
        torch.manual_seed(0)
        losses = model(copy.deepcopy(examples))
    total = sum(losses.values())
    total.backward()
    assert math.isfinite(total)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.zero_grad()
