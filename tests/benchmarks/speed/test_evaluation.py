"""Evaluation beside plain pycocotools: the same figures, ratios that fit; no time is asserted."""

import json

import pytest

from benchmarks.speed import evaluation
from benchmarks.speed.evaluation import PLAIN, STAGES, measure_evaluation, write_synthetic
from tests.helpers import run_tool


@pytest.fixture(scope="module")
def results():
    return measure_evaluation((12, 40), (20, 10), fresh=False)


def test_ours_are_plain_pycocotools_figures(results):
    figures = results.figures
    for kind in ("bbox", "segm"):
        assert figures[f"{kind}.pycocotools.largest_difference"] == 0
        stages = [figures[f"{kind}.{PLAIN}.{stage}_s"] for stage in STAGES]
        assert figures[f"{kind}.{PLAIN}.total_s"] == sum(stages) > 0
        ratio = figures[f"{kind}.{PLAIN}.total_s"] / figures[f"{kind}.pycocotools.total_s"]
        assert figures[f"{kind}.pycocotools.total.ratio"] == ratio
    assert (figures["images"], figures["detections"]) == (12, 480)
    assert (figures["many.images"], figures["many.detections"]) == (20, 200)
    assert any(name.startswith("many.") and name.endswith(".mb") for name in figures)


def test_synthetic_files_are_the_same_and_make_sense(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_synthetic(tmp_path / folder, 3, 30, masks=True)
    for name in ("truth.json", "guesses.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    truth = json.loads((tmp_path / "a" / "truth.json").read_text())
    guesses = json.loads((tmp_path / "a" / "guesses.json").read_text())
    assert [record["id"] for record in truth["annotations"]] == list(range(1, 25))
    assert [guess["image_id"] for guess in guesses] == [1] * 30 + [2] * 30 + [3] * 30
    assert len({guess["score"] for guess in guesses}) < len(guesses)  # ties
    height, width = evaluation.SIZE
    for x, y, w, h in (record["bbox"] for record in truth["annotations"]):
        assert 0 <= x < x + w <= width
        assert 0 <= y < y + h <= height


def test_the_tool_writes_what_it_prints(monkeypatch, tmp_path, capsys, results):
    # under test is the tool, not the half hour of the real thing
    monkeypatch.setattr(evaluation, "measure", lambda args: results)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- benchmark: begin -->\n<!-- benchmark: end -->\nafter\n")
    code = run_tool(
        monkeypatch, "benchmark.py", "--evaluation", "--markdown", page, "--json", tmp_path / "f"
    )
    assert code == 0
    assert json.loads((tmp_path / "f").read_text()) == results.figures
    text = page.read_text()
    assert results.markdown() in text
    assert text.startswith("before\n")
    assert "12 images, 480 detections" in capsys.readouterr().out
    assert "| ours, `pycocotools` |" in text
