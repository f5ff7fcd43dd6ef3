import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import promerge_d2
from promerge_d2.features.registry import get_backbone
from promerge_d2.features.weights import cached_path

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "collect_env.py"
WITHOUT_DETECTRON2 = f"""
import runpy, sys
sys.modules.pop("detectron2", None)
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "detectron2":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
sys.argv = ["collect_env.py"]
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


def collect(*command, cache):
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PROMERGE_D2_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(
        line.strip().split(": ", 1) for line in done.stdout.splitlines() if line.startswith("  ")
    ), done.stdout


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMERGE_D2_CACHE", str(tmp_path))
    return tmp_path


def test_names_versions_devices_and_weights(cache):
    weights = cached_path(get_backbone("dino_vits16").url)
    weights.write_bytes(b"")
    facts, text = collect(str(SCRIPT), cache=cache)
    assert text.startswith(f"promerge_d2 {promerge_d2.__version__}\n")
    assert facts["torch"] == f"{version('torch')} (torch)"
    assert facts["python"].endswith(f"({sys.executable})")
    assert "cpu" in facts
    assert facts["dino_vits16"] == str(weights)
    assert facts["dino_vitb8"] == "not cached, fetched on first use"
    assert "pydensecrf" in facts
    assert sorted(cache.iterdir()) == [weights]


def test_works_without_detectron2(cache):
    facts, _ = collect("-c", WITHOUT_DETECTRON2, cache=cache)
    assert facts["detectron2"] == "not installed (promerge env --install-detectron2)"
    assert facts["torch"] == f"{version('torch')} (torch)"
