"""Self-training from a folder of images to the figures of every round, stopped at any moment."""

import json
import os
import random
import signal
import time

import pytest
import torch
import yaml

from promerge_d2.engine import self_training
from promerge_d2.engine.trainer import ProMergeTrainer
from promerge_d2.pseudo_labels.store import Writer
from tests.engine.conftest import config, left_as_found, photos  # noqa: F401 - fixtures
from tests.helpers import run_tool
from tests.pseudo_labels.helpers import in_a_fork

SCORES = ("--min-score", "0.1")  # a detector of a few steps is sure of nothing
FILES = ("labels.json", "predictions.json", "results.json", "config.yaml", "settings.json")


@pytest.fixture
def self_train(monkeypatch, capsys, photos, config, tmp_path):  # noqa: F811
    """``self_train(output, ...)``: exit code and all that was said."""
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
    """All that has to be the same after any stop; weights by their bytes."""
    found = {}
    for number in (0, 1):
        for name in FILES:
            if (number, name) != (0, "predictions.json"):
                text = (folder / f"round-{number}" / name).read_text()
                found[number, name] = text.replace(str(folder), "OUT")
        weights = torch.load(folder / f"round-{number}" / "model_final.pth")["model"]
        found |= {(number, name): tensor.numpy().tobytes() for name, tensor in weights.items()}
    found["rounds"] = read(folder / "rounds.json")
    return found


def test_two_rounds_and_everything_that_they_leave(self_train, photos, tmp_path):  # noqa: F811
    code, said = self_train(tmp_path / "run")
    assert code == 0, said
    first, second = (tmp_path / "run" / f"round-{n}" for n in (0, 1))
    assert (first / "labels.json").read_bytes() == (tmp_path / "labels.json").read_bytes()
    for folder in (first, second):
        for name in ("config.yaml", "model_final.pth", "metrics.json", "log.txt", "results.json"):
            assert (folder / name).is_file(), name
    asked, later = (yaml.safe_load((f / "config.yaml").read_text()) for f in (first, second))
    assert asked["DATASETS"]["TRAIN"] == [str(first)]
    assert [str(second), str(second / "labels.json"), str(photos)] in later["DATASETS"]["PROMERGE"]
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

    figures = read(tmp_path / "run" / "rounds.json")["rounds"]
    assert [f["labels"]["masks"] for f in figures] == [4, len(labels["annotations"])]
    assert [f["labels"]["new"] for f in figures] == [4, len(new)]
    assert [f["min_score"] for f in figures] == [None, 0.1]
    for figure in figures:
        assert {"bbox", "segm"} == set(figure["results"]["tiny_photos"])
    table = (tmp_path / "run" / "rounds.md").read_text()
    assert table.strip() in said
    assert table.splitlines()[3].startswith(f"| 1 | 4 | 4 | {len(labels['annotations'])} | ")
    logs = [(f / "log.txt").read_text() for f in (first, second)]
    assert "round-1" not in logs[0]  # each of its own round

    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("round-*/*")}
    assert self_train(tmp_path / "run")[0] == 0  # nothing is left to do
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("round-*/*")} == before


def test_it_labels_first_and_reads_labels_of_several_rounds(self_train, tmp_path):
    labeler = ("--backbone", "tiny", "--weights", tmp_path / "tiny.pth", "--grid", "12")
    labeler += ("--refine", "none", "--set", "stride=2")
    run = tmp_path / "run"
    code, said = self_train(run, *labeler, "--rounds", "1", "--test", labels=None)
    assert code == 0, said
    labels = read(run / "round-0" / "labels.json")
    assert labels["info"]["labeler"] == "promerge"
    assert len(labels["annotations"]) == 4
    assert read(run / "round-0" / "results.json") == {}
    assert not (run / "round-0" / "inference").exists()
    code, said = self_train(run, *labeler, "--preset", "paper", "--rounds", "1", labels=None)
    assert code == 3
    assert "labels.preset was release, is now paper" in said


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


def test_stopped_at_every_stage_it_ends_the_same(
    self_train,
    photos,  # noqa: F811
    tmp_path,
    monkeypatch,
    caplog,
):
    (photos / "4.png").write_text("not an image")  # training never meets it: it has no masks
    assert self_train(tmp_path / "whole")[0] == 2
    assert "failed: 4.png: cannot read the image" in caplog.text
    expected = made(tmp_path / "whole")
    assert [figure["failed"] for figure in expected["rounds"]["rounds"]] == [0, 1]
    for owner, name, call in STOPS.values():
        with monkeypatch.context() as patched:
            patched.setattr(*stop_at(owner, name, call))
            with pytest.raises(Stop):
                self_train(tmp_path / "stopped")
    assert self_train(tmp_path / "stopped")[0] == 2
    assert made(tmp_path / "stopped") == expected


def kill_at_random_moments(self_train, tmp_path, kills, seed):
    """Kill a run that many times, each after a random part of the time of a whole one."""
    chance = random.Random(seed)
    started = time.monotonic()
    assert self_train(tmp_path / "whole")[0] == 0
    seconds = time.monotonic() - started
    killed = 0
    for _ in range(kills):
        process = in_a_fork(lambda: self_train(tmp_path / "killed"))
        time.sleep(chance.uniform(0, seconds))
        os.kill(process, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(process, 0)[1])
    assert self_train(tmp_path / "killed")[0] == 0
    assert made(tmp_path / "killed") == made(tmp_path / "whole")
    return killed


def test_killed_it_ends_the_same(self_train, tmp_path):
    assert kill_at_random_moments(self_train, tmp_path, kills=2, seed=1) > 0


@pytest.mark.slow
def test_killed_many_times_it_ends_the_same(self_train, tmp_path):
    assert kill_at_random_moments(self_train, tmp_path, kills=15, seed=2) > 5
