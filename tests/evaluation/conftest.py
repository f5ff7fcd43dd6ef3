from __future__ import annotations

import json

import pytest

from promerge_d2.evaluation import (
    align_predictions,
    evaluate_class_agnostic,
    parse_ground_truth,
    parse_predictions,
)


def rectangle(x, y, w, h):
    """The polygon whose mask is exactly the pixels [x, x+w) x [y, y+h)."""
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


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
                record["segmentation"] = rectangle(x, y, w, h)
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
def score():
    """``score(ground_truth, predictions)``: the results of two parsed JSON contents."""

    def run(truth, predictions, match="auto", iou_types=None):
        ground_truth = parse_ground_truth(truth, "truth.json")
        file = parse_predictions(predictions, "labels.json")
        placed = align_predictions(file, ground_truth, match)
        return evaluate_class_agnostic(ground_truth, placed, iou_types)

    return run


@pytest.fixture
def save(tmp_path):
    """``save(name, content)``: write JSON into the test's folder, return the path."""

    def write(name, content):
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return path

    return write
