"""Configurations of the rounds, what is refused, shares of the work."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from torch.multiprocessing import ProcessExitedException

from promerge_d2.engine import self_training
from promerge_d2.engine.self_training import (
    Share,
    check_same,
    format_rounds,
    next_round,
    plan_rounds,
    self_train,
)
from promerge_d2.engine.setup import read_config
from promerge_d2.pseudo_labels import LocalEngine, list_images
from promerge_d2.pseudo_labels.combine import Rules
from promerge_d2.pseudo_labels.inputs import ImageFile, ImageList
from promerge_d2.pseudo_labels.store import NotFinished, locked
from promerge_d2.utils.differences import differences
from promerge_d2.utils.errors import UserError
from tests.helpers import ROOT, photo, save_image
from tests.pseudo_labels.helpers import in_a_fork

RULES = [Rules(0.7), Rules(0.65), Rules(0.65)]


# Configurations


def test_later_rounds_by_default(config):
    file = str(config(**{"SOLVER.MAX_ITER": 5, "SOLVER.STEPS": [3], "SEED": -1}))
    rounds = plan_rounds(file, ["SOLVER.BASE_LR", "0.04"], RULES[:2])
    assert [r.rules for r in rounds] == [None, RULES[0], RULES[1]]
    first, *later = (r.cfg for r in rounds)
    assert (first.SOLVER.BASE_LR, first.SOLVER.MAX_ITER, first.SOLVER.STEPS) == (0.04, 5, (3,))
    assert first.MODEL.ROI_HEADS.DROPLOSS_IOU_THRESH == 0.01
    assert first.SEED == 0  # one that is drawn would be another after a stop
    for cfg in later:  # each from round 0's, not from the one before
        solver = cfg.SOLVER
        assert (solver.BASE_LR, solver.MAX_ITER, solver.STEPS) == (0.02, 3, ())
        assert solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR"
        assert cfg.MODEL.ROI_HEADS.DROPLOSS_IOU_THRESH == -1
        assert cfg.is_frozen()


def test_later_rounds_follow_the_recipe():
    cfg = read_config(str(ROOT / "configs" / "promerge_cascade.yaml"), [])
    recipe = read_config(str(ROOT / "configs" / "promerge_cascade_r1.yaml"), [])
    next_round(cfg)
    left = {name for name, _, _ in differences(cfg, recipe)}
    assert left == {
        *("DATASETS.TRAIN", "MODEL.WEIGHTS", "OUTPUT_DIR"),  # the loop's
        *("SOLVER.STEPS", "SOLVER.GAMMA"),  # both are constant
    }
    assert (cfg.SOLVER.STEPS, recipe.SOLVER.GAMMA) == ((), 1.0)


def test_values_of_ones_own_stay_in_later_rounds():
    opts = ["MODEL.RPN.NMS_THRESH", "0.6", "SOLVER.WEIGHT_DECAY", "0.05"]
    cfg = read_config(str(ROOT / "configs" / "promerge_cascade.yaml"), opts)
    next_round(cfg)
    assert (cfg.MODEL.RPN.NMS_THRESH, cfg.SOLVER.WEIGHT_DECAY) == (0.6, 0.05)
    assert cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN == 1000


def test_options_for_later_rounds_go_last(config):
    more = ["SOLVER.BASE_LR", "0.5", "MODEL.ROI_HEADS.DROPLOSS_IOU_THRESH", "0.02"]
    first, later = plan_rounds(str(config()), [], RULES[:1], round_opts=more)
    assert first.cfg.SOLVER.BASE_LR == 0.001
    assert later.cfg.SOLVER.BASE_LR == 0.5
    assert later.cfg.MODEL.ROI_HEADS.DROPLOSS_IOU_THRESH == 0.02


def test_configs_named_after_rounds_are_taken(config, tmp_path):
    file = config()
    content = yaml.safe_load(file.read_text())
    for number in (1, 2):
        content["SOLVER"]["MAX_ITER"] = 10 * number
        (tmp_path / f"tiny_r{number}.yaml").write_text(yaml.safe_dump(content))
    rounds = plan_rounds(str(file), ["SOLVER.IMS_PER_BATCH", "1"], RULES)
    assert [r.config for r in rounds] == ["tiny.yaml", "tiny_r1.yaml", *["tiny_r2.yaml"] * 2]
    assert [r.cfg.SOLVER.MAX_ITER for r in rounds] == [3, 10, 20, 20]
    assert {r.cfg.SOLVER.IMS_PER_BATCH for r in rounds} == {1}
    rounds = plan_rounds(str(file), [], RULES, [str(tmp_path / "tiny_r2.yaml"), str(file)])
    assert [r.config for r in rounds] == ["tiny.yaml", "tiny_r2.yaml", *["tiny.yaml"] * 2]


@pytest.mark.parametrize(
    ("opts", "options", "message"),
    [
        (["SOLVER.MAX_ITR", "1"], {}, r"SOLVER\.MAX_ITR"),
        ([], {"round_opts": ["SOLVER.MAX_ITR", "1"]}, r"SOLVER\.MAX_ITR"),
        ([], {"round_opts": ["SOLVER.MAX_ITER", "soon"]}, r"SOLVER\.MAX_ITER"),
        ([], {"round_configs": ["gone.yaml"]}, r"gone\.yaml"),
        ([], {"test": ["gone"]}, "'gone'"),
        (["MODEL.WEIGHTS", "gone.pth"], {}, r"MODEL\.WEIGHTS gone\.pth"),
        (["MODEL.MASK_ON", "False"], {}, r"INPUT\.COPY_PASTE\.ENABLED False"),
        (
            ["MODEL.MASK_ON", "False", "INPUT.COPY_PASTE.ENABLED", "False"],
            {},
            r"MODEL\.MASK_ON True",
        ),
        (["INPUT.MASK_FORMAT", "polygon"], {}, "pseudo-labels are RLE masks"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(config, opts, options, message):
    with pytest.raises(UserError, match=message):
        plan_rounds(str(config()), opts, RULES[:1], **options)


def test_nothing_to_evaluate_on(config):
    rounds = plan_rounds(str(config()), [], RULES[:1], test=[])
    assert [r.cfg.DATASETS.TEST for r in rounds] == [(), ()]


# What a folder was begun with


def test_differences_are_named(tmp_path):
    file = tmp_path / "settings.json"
    check_same(file, {"a": 1}, "settings")  # nothing is recorded
    file.write_text(json.dumps({"a": {"b": 1, "c": [1, 2]}, "d": 2}))
    check_same(file, {"a": {"b": 1, "c": [1, 2]}, "d": 2}, "settings")
    with pytest.raises(UserError, match=r"a\.b was 1, is now 3; d was"):
        check_same(file, {"a": {"b": 3, "c": [1, 2]}}, "settings")
    file.write_text(json.dumps({f"{n}.png": n for n in range(9)}))
    with pytest.raises(UserError, match=r"0\.png .* 4 more"):
        check_same(file, {}, "images")


# Shares of the work


@pytest.fixture
def begun(config, photos, tmp_path, monkeypatch):
    """``begun(OUT, shard, shards)``: go on where only round 0 is trained; training is left out."""
    rounds = plan_rounds(str(config()), [], [Rules(0.1)], test=[])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(rounds[0].cfg)

    def train(file):
        (Path(file).parent / "results.json").write_text("{}")
        losses = json.dumps({"iteration": 0, "total_loss": 1.0})
        (Path(file).parent / "metrics.json").write_text(losses + "\n")

    def first_labels(target, share):
        assert share.shards == 1
        shutil.copy(tmp_path / "labels.json", target)
        DetectionCheckpointer(model, str(target.parent)).save("model_final")

    monkeypatch.setattr(self_training, "train", train)

    def run(name, shard=0, shards=1, images=None, settings=None, number=2):
        share = Share(lambda *_: LocalEngine(), shard, shards)
        images = images or list_images(photos)
        settings = settings or {"made": "by hand"}
        return self_train(images, tmp_path / name, rounds[:number], first_labels, settings, share)

    return run


def test_prediction_is_shared_out_training_is_not(begun, tmp_path, capsys):
    whole = begun("whole")
    assert [figure["round"] for figure in whole] == [0, 1]
    assert len(begun("shared", number=1)) == 1
    (tmp_path / "shared" / "round-0" / "results.json").unlink()
    with pytest.raises(UserError, match=r"round 0 .*shards"):
        begun("shared", 0, 2)
    begun("shared", number=1)
    for shard in (1, 0):
        assert begun("shared", shard, 2) == []
        assert f"shard {shard} of 2 of round 1 is done" in capsys.readouterr().out
    parts = tmp_path / "shared" / "round-1" / "predictions.json.parts"
    assert len(list(parts.glob("shard-*-of-2/*.records"))) == 2
    assert not (tmp_path / "shared" / "round-1" / "labels.json").exists()
    assert begun("shared") == whole
    for name in ("predictions.json", "labels.json"):
        texts = [(tmp_path / run / "round-1" / name).read_bytes() for run in ("whole", "shared")]
        assert texts[0] == texts[1]


def test_rounds_can_be_added_images_and_settings_cannot_change(begun, photos, tmp_path):
    assert len(begun("run", number=1)) == 1
    with pytest.raises(UserError, match=r"labels\.made was by hand"):
        begun("run", settings={"sha256": "5"})
    save_image(photos / "new.png", photo())
    with pytest.raises(UserError, match=r"new\.png was None"):
        begun("run")
    (photos / "new.png").unlink()
    assert len(begun("run", number=2)) == 2


def test_two_processes_at_once_are_refused(begun, tmp_path):
    process = in_a_fork(lambda: hold(tmp_path / "run" / "lock", tmp_path / "held"))
    try:
        while not (tmp_path / "held").exists():
            time.sleep(0.01)
        with pytest.raises(UserError, match=rf"process {process} .*run"):
            begun("run")
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def hold(lock, told):
    with locked(lock, "a test"):
        told.touch()
        time.sleep(60)


def test_a_process_that_dies_is_told(monkeypatch):
    def launch(*_, **__):
        raise ProcessExitedException("process 1 terminated with signal SIGKILL", 1, 7, -9)

    monkeypatch.setattr("promerge_d2.engine.launch.launch", launch)
    with pytest.raises(NotFinished, match=r"round 1 .*process 1"):
        self_training._launch(print, 2, "cpu", (), "training of round 1")


def test_images_in_tars_are_refused(begun, tmp_path):
    images = ImageList(tmp_path, (ImageFile(1, "a.tar/1.png", 9, "a.tar", 512),))
    with pytest.raises(UserError, match=r"\btars?\b"):
        begun("run", images=images)
    assert not (tmp_path / "run").exists()


# Figures


def test_the_table_has_a_row_a_data_set():
    labels = {"images": 4, "with_masks": 3, "masks": 5, "new": 2}
    results = {"one": {"segm": {"AP": 1.234}, "bbox": {"AR100": 5.0}}, "two": {}}
    table = format_rounds(
        [{"round": n, "labels": labels, "results": r} for n, r in enumerate((results, {}))]
    )
    assert table.splitlines()[2:] == [
        "| 0 | 4 | 3 | 5 | 2 | one | 1.23 |  |  |  | 5.00 |",
        "| 0 | 4 | 3 | 5 | 2 | two |  |  |  |  |  |",
        "| 1 | 4 | 3 | 5 | 2 |  |  |  |  |  |  |",
    ]
