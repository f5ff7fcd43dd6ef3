"""The command-line tool: exit codes, the table, the JSON file, messages."""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from promerge_d2.cli.parser import run_tool

TOOL = Path(__file__).resolve().parents[2] / "tools" / "evaluate_labels.py"
HIT, MISS = (1, 20, 0, 40, 40), (1, 150, 60, 40, 30)


@pytest.fixture
def run(monkeypatch, capsys, caplog):
    """``run(*arguments)``: the tool in this process, as loading it anew takes seconds."""
    spec = importlib.util.spec_from_file_location("evaluate_labels", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
        caplog.clear()
        with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as exit_:
            run_tool(tool.main)
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=exit_.value.code, stdout=out, stderr=err + caplog.text)

    return call


@pytest.fixture
def files(coco, save):
    truth = save("truth.json", coco([HIT, (2, *HIT[1:])], images=(1, 2, 3)))
    labels = save("labels.json", coco([HIT, MISS], images=(1, 9)))
    return "--predictions", labels, "--ground-truth", truth


def test_table_and_json(run, files, tmp_path):
    done = run(*files, "--json", tmp_path / "new" / "scores.json")
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "new" / "scores.json").read_text())
    # one of two objects found first, then a miss: precision 1 up to recall 1/2
    assert scores["segm.AP"] == scores["bbox.AP"] == pytest.approx(100 * 51 / 101)
    assert scores["segm.AR100"] == scores["bbox.AR1"] == 50
    assert scores["segm.APs"] == -1
    counts = {key: scores[key] for key in ("images", "ground_truth_objects", "predictions")}
    assert counts == {"images": 3, "ground_truth_objects": 2, "predictions": 2}
    assert len(scores) == 26 + 4
    assert scores["segm.P5"] == 50
    assert "max detections 100" in scores["protocol"]
    assert "| box  |  50.50 |" in done.stdout
    assert "| mask |  50.50 |" in done.stdout
    assert scores["protocol"] in done.stdout
    assert "3 images, 2 objects, 2 predictions." in done.stdout
    assert "list 1 of the 3 ground-truth images" in done.stderr
    assert "1 predicted images are not in the ground truth" in done.stderr


def test_own_process_gives_the_same_bytes(run, files, tmp_path):
    assert run(*files, "--json", tmp_path / "a").returncode == 0
    command = [sys.executable, TOOL, *files, "--json", tmp_path / "b"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "matched by file_name" in done.stderr
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_only_listed_and_iou_types(run, files, tmp_path):
    done = run(*files, "--only-listed", "--iou-types", "bbox", "--json", tmp_path / "s.json")
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["bbox.AR100"] == 100
    assert (scores["images"], scores["ground_truth_objects"]) == (1, 1)
    assert "only images that the predictions list" in scores["protocol"]
    assert not any(key.startswith("segm") for key in scores)
    assert "| mask" not in done.stdout


def test_result_list_by_id(run, coco, save, tmp_path):
    truth = save("truth.json", coco([HIT], masks=False))
    labels = save("list.json", [{"image_id": 1.0, "category_id": 1.0, "bbox": list(HIT[1:])}])
    done = run("--predictions", labels, "--ground-truth", truth, "--json", tmp_path / "s.json")
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["bbox.AP"] == pytest.approx(100)
    assert "segm.AP" not in scores


def test_match_by_id_overrides(run, files):
    done = run(*files, "--match", "id")
    assert done.returncode == 0
    assert "matched by id" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--predictions", "none.json"), "none.json"),
        (("--match", "name"), "'name'"),
        (("--json", "."), "write .:"),
    ],
)
def test_refused_with_one_message(run, files, arguments, message):
    done = run(*files, *arguments)
    assert done.returncode == 3
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_unwritable_output_is_refused_before_the_files_are_read(run, tmp_path):
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "s.json"
    done = run("--predictions", "none", "--ground-truth", "none", "--json", output)
    assert done.returncode == 3
    assert str(tmp_path / "file") in done.stderr


def test_broken_record_is_named_and_nothing_is_written(run, coco, save, files, tmp_path):
    labels = save("bad.json", coco([HIT, (*HIT, {"score": float("nan")})]))
    done = run(*files, "--predictions", labels, "--json", tmp_path / "s.json")
    assert done.returncode == 3
    assert f"error: {labels}: annotations[1] (id 2, image_id 1): score" in done.stderr
    assert not (tmp_path / "s.json").exists()


def test_real_ground_truth_scored_as_predictions(run, shared_data, tmp_path):
    annotations = shared_data / "data" / "coco" / "annotations"
    truth = annotations / "instances_val2017.json"
    done = run("--predictions", truth, "--ground-truth", truth, "--json", tmp_path / "s.json")
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "s.json").read_text())
    content = json.loads(truth.read_text())
    counts = dict.fromkeys((image["id"] for image in content["images"]), 0)
    for annotation in content["annotations"]:
        counts[annotation["image_id"]] += not annotation["iscrowd"]
    total = sum(counts.values())
    for kind in ("bbox", "segm"):
        for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "ARs", "ARm", "ARl"):
            assert scores[f"{kind}.{name}"] == pytest.approx(100), (kind, name)
        for k in (1, 10):
            closed_form = 100 * sum(min(k, n) for n in counts.values()) / total
            assert scores[f"{kind}.AR{k}"] == pytest.approx(closed_form)


def test_lvis_prefix_on_real_files(run, shared_data, tmp_path):
    annotations = shared_data / "data" / "coco" / "annotations"
    done = run(
        *("--predictions", annotations / "instances_val2017.json"),
        *("--ground-truth", annotations / "lvis_v0.5_val.json", "--only-listed"),
    )
    assert done.returncode == 0, done.stderr
    assert "list 2 of the 11 ground-truth images" in done.stderr
