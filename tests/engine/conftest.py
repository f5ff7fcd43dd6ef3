from __future__ import annotations

import argparse
import json
import random

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger

from promerge_d2.engine import ProMergeTrainer, setup
from tests.helpers import (
    ROOT,
    coco_json,
    loggers_restored,
    photo,
    run_tool,
    save_image,
    square,
    use_tiny,
)

BOXES = [(84, 16, 120, 48), (12, 40, 48, 80), (24, 8, 72, 40), (96, 56, 132, 88)]


@pytest.fixture(autouse=True)
def left_as_found():
    """detectron2's setup changes logging, the catalogs and all states of chance."""
    before = set(DatasetCatalog.list())
    chance = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(), loggers_restored("detectron2", "fvcore", "promerge_d2"):
        yield
    random.setstate(chance[0])
    np.random.set_state(chance[1])
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    setup_logger.cache_clear()


@pytest.fixture
def photos(tmp_path):
    """Four photos with one bright object each, and ``labels.json``."""
    images = []
    for number, box in enumerate(BOXES):
        save_image(tmp_path / "photos" / f"{number}.png", photo(box=box, seed=number))
        images.append((f"{number}.png", 96, 144, [square(96, 144, *box)]))
    coco_json(tmp_path / "labels.json", images)
    return tmp_path / "photos"


@pytest.fixture
def config(tmp_path, monkeypatch, photos):
    """A YAML file for a detector that trains in seconds; ``config(KEY=...)`` changes it."""

    def write(**changes):
        tiny = {
            "_BASE_": str(ROOT / "configs" / "Base-Frozen-ViT.yaml"),
            "MODEL": {
                "DEVICE": "cpu",
                "FROZEN_VIT": {
                    "BACKBONE": "tiny",
                    "WEIGHTS": str(use_tiny(monkeypatch, tmp_path)),
                    "SCALE_FACTORS": [2.0, 1.0, 0.5],
                },
                "FPN": {"OUT_CHANNELS": 64},
                "ANCHOR_GENERATOR": {"SIZES": [[16], [32], [64]]},
                "RPN": {
                    "IN_FEATURES": ["p3", "p4", "p5"],
                    "BATCH_SIZE_PER_IMAGE": 64,
                    "PRE_NMS_TOPK_TRAIN": 100,
                    "POST_NMS_TOPK_TRAIN": 50,
                    "PRE_NMS_TOPK_TEST": 50,
                    "POST_NMS_TOPK_TEST": 20,
                },
                "ROI_HEADS": {"IN_FEATURES": ["p3", "p4"], "BATCH_SIZE_PER_IMAGE": 32},
                "ROI_BOX_HEAD": {"FC_DIM": 64},
                "ROI_MASK_HEAD": {"NUM_CONV": 1, "CONV_DIM": 32},
            },
            "INPUT": {
                "MIN_SIZE_TRAIN": [96],
                "MAX_SIZE_TRAIN": 144,
                "MIN_SIZE_TEST": 96,
                "MAX_SIZE_TEST": 144,
                "RANDOM_FLIP": "none",
            },
            "DATASETS": {
                "PROMERGE": [["tiny_photos", str(tmp_path / "labels.json"), str(photos)]],
                "TRAIN": ["tiny_photos"],
                "TEST": ["tiny_photos"],
            },
            "SOLVER": {
                "IMS_PER_BATCH": 2,
                "MAX_ITER": 3,
                "STEPS": [],
                "WARMUP_ITERS": 0,
                "BASE_LR": 0.001,
            },
            "DATALOADER": {"NUM_WORKERS": 0},
            "SEED": 1,
            "OUTPUT_DIR": str(tmp_path / "output"),
        }
        for key, value in changes.items():
            node = tiny
            *parents, leaf = key.split(".")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value
        file = tmp_path / "tiny.yaml"
        file.write_text(yaml.safe_dump(tiny))
        return file

    return write


@pytest.fixture
def configured(config):
    """``configured(KEY=...)``: the tiny configuration, checked and frozen."""

    def make(**changes):
        file = str(config(**changes))
        return setup(argparse.Namespace(config_file=file, opts=[], eval_only=False, resume=False))

    return make


@pytest.fixture
def train_net(monkeypatch, capsys):
    """``train_net(...)``: exit code, standard output, standard error of tools/train_net.py."""

    def run(*arguments):
        capsys.readouterr()
        code = run_tool(monkeypatch, "train_net.py", *arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def evaluations(monkeypatch):
    """Every result of ``ProMergeTrainer.test``, as it comes."""
    results = []
    real = ProMergeTrainer.test.__func__

    def test(cls, cfg, model, evaluators=None):
        results.append(real(cls, cfg, model, evaluators))
        return results[-1]

    monkeypatch.setattr(ProMergeTrainer, "test", classmethod(test))
    return results


@pytest.fixture
def logged(tmp_path):
    """``logged()``: the lines of metrics.json."""

    def read():
        return [json.loads(s) for s in (tmp_path / "output" / "metrics.json").open()]

    return read
