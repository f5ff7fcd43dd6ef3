"""The training benchmark: a real, tiny run has figures that fit together; no time is asserted."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.speed import training
from benchmarks.speed.training import TrainingPlan, run_training, training_markdown
from promerge_d2.utils.errors import UserError
from tests.helpers import run_tool

RECIPE = Path(__file__).parents[3] / "configs/promerge_cascade.yaml"
TINY = (
    "INPUT.MIN_SIZE_TRAIN (64,) INPUT.MAX_SIZE_TRAIN 96 MODEL.RPN.POST_NMS_TOPK_TRAIN 20 "
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 8 DATALOADER.NUM_WORKERS 0"
)


@pytest.fixture
def data(tmp_path):
    """Two pictures with a square each."""
    from PIL import Image
    from pycocotools import mask as mask_api

    images, annotations = [], []
    for number in (1, 2):
        pixels = np.random.default_rng(number).integers(0, 255, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 96, "width": 96})
        mask = np.zeros((96, 96), np.uint8, order="F")
        mask[20:70, 30:80] = 1
        rle = mask_api.encode(mask)
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "area": 2500}
            | {"bbox": [30, 20, 50, 50], "segmentation": {**rle, "counts": rle["counts"].decode()}}
        )
    labels = tmp_path / "labels.json"
    whole = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "o"}]}
    labels.write_text(json.dumps(whole))
    return tmp_path, labels


def test_a_tiny_run(monkeypatch, data):
    monkeypatch.setattr(training, "WARM_UP", 3)  # detectron2 gives no times before
    plan = TrainingPlan(RECIPE, *data, iterations=3, opts=tuple(TINY.split()))
    figures = run_training(plan)
    assert (figures["training.iterations"], figures["training.batch"]) == (3, 2)
    assert figures["training.iteration_s"] > 0 <= figures["training.iteration_s.iqr"]
    assert 0 <= figures["training.loader_percent"] <= 100
    assert figures["training.process_mb"] > 100
    assert "training.gpu_mb" not in figures
    text = training_markdown(figures, plan)
    assert "3 iterations of 2 images after 3" in text
    assert "| Images/s |" in text
    assert "MIN_SIZE_TRAIN (64,)" in text


def test_the_tool_measures_what_it_is_given(monkeypatch, tmp_path, data, capsys):
    # under test is the tool, not minutes of a ResNet
    seen = []
    figures = {"training.iteration_s": 2.0, "training.batch": 2.0, "training.iterations": 20.0}
    figures["training.workers"] = 4.0
    monkeypatch.setattr(training, "run_training", lambda plan: seen.append(plan) or figures)
    images, labels = data
    more = ("--images", images, "--labels", labels, "--json", tmp_path / "figures")
    assert run_tool(monkeypatch, "benchmark.py", "--training", *more) == 0
    assert (seen[0].images, seen[0].labels, seen[0].iterations) == (images, labels, 20)
    assert json.loads((tmp_path / "figures").read_text()) == figures
    assert "Seconds an iteration" in capsys.readouterr().out


def test_images_go_with_labels(monkeypatch, tmp_path, capsys):
    assert run_tool(monkeypatch, "benchmark.py", "--training", "--images", tmp_path) == 3
    assert "--images and --labels together" in capsys.readouterr().err


def test_no_gpu(monkeypatch, data):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA GPU"):
        run_training(TrainingPlan(RECIPE, *data, device="cuda"))


def test_labels_are_of_training(monkeypatch, tmp_path, capsys):
    assert run_tool(monkeypatch, "benchmark.py", "--labels", tmp_path / "labels.json") == 3
    assert "--labels is for --training" in capsys.readouterr().err
