import dataclasses
import importlib.abc
import json
import os
import subprocess
import sys

import pytest

from benchmarks.speed import harness, labelers
from tests.benchmarks.speed.helpers import shorten_sweeps
from tests.helpers import ROOT, TINY, photo, run_tool, save_image, use_tiny


@pytest.fixture
def photos(tmp_path):
    for seed in range(2):
        save_image(tmp_path / "photos" / f"{seed}.png", photo(seed=seed))
    return tmp_path / "photos"


def test_writes_figures_tables_and_picture(monkeypatch, tmp_path, photos, capsys):
    def quick(args):
        return dataclasses.replace(harness.plan_from(args), fresh=False, seconds=0.01, stream=4)

    shorten_sweeps(monkeypatch)
    use_tiny(monkeypatch, tmp_path)
    monkeypatch.setattr(labelers, "plan_from", quick)
    code = run_tool(
        monkeypatch,
        "benchmark.py",
        *("--backbone", TINY.name, "--random-weights", "--images", photos),
        *("--set", "grid=12", "--set", "stride=2"),
        *("--json", tmp_path / "figures.json", "--markdown", tmp_path / "page.md"),
        *("--plot", tmp_path / "plot.svg"),
    )
    assert code == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures) == sorted(figures)
    assert figures["images"] == 2
    assert figures["grid"] == 12
    assert figures["device.release.images_per_s"] > 0
    assert "12x12 patches, 2 images" in (tmp_path / "page.md").read_text()
    assert (tmp_path / "plot.svg").stat().st_size > 0
    assert "three discs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "nowhere"], "nowhere"),
        (["--backbone", "dino"], "'dino'"),
        (["--set", "grid"], "NAME=VALUE"),
        (["--set", "grid=8", "--set", "grid=9"], "each name once"),
        (["--set", "tau=high"], "tau: 'high'"),
        (["--set", "taub=0.3"], "taub"),
        (["--count", "1"], "1 images, of which"),
        (["--json", "."], "write .:"),
        (["--store", "--plot", "p.png"], "--plot"),
        (["--store", "--training"], "not allowed with argument --store"),
    ],
)
def test_refuses(monkeypatch, photos, capsys, arguments, message):
    images = [] if "--images" in arguments else ["--images", photos]
    assert run_tool(monkeypatch, "benchmark.py", *images, *arguments) == 3
    assert message in capsys.readouterr().err


def test_runs_from_another_folder(tmp_path):
    command = [sys.executable, str(ROOT / "tools/benchmark.py"), "--help"]
    there = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=there, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--markdown" in done.stdout


class WithoutBenchmarks(importlib.abc.MetaPathFinder):
    """An installation from the wheel, which leaves the folder out."""

    def find_spec(self, name, path=None, target=None):
        if name == "benchmarks":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize("tool", ["benchmark.py", "ablate.py"])
def test_says_what_to_do_where_benchmarks_is_not_there(monkeypatch, capsys, tool):
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [WithoutBenchmarks(), *sys.meta_path])
    assert run_tool(monkeypatch, tool, "--help") == 3
    assert "pip install -e ." in capsys.readouterr().err
