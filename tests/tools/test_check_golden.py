import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.labeler.reference import Settings, promerge_grid

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "check_golden.py"


def check(folder):
    """As a process of its own: how users run it, but slow to start."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def check_here(monkeypatch, capsys):
    """The same inside this process."""

    def run(folder):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(folder)])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return run


def golden(seed, height=16, width=16, objects=3):
    """What a golden file holds, made by the slow reference; float16 features as in the files."""
    rng = np.random.default_rng(seed)
    features = np.zeros((6, height, width))
    features[0] = 1
    for channel in range(1, 1 + objects):
        r, c = rng.integers(1, height - 5), rng.integers(1, width - 5)
        features[:, r : r + 4, c : c + 4] = np.eye(6)[channel][:, None, None]
    features = (features + rng.normal(size=features.shape) * 0.15).astype(np.float16)
    settings = Settings(stride=2, tau_b=0.4, filter_feature=0.25)
    result = promerge_grid(features.astype(np.float64), settings)
    assert min(result.margins) > 1e-6
    content = {
        "features": features,
        "stride": settings.stride,
        "bipartition_tau": settings.tau_b,
        "foreground_include_tau": settings.filter_feature,
        "n_fg": len(result.foreground),
        "n_bg": len(result.candidates),
        "foreground": np.array(result.foreground).reshape(-1, height, width).astype(bool),
    }
    if result.pruned is not None:
        content["background"] = result.background
        content["pruned"] = np.array(result.pruned).reshape(-1, height, width).astype(bool)
        content["merged"] = np.array(result.merged).reshape(-1, height, width).astype(bool)
    return content


def golden_without_background(seed=0):
    """Noise alone: no prompt's mask is large enough for a candidate."""
    features = np.random.default_rng(seed).normal(size=(24, 12, 12)).astype(np.float16)
    settings = Settings(stride=2, tau_b=0.4, filter_feature=0.25)
    result = promerge_grid(features.astype(np.float64), settings)
    assert min(result.margins) > 1e-6
    assert result.stopped == "no_background"
    return {
        "features": features,
        "stride": 2,
        "bipartition_tau": 0.4,
        "foreground_include_tau": 0.25,
        "n_fg": len(result.foreground),
        "n_bg": 0,
        "foreground": np.array(result.foreground),
    }


@pytest.fixture
def folder(tmp_path):
    np.savez(tmp_path / "a_masks.npz", **golden(0))
    np.savez(tmp_path / "b_not_square.npz", **golden(1, 11, 18))
    np.savez(tmp_path / "c_stops.npz", **golden_without_background())
    return tmp_path


def test_equal(check_here, folder):
    code, out, error = check_here(folder)
    assert code == 0, error
    lines = out.splitlines()
    assert len(lines) == 4
    merged = len(np.load(folder / "a_masks.npz")["merged"])
    assert merged >= 2
    assert lines[0].startswith("a_masks.npz: equal (foreground ")
    assert lines[0].endswith(f"merged {merged})")
    assert lines[1].startswith("b_not_square.npz: equal (")
    assert lines[2].startswith("c_stops.npz: equal (foreground ")
    assert "merged" not in lines[2]
    assert lines[3] == "3 files equal"


@pytest.mark.parametrize("stage", ["foreground", "background", "pruned", "merged"])
def test_a_changed_patch_is_found(check_here, folder, stage):
    content = dict(np.load(folder / "a_masks.npz"))
    flat = content[stage].reshape(-1, *content[stage].shape[-2:])
    flat[0, -1, -1] ^= True
    np.savez(folder / "a_masks.npz", **content)
    code, out, _ = check_here(folder)
    assert code == 1
    assert out.startswith(f"a_masks.npz: DIFFERS: {stage}: ")
    assert "b_not_square" not in out


def test_a_count_that_differs(check_here, folder):
    content = dict(np.load(folder / "a_masks.npz"))
    content["n_bg"] += 1
    np.savez(folder / "a_masks.npz", **content)
    code, out, _ = check_here(folder)
    assert code == 1
    assert out.startswith("a_masks.npz: DIFFERS: n_bg: ")


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("a_masks", {"merged", "pruned", "background"}, "the stored run stops before background"),
        ("c_stops", None, "ours (no_background) stops before background"),
    ],
)
def test_one_of_the_two_stops_early(check_here, folder, file, change, said):
    content = dict(np.load(folder / f"{file}.npz"))
    if change:
        content = {key: value for key, value in content.items() if key not in change}
    else:
        content["background"] = np.ones((12, 12), bool)  # ours has none
    np.savez(folder / f"{file}.npz", **content)
    code, out, _ = check_here(folder)
    assert code == 1
    assert out.splitlines()[-1] == f"{file}.npz: DIFFERS: {said}"


def write_text(path):
    path.write_text("no archive")


def write_cut(path):
    np.savez(path, features=np.zeros((2, 3, 3)))
    path.write_bytes(path.read_bytes()[:100])


def write_without_stride(path):
    np.savez(path, features=np.zeros((2, 3, 3), np.float32))


@pytest.mark.parametrize("write", [write_text, write_cut, write_without_stride])
def test_a_file_of_another_kind(check_here, tmp_path, write):
    write(tmp_path / "x.npz")
    code, _, error = check_here(tmp_path)
    assert code == 3
    assert "x.npz" in error
    assert "Traceback" not in error


def test_a_changed_patch_as_a_process(folder):
    content = dict(np.load(folder / "b_not_square.npz"))
    content["merged"][0, 0, 0] ^= True
    np.savez(folder / "b_not_square.npz", **content)
    code, out, error = check(folder)
    assert code == 1, error
    assert out.splitlines()[0].startswith("a_masks.npz: equal (")
    assert out.splitlines()[1].startswith("b_not_square.npz: DIFFERS: merged: 1 masks of ours are")
    assert len(out.splitlines()) == 2


def test_empty_folder(check_here, tmp_path):
    code, out, error = check_here(tmp_path)
    assert code == 3
    assert str(tmp_path) in error
    assert out == ""


def test_real_golden_files(check_here, shared_data):
    """Outputs of the released code on real photographs."""
    files = sorted((shared_data / "golden").glob("*.npz"))
    if not files:
        pytest.skip(f"no golden files in {shared_data / 'golden'}")
    code, out, error = check_here(shared_data / "golden")
    assert code == 0, out + error
    assert out.splitlines()[-1] == f"{len(files)} files equal"
