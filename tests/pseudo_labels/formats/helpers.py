"""Random masks, label files of them, and masks read back."""

import json

import cv2
import numpy as np
from hypothesis import strategies as st
from pycocotools import mask as mask_api

from promerge_d2.coco.records import mask_record
from tests.helpers import coco_json, save_image

NAMES = "a.jpg", "b/a.jpg", "b/c d.é.jpg", "c/images/ß, 漢.png"
SCORES = 0.25, 0.5, 1.0


@st.composite
def masks(draw, low=1, high=12):
    """A mask of noise, or of blobs with holes, parts and thin places; never empty."""
    height, width = draw(st.integers(low, high)), draw(st.integers(low, high))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = random.random((height, width)) < draw(st.sampled_from((0.1, 0.4, 0.6, 0.95)))
    if draw(st.booleans()):
        noise = random.random((height, width)).astype(np.float32)
        mask = cv2.GaussianBlur(noise, (0, 0), 1.5) > 0.5
    mask[random.integers(height), random.integers(width)] = True
    return mask


@st.composite
def images(draw):
    """Up to four images with up to three masks, which may overlap, as ``label_file`` takes them."""
    found = []
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1)):
        first = draw(masks())
        more = [np.roll(first, shift, axis=1) ^ (shift == 5) for shift in (1, 5)]
        drawn = [mask for mask in (first, *more) if mask.any()][: draw(st.integers(0, 3))]
        found.append((name, drawn))
    return found


def label_file(folder, images, photographs=True):
    """Write a label file and its photographs; the n-th mask of an image has the n-th of SCORES."""
    entries = []
    for name, drawn in images:
        size = drawn[0].shape if drawn else (9, 11)
        objects = [{"mask": m, "score": s} for m, s in zip(drawn, SCORES, strict=False)]
        entries.append((name, *size, objects))
        if photographs:
            save_image(folder / "photos" / name, np.zeros((*size, 3), np.uint8))
    folder.mkdir(exist_ok=True)
    return coco_json(folder / "labels.json", entries)


def content_of(path):
    """Return a label file as {name: [(mask, score), ...]}."""
    content = json.loads(path.read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    found = {name: [] for name in names.values()}
    for item in content["annotations"]:
        mask = item["segmentation"]
        assert item["bbox"] == mask_record(mask_api.decode(mask))["bbox"]
        found[names[item["image_id"]]].append((mask_api.decode(mask).astype(bool), item["score"]))
    return found
