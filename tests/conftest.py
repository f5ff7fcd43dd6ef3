"""What all tests share: ``--runslow``, the real data beside the repository, COCO files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Small networks gain nothing from threads, and threads that wait for a core cost minutes."""
    torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--runslow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--runslow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --runslow")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder ``shared`` (with ``data`` and ``golden``); tests that use it skip without it."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("PROMERGE_SHARED", beside))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set PROMERGE_SHARED to its folder")
    return folder


@pytest.fixture
def coco():
    """``coco([(image_id, x, y, w, h, extra), ...])``: a COCO file of rectangular objects."""

    def make(objects, images=(1,), size=(200, 100), masks=True, names=None):
        width, height = size
        names = names or [f"{image_id:04d}.jpg" for image_id in images]
        annotations = []
        for number, (image_id, x, y, w, h, *extra) in enumerate(objects, start=1):
            record = {
                "id": number,
                "image_id": image_id,
                "category_id": 1 + number % 3,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
            }
            if masks:
                record["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            record.update(*extra)
            annotations.append(record)
        return {
            "images": [
                {"id": image_id, "file_name": name, "width": width, "height": height}
                for image_id, name in zip(images, names, strict=True)
            ],
            "annotations": annotations,
            "categories": [{"id": n, "name": str(n)} for n in (1, 2, 3)],
        }

    return make


@pytest.fixture
def save(tmp_path):
    """``save(name, content)``: write JSON into the test's folder, return the path."""

    def write(name, content):
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return path

    return write
