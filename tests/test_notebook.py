"""The notebook runs from its first cell to its last."""

import json
import subprocess
import sys

import pytest

from tests.helpers import ROOT

NOTEBOOK = ROOT / "notebooks" / "first_steps.ipynb"


def test_no_outputs_are_committed():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 8
    assert [cell["outputs"] for cell in code] == [[]] * len(code)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")  # as in a clone; it writes beside itself
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / NOTEBOOK.name).write_bytes(NOTEBOOK.read_bytes())
    options = ["-p", "no:cacheprovider", "--nbmake", "--nbmake-timeout=900", "--overwrite"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options, NOTEBOOK.name],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    scores = json.loads((folder / "labels_scores.json").read_text())
    assert scores["segm.AR100"] > 40
    assert (folder / "detector" / "model_final.pth").is_file()
    assert "segm.AP" in json.loads((folder / "detector_scores.json").read_text())
