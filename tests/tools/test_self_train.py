"""Self-training from a folder of images to the figures of every round, stopped at any moment."""

import json
import os
import random
import re
import shutil
import signal
import time
from functools import partial

import pytest
import torch
import yaml

from promerge_d2.cli import self_train as cli
from promerge_d2.engine import self_training
from promerge_d2.engine.trainer import ProMergeTrainer
from promerge_d2.pseudo_labels.store import Writer
from tests.engine.conftest import config, left_as_found, photos  # noqa: F401 - fixtures
from tests.helpers import ROOT, run_tool
from tests.pseudo_labels.helpers import in_a_fork

SCORES = ("--min-score", "0.1")  # a detector of a few steps is sure of nothing
FILES = ("labels.json", "predictions.json", "results.json", "config.yaml", "settings.json")


@pytest.fixture
def self_train(monkeypatch, capsys, photos, config, tmp_path):  # noqa: F811
    """``self_train(output, ...)``: exit code and all that was said; one image is broken."""
    (photos / "4.png").write_text("not an image")  # training never meets it: it has no masks
    changes = {"SOLVER.CHECKPOINT_PERIOD": 1, "SOLVER.MAX_ITER": 2}

    def run(output, *arguments, labels=tmp_path / "labels.json", **more):
        given = () if labels is None else ("--labels", labels)
        file = config(**{**changes, **more})
        capsys.readouterr()
        code = run_tool(
            monkeypatch,
            "self_train.py",
            *("--images", photos, "--config", file, "--output", output, "--rounds", "2"),
            *("--workers", "0", *given, *SCORES, *arguments),
        )
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def read(path):
    return json.loads(path.read_text())


def made(folder):
    """All that has to be the same after any stop, wherever; weights by their bytes."""
    found = {}
    for number in (0, 1):
        for name in FILES:
            if (number, name) != (0, "predictions.json"):
                text = (folder / f"round-{number}" / name).read_text()
                text = text.replace(str(folder), "OUT").replace(str(folder.parent), "HERE")
                found[number, name] = text
        weights = torch.load(folder / f"round-{number}" / "model_final.pth")["model"]
        found |= {(number, name): tensor.numpy().tobytes() for name, tensor in weights.items()}
    found["rounds"] = read(folder / "rounds.json")
    return found


@pytest.fixture(scope="module")
def memory():
    """What tests of this module tell the next ones."""
    return {}


@pytest.fixture
def whole(memory, self_train, tmp_path):
    """A run without a stop, made once: its folder and what is in it, the processor's seconds."""
    if not memory:
        started = time.process_time()
        code, said = self_train(tmp_path / "whole")
        assert code == 2, said
        memory["seconds"] = time.process_time() - started
        memory |= {"said": said, "folder": tmp_path / "whole"}
        memory["made"] = made(tmp_path / "whole")
    return memory


def test_two_rounds_and_everything_that_they_leave(whole):
    run = whole["folder"]
    assert "4.png: " in whole["said"]
    first, second = run / "round-0", run / "round-1"
    assert (first / "labels.json").read_bytes() == (run.parent / "labels.json").read_bytes()
    for folder in (first, second):
        for name in ("config.yaml", "model_final.pth", "metrics.json", "log.txt", "results.json"):
            assert (folder / name).is_file(), name
    asked, later = (yaml.safe_load((f / "config.yaml").read_text()) for f in (first, second))
    assert asked["DATASETS"]["TRAIN"] == [str(first)]
    entry = [str(second), str(second / "labels.json"), str(run.parent / "photos")]
    assert entry in later["DATASETS"]["PROMERGE"]
    assert later["MODEL"]["WEIGHTS"] == str(first / "model_final.pth")
    assert later["MODEL"]["ROI_HEADS"]["DROPLOSS_IOU_THRESH"] == -1
    assert (asked["SOLVER"]["MAX_ITER"], later["SOLVER"]["MAX_ITER"]) == (2, 1)
    assert (asked["SOLVER"]["BASE_LR"], later["SOLVER"]["BASE_LR"]) == (0.001, 0.0005)

    predictions, labels = read(second / "predictions.json"), read(second / "labels.json")
    assert predictions["info"]["detections_per_image"] == 30
    assert predictions["info"]["min_score"] == 0.1
    assert predictions["info"]["config"] == "tiny.yaml"
    assert labels["info"]["detector"] == predictions["info"]
    assert len(labels["images"]) == 4
    new = [a for a in labels["annotations"] if a["round"] == 1]
    assert len(new) == len(predictions["annotations"]) > 0
    assert min(a["score"] for a in new) >= 0.1

    figures = read(run / "rounds.json")["rounds"]
    assert [f["labels"]["masks"] for f in figures] == [4, len(labels["annotations"])]
    assert [f["labels"]["new"] for f in figures] == [4, len(new)]
    assert [f["min_score"] for f in figures] == [None, 0.1]
    assert [f["failed"] for f in figures] == [0, 1]
    for figure in figures:
        assert {"bbox", "segm"} == set(figure["results"]["tiny_photos"])
    table = (run / "rounds.md").read_text()
    assert table.strip() in whole["said"]
    assert table.splitlines()[3].startswith(f"| 1 | 4 | 4 | {len(labels['annotations'])} | ")
    logs = [(f / "log.txt").read_text() for f in (first, second)]
    assert "round-1" not in logs[0]  # each of its own round


