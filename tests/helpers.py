"""What several rooms' tests share: tiny networks, made images, tools run in this process."""

from __future__ import annotations

import json
import logging
import runpy
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from promerge_d2.coco.ground_truth import read_ground_truth
from promerge_d2.coco.predictions import read_predictions
from promerge_d2.coco.read import CocoSource
from promerge_d2.coco.records import mask_record
from promerge_d2.features import BACKBONES, Backbone
from promerge_d2.features.extractor import build_vit

ROOT = Path(__file__).resolve().parents[1]

# Random weights; on a bright object before a dark scene its centred keys tell one from the other.
TINY = Backbone(
    name="tiny",
    architecture="test_vit",
    patch=16,
    width=64,
    center=True,
    training="random weights, for tests",
    licence="none",
    commercial_use=True,
)


def use_tiny(monkeypatch, folder, seed=0):
    """Register the tiny ViT for a test; returns its weights file."""
    monkeypatch.setitem(BACKBONES, TINY.name, TINY)
    return save_random_vit(TINY, Path(folder) / "tiny.pth", seed)


def save_random_vit(backbone, file, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.save(build_vit(backbone).state_dict(), file)
    return file


def run_tool(monkeypatch, script, *arguments):
    """Run ``tools/SCRIPT`` here, as from the command line; returns its exit code."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / "tools" / script), *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "tools" / script), run_name="__main__")
    return caught.value.code


def photo(height=96, width=144, box=(84, 16, 120, 48), seed=0):
    """A dark noisy scene with a bright object in ``box`` (x0, y0, x1, y1): (h, w, 3) uint8.

    On a 12x12 grid a patch is 8x12 pixels, so the object is whole patches.
    """
    pixels = np.random.default_rng(seed).integers(20, 40, (height, width, 3)).astype(np.uint8)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] = (250, 230, 200)
    return pixels


def save_image(path, pixels, **options):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def square(height, width, x0, y0, x1, y1):
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def coco_json(path, images, categories=({"id": 1, "name": "object"},)):
    """Write a COCO file; ``images``: (file name, height, width, [mask or annotation dict, ...])."""
    content = {"images": [], "annotations": [], "categories": list(categories)}
    for image_id, (name, height, width, objects) in enumerate(images, start=1):
        content["images"].append(
            {"id": image_id, "file_name": name, "height": height, "width": width}
        )
        for thing in objects:
            extra = thing if isinstance(thing, dict) else {"mask": thing}
            record = {
                "id": len(content["annotations"]) + 1,
                "image_id": image_id,
                "category_id": categories[0]["id"],
                "iscrowd": 0,
                **mask_record(extra["mask"]),
            }
            record |= {key: value for key, value in extra.items() if key != "mask"}
            content["annotations"].append(record)
    Path(path).write_text(json.dumps(content))
    return Path(path)


@contextmanager
def loggers_restored(*names):
    """Undo what detectron2's ``setup_logger`` does, which would blind ``caplog`` afterwards."""
    loggers = [logging.getLogger(name) for name in names]
    before = [(item.level, item.propagate, list(item.handlers)) for item in loggers]
    try:
        yield
    finally:
        for item, (level, propagate, handlers) in zip(loggers, before, strict=True):
            item.setLevel(level)
            item.propagate = propagate
            item.handlers[:] = handlers


def exif_of(orientation):
    """EXIF with an orientation, for Pillow's ``save``."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def stored_pixels(upright, orientation):
    """The pixels (H, W, C) to store so that a reader of an EXIF orientation shows ``upright``."""
    transposed = upright.transpose(1, 0, 2)
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: transposed,
        6: np.rot90(upright, 1),
        7: transposed[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]


def parse_ground_truth(content, name):
    """Parsed JSON as a ground truth."""
    return read_ground_truth(CocoSource.of(content, name))


def parse_predictions(content, name):
    """Parsed JSON as predictions."""
    return read_predictions(CocoSource.of(content, name))
