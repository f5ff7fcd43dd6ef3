"""The training benchmark: a real, tiny run has figures that fit together; no time is asserted."""

import json

import pytest

from benchmarks.speed import training
from benchmarks.speed.training import TrainingPlan, measure_training, train
from promerge_d2.utils.errors import UserError
from tests.helpers import ROOT, coco_json, photo, run_tool, save_image, square

RECIPE = ROOT / "configs/promerge_cascade.yaml"
TINY = (
    "INPUT.MIN_SIZE_TRAIN (64,) INPUT.MAX_SIZE_TRAIN 96 MODEL.RPN.POST_NMS_TOPK_TRAIN 20 "
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 8 DATALOADER.NUM_WORKERS 0"
)


@pytest.fixture
def data(tmp_path):
    """Two pictures with a square each."""
    listed = []
    for number in range(2):
        save_image(tmp_path / f"{number}.png", photo(96, 96, (20, 30, 70, 80), number))
        listed.append((f"{number}.png", 96, 96, [square(96, 96, 20, 30, 70, 80)]))
    return tmp_path, coco_json(tmp_path / "labels.json", listed)


def test_a_tiny_run(monkeypatch, data):
    monkeypatch.setattr(training, "WARM_UP", 3)  # detectron2 gives no times before
    plan = TrainingPlan(RECIPE, *data, iterations=3, opts=tuple(TINY.split()))
    results = measure_training(plan)
    figures = results.figures
    assert (figures["training.iterations"], figures["training.batch"]) == (3, 2)
    assert figures["training.iteration_s"] > 0
    assert figures["training.iteration_s.iqr"] >= 0
    images_s = 2 / figures["training.iteration_s"]  # by the mean of three, not by their median
    assert images_s / 3 < figures["training.images_s"] < 3 * images_s
    assert 0 <= figures["training.loader_percent"] <= 100
    assert figures["training.process_mb"] > 100
    assert "training.gpu_mb" not in figures
    text = results.markdown()
    assert "3 iterations of 2 images after 3" in text
    assert "| Images/s |" in text
    assert "MIN_SIZE_TRAIN (64,)" in text


def test_the_tool_measures_what_it_is_given(monkeypatch, tmp_path, data, capsys):
    # under test is the tool, not minutes of a ResNet
    seen = []
    figures = {"training.iteration_s": 2.0, "training.batch": 2.0, "training.iterations": 20.0}
    figures["training.workers"] = 4.0
    monkeypatch.setattr(training, "train", lambda plan: seen.append(plan) or figures)
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
        train(TrainingPlan(RECIPE, *data, device="cuda"))


def test_labels_are_of_training(monkeypatch, tmp_path, capsys):
    assert run_tool(monkeypatch, "benchmark.py", "--labels", tmp_path / "labels.json") == 3
    assert "--labels is for --training" in capsys.readouterr().err