def test_it_labels_first_and_refuses_another_labeler(self_train, photos, tmp_path):  # noqa: F811
    (photos / "4.png").unlink()
    labeler = ("--backbone", "tiny", "--weights", tmp_path / "tiny.pth", "--grid", "12")
    labeler += ("--refine", "none", "--set", "stride=2")
    run = tmp_path / "run"
    code, said = self_train(run, *labeler, "--rounds", "1", "--test", labels=None)
    assert code == 0, said
    assert "4 masks on 4 images: " in said
    labels = read(run / "round-0" / "labels.json")
    assert labels["info"]["labeler"] == "promerge"
    assert len(labels["annotations"]) == 4
    assert read(run / "round-0" / "results.json") == {}
    assert not (run / "round-0" / "inference").exists()
    code, said = self_train(run, *labeler, "--preset", "paper", "--rounds", "1", labels=None)
    assert code == 3
    assert re.search(r"labels\.preset .*release.*paper", said)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], r"--rounds.* 0\b"),
        (["--num-gpus", "0"], r"--num-gpus.* 0\b"),
        (["--images", "gone"], r"--images gone"),
        (["--labels", "gone.json"], r"--labels gone\.json"),
        (["--round-set", "SOLVER.MAX_ITER"], r"--round-set.*'SOLVER\.MAX_ITER'"),
        (["--min-score", "70"], r"min.score.* 70"),
        (["--keep-share", "0"], r"share.* 0\b"),
        (["--test", "tiny_foto"], r"'tiny_foto'"),
        (["--workers", "-1"], r"--workers.* -1\b"),
        (["--num-shards", "2", "--shard-id", "0"], r"--labels"),
    ],
)
def test_bad_input(self_train, tmp_path, arguments, message):
    code, said = self_train(tmp_path / "run", *arguments)
    assert code == 3
    assert re.search(message, said)
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "round-0" / "labels.json").exists()


def test_labels_that_cannot_be_are_refused_before_training(self_train, tmp_path):
    labels = read(tmp_path / "labels.json")
    labels["images"][1] |= {"width": 96, "height": 144}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    code, said = self_train(tmp_path / "run")
    assert code == 3
    assert re.search(r"labels\.json: annotations\[1\] .*144.*swapped", said)


def test_scores_by_default(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "plan_rounds", lambda *a: seen.append(a[2]) or 1 / 0)

    def scores(*arguments):
        command = ("--images", str(ROOT), "--config", "c", "--output", "o", "--rounds", "4")
        with pytest.raises(ZeroDivisionError):
            cli.main([*command, *arguments])
        return [(rules.min_score, rules.share, rules.per_image) for rules in seen[-1]]

    assert scores() == [(0.7, None, None), (0.65, None, None), (0.65, None, None)]
    assert scores("--min-score", "0.4") == [(0.4, None, None)] * 3
    assert scores("--keep-share", "0.2") == [(0.0, 0.2, None)] * 3
    assert scores("--keep-per-image", "2", "--min-score", "0.4", "0.3", "0.2") == [
        *((0.4, None, 2), (0.3, None, 2), (0.2, None, 2))
    ]


# Stops


class Stop(Exception):
    """A stop that no code expects."""


