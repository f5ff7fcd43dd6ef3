"""Shards from the command line, and their merge."""

import re

import pytest

from tests.helpers import run_tool, use_tiny
from tests.pseudo_labels.helpers import save_photos


@pytest.fixture
def label(tmp_path, monkeypatch, capsys):
    """``label(output, ...)`` and ``merge(output)``: exit code, standard output, standard error."""
    photos = save_photos(tmp_path / "photos", 7)
    (photos / "0003.png").write_text("no image")
    fast = ["--input", photos, "--backbone", "tiny", "--weights", use_tiny(monkeypatch, tmp_path)]
    fast += ["--grid", "12", "--set", "stride=2", "--refine", "none"]

    def run(tool, *arguments):
        capsys.readouterr()
        code = run_tool(monkeypatch, tool, *arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    def work(output, *more):
        return run("label_images.py", "--output", output, *fast, *more)

    work.merge = lambda output: run("merge_labels.py", output)
    return work


def test_shards_are_merged_to_the_bytes_of_one_run(label, tmp_path, monkeypatch):
    output = tmp_path / "shards.json"
    assert label(tmp_path / "whole.json")[0] == 2
    code, out, _ = label(output, "--num-shards", "2", "--shard-id", "1")
    assert code == 2
    assert out.splitlines()[0] == f"2 masks on 2 images: shard 1 of 2 of {output}"
    assert out.splitlines()[-1] == (f"when all shards are done: promerge merge {output}")
    code, out, err = label.merge(output)
    assert (code, out) == (1, "")
    assert "0000.png, 0002.png, 0004.png, 0006.png" in err
    for name, value in {"ID": "0", "MIN": "0", "COUNT": "2"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert label(output)[0] == 0
    code, out, _ = label.merge(output)
    assert code == 2
    assert out.startswith(f"5 masks on 6 images: {output}\n  1 images without a mask: ")
    assert "    0003.png: " in out
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_retry_failed(label, tmp_path):
    output = tmp_path / "l.json"
    assert label(output)[0] == 2
    save_photos(tmp_path / "photos", 7)
    assert label(output)[0] == 2
    code, out, _ = label(output, "--retry-failed")
    assert (code, out.splitlines()[0]) == (0, f"6 masks on 7 images: {output}")
    assert label.merge(output)[0] == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num-shards", "2"], r"--num-shards.*--shard-id"),
        (["--num-shards", "2", "--shard-id", "2"], r"--shard-id.* 2\b.*0 to 1"),
        (["--set", "tau_b=0.3"], r"settings\.tau_b .*0\.2.*0\.3"),
        (["--preset", "paper"], r"preset .*release.*paper"),
        (["--image-root", "x"], r"image root.*\.txt"),
    ],
)
def test_refused(label, tmp_path, more, message):
    label(tmp_path / "l.json")
    before = (tmp_path / "l.json").read_bytes()
    code, out, err = label(tmp_path / "l.json", *more)
    assert (code, out) == (3, "")
    assert re.search(message, err)
    assert (tmp_path / "l.json").read_bytes() == before


def test_nothing_to_merge(label, tmp_path):
    code, _, err = label.merge(tmp_path / "l.json")
    assert code == 3
    assert f"{tmp_path}/l.json.parts" in err