def stop_at(owner, name, call):
    """Patch ``owner.name`` to stop before its ``call``-th call."""
    real, calls = getattr(owner, name), []

    def stopping(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            raise Stop(f"{name}, call {call}")
        return real(*arguments, **options)

    return owner, name, stopping


STOPS = {  # each run comes to the next one
    "before the first labels": (self_training, "write_json", 2),
    "in training, round 0": (ProMergeTrainer, "run_step", 2),
    "before the evaluation of round 0": (ProMergeTrainer, "test", 1),
    "while predicting": (Writer, "append", 4),
    "before merging": (self_training, "combine_labels", 1),
    "before training, round 1": (self_training, "train", 1),
    "before the evaluation of round 1": (ProMergeTrainer, "test", 1),
    "before the figures are written": (self_training, "format_rounds", 3),
}


def test_stopped_at_every_stage_it_ends_the_same(whole, self_train, tmp_path, monkeypatch):
    for owner, name, call in STOPS.values():
        with monkeypatch.context() as patched:
            patched.setattr(*stop_at(owner, name, call))
            with pytest.raises(Stop):
                self_train(tmp_path / "stopped")
    assert self_train(tmp_path / "stopped")[0] == 2
    assert made(tmp_path / "stopped") == whole["made"]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "stopped").glob("round-*/*")}
    assert self_train(tmp_path / "stopped")[0] == 2  # nothing is left to do
    assert {p: p.stat().st_mtime_ns for p in before} == before


def killed_at_random_moments(self_train, folder, whole, kills, seed):
    """Run and be killed, each time after up to a third of a whole run's work; how often.

    The whole run was the first in its process, and took longer than the same work does again.
    """
    chance = random.Random(seed)

    def work(moment):
        # seconds of the processor, not of the clock: others may keep it busy
        signal.setitimer(signal.ITIMER_PROF, moment)
        self_train(folder)

    killed = 0
    for _ in range(kills):
        process = in_a_fork(partial(work, chance.uniform(0, whole["seconds"] / 3)))
        status = os.waitpid(process, 0)[1]
        killed += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF
    assert self_train(folder)[0] == 2
    return killed


def test_killed_it_ends_the_same(whole, self_train, tmp_path):
    assert killed_at_random_moments(self_train, tmp_path / "run", whole, kills=2, seed=1)
    assert made(tmp_path / "run") == whole["made"]


@pytest.mark.slow
def test_killed_many_times_it_ends_the_same(whole, self_train, tmp_path):
    for seed in range(5):
        folder = tmp_path / str(seed)
        assert killed_at_random_moments(self_train, folder, whole, kills=4, seed=seed) > 0
        assert made(folder) == whole["made"]


@pytest.mark.slow
def test_two_processes_share_prediction_and_training(monkeypatch, capsys, photos, tmp_path):  # noqa: F811
    """As two GPUs would, on a CPU; the prediction's bytes are those of one process."""
    small = {
        "_BASE_": str(ROOT / "configs" / "promerge_cascade.yaml"),
        "MODEL": {
            "DEVICE": "cpu",
            "WEIGHTS": "",
            "RESNETS": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64, "NORM": "BN"},
            "FPN": {"OUT_CHANNELS": 32, "NORM": "GN"},
            "ROI_BOX_HEAD": {"FC_DIM": 32},
            "ROI_MASK_HEAD": {"NUM_CONV": 1, "CONV_DIM": 32},
        },
        "INPUT": {"MIN_SIZE_TRAIN": [96], "MIN_SIZE_TEST": 96},
        "SOLVER": {"AMP": {"ENABLED": False}, "IMS_PER_BATCH": 2, "MAX_ITER": 2},
        "DATALOADER": {"NUM_WORKERS": 0},
        "TEST": {"PRECISE_BN": {"ENABLED": False}},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))

    def run(name, *arguments):
        arguments = ("--output", tmp_path / name, "--labels", tmp_path / "labels.json", *arguments)
        arguments = (*arguments, "--images", photos, "--config", tmp_path / "small.yaml")
        code = run_tool(monkeypatch, "self_train.py", *arguments, *SCORES, "--test")
        assert code == 0, capsys.readouterr()

    run("one", "--rounds", "1")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    run("one", "--rounds", "2")
    run("two", "--rounds", "2", "--num-gpus", "2")
    folders = [tmp_path / name / "round-1" for name in ("one", "two")]
    assert len(list(folders[1].glob("predictions.json.parts/shard-*-of-2/*.records"))) == 2
    for name in ("predictions.json", "labels.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    assert read(folders[1] / "predictions.json")["annotations"]
    assert (folders[1] / "model_final.pth").is_file()
