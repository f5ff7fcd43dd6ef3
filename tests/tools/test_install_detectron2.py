import base64
import csv
import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "install_detectron2.py"
MODULE = ROOT / "promerge_d2" / "cli" / "install_detectron2.py"
INFO = "sal_detectron2-0.7.2.dist-info"
ABSENT = {"missing": "detectron2", "error": "ModuleNotFoundError: No module named 'detectron2'"}
THERE = {"version": "0.7.2", "path": "site-packages/detectron2"}

WHEEL_FILES = {
    "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "machine code",
    "detectron2/__init__.py": '__version__ = "0.7.2"\n',
    "detectron2/_Config.txt": "begins like _C, but is no library\n",
    "detectron2/model_zoo/__init__.py": "",
    "detectron2/tools/__init__.py": "a folder of this name further in stays\n",
    "tools/__init__.py": "",
    "tools/train_net.py": "",
    f"{INFO}/METADATA": (
        "Metadata-Version: 2.1\nName: sal-detectron2\nVersion: 0.7.2\n"
        "Requires-Dist: yacs>=0.1.8\nRequires-Dist: numpy<2\nRequires-Dist: black\n"
        'Requires-Dist: black==23.3.0; extra == "dev"\n'
    ),
    f"{INFO}/WHEEL": (
        "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\n"
        "Tag: cp310-cp310-linux_x86_64\n\n"
    ),
    f"{INFO}/top_level.txt": "detectron2\ntools\n",
    f"{INFO}/RECORD": "of the old wheel\n",
}


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("install_detectron2", MODULE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_wheel(folder):
    path = folder / "sal_detectron2-0.7.2-cp310-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in WHEEL_FILES.items():
            archive.writestr(zipfile.ZipInfo(name), text)  # with a fixed date, so a fixed hash
    return path


def make_package(folder, init, model_zoo=""):
    """A detectron2 of a few lines, for PYTHONPATH."""
    package = folder / "detectron2"
    (package / "model_zoo").mkdir(parents=True)
    (package / "__init__.py").write_text(init)
    (package / "model_zoo" / "__init__.py").write_text(model_zoo)
    return folder


def run_script(*arguments, python_path, cwd=None):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={**os.environ, "PYTHONPATH": str(python_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )


class Pip:
    """Stands for the script's ``pip``: records its arguments, "downloads" the fake wheel."""

    def __init__(self, found_after):
        self.calls = []
        self.found = ABSENT
        self.found_after = found_after
        self.installed_names = None

    def __call__(self, *arguments):
        self.calls.append(arguments)
        if arguments[0] == "download":
            make_wheel(Path(arguments[-1].removeprefix("--dest=")))
            return
        if arguments[-1].endswith(".whl"):
            with zipfile.ZipFile(arguments[-1]) as archive:
                self.installed_names = archive.namelist()
        self.found = self.found_after


@pytest.fixture
def make_pip(script, monkeypatch):
    def make(found_after=THERE):
        pip = Pip(found_after)
        monkeypatch.setattr(script, "pip", pip)
        monkeypatch.setattr(script, "probe", lambda: pip.found)
        return pip

    return make


@pytest.fixture
def pinned(script, monkeypatch, tmp_path):
    """Pin the fake wheel instead of the real one."""
    digest = hashlib.sha256(make_wheel(tmp_path).read_bytes()).hexdigest()
    monkeypatch.setattr(script, "WHEEL_SHA256", digest)


def test_repacked_wheel_holds_only_pure_python(script, tmp_path):
    old = make_wheel(tmp_path)
    before = old.read_bytes()
    (tmp_path / "new").mkdir()
    new = script.repack_wheel(old, tmp_path / "new")
    assert new.name == "sal_detectron2-0.7.2-py3-none-any.whl"
    assert old.read_bytes() == before
    with zipfile.ZipFile(new) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert set(files) == set(WHEEL_FILES) - {
        "detectron2/_C.cpython-310-x86_64-linux-gnu.so",
        "tools/__init__.py",
        "tools/train_net.py",
    }
    assert files[f"{INFO}/WHEEL"].decode() == (
        "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    assert files[f"{INFO}/top_level.txt"] == b"detectron2\n"
    requirements = [
        line.removeprefix("Requires-Dist: ")
        for line in files[f"{INFO}/METADATA"].decode().splitlines()
        if line.startswith("Requires-Dist: ")
    ]
    assert sorted(requirements) == [
        'black==23.3.0; extra == "dev"',
        "fvcore",
        "iopath",
        "numpy",
        "setuptools<81",
        "torch",
        "torchvision",
        "yacs>=0.1.8",
    ]


def test_record_of_the_repacked_wheel_is_right(script, tmp_path):
    (tmp_path / "new").mkdir()
    with zipfile.ZipFile(script.repack_wheel(make_wheel(tmp_path), tmp_path / "new")) as archive:
        rows = list(csv.reader(archive.read(f"{INFO}/RECORD").decode().splitlines()))
        assert [row[0] for row in rows] == archive.namelist()
        assert rows[-1] == [f"{INFO}/RECORD", "", ""]
        for name, digest, size in rows[:-1]:
            data = archive.read(name)
            algorithm, value = digest.split("=", 1)
            assert algorithm == "sha256"
            assert not value.endswith("=")
            padded = value + "=" * (-len(value) % 4)
            assert base64.urlsafe_b64decode(padded) == hashlib.sha256(data).digest()
            assert int(size) == len(data)


def test_pip_installs_the_repacked_wheel(script, tmp_path):
    (tmp_path / "new").mkdir()
    wheel = script.repack_wheel(make_wheel(tmp_path), tmp_path / "new")
    target = tmp_path / "target"
    options = ("--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check", "-q")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, f"--target={target}", str(wheel)],
        check=True,
    )
    assert sorted(path.name for path in target.iterdir()) == ["detectron2", INFO]


def test_another_file_is_refused_with_both_hashes(script, make_pip, caplog):
    pip = make_pip()
    assert script.main([]) == 3
    found = [word.rstrip(",") for word in caplog.text.split() if len(word.rstrip(",")) == 64]
    assert found[1] == "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
    assert found[0] != found[1]
    assert "--from-source" in caplog.text
    assert [call[0] for call in pip.calls] == ["download"]


@pytest.mark.usefixtures("pinned")
def test_absent_detectron2_is_installed_from_the_pinned_wheel(script, make_pip, capsys):
    pip = make_pip()
    assert script.main([]) == 0
    download, install = pip.calls
    assert download[:-1] == (
        "download",
        "sal-detectron2==0.7.2",
        "--python-version=3.10",
        "--only-binary=:all:",
        "--no-deps",
    )
    assert install[0] == "install"
    assert not any(name.startswith(("tools/", "detectron2/_C.")) for name in pip.installed_names)
    assert not Path(install[1]).exists()
    output = capsys.readouterr().out
    for part in ("sal-detectron2==0.7.2", "_C", "Apache-2.0"):
        assert part in output
    assert THERE["path"] in output


def test_from_source_builds_upstream(script, make_pip, capsys):
    pip = make_pip()
    assert script.main(["--from-source"]) == 0
    assert pip.calls[-1] == (
        "install",
        "--no-build-isolation",
        "git+https://github.com/facebookresearch/detectron2.git",
    )
    assert all(call[0] == "install" for call in pip.calls)
    assert "facebookresearch" in capsys.readouterr().out


@pytest.mark.usefixtures("pinned")
def test_an_installation_that_does_not_import_is_no_success(script, make_pip, caplog):
    make_pip(found_after={"missing": "torch", "error": "No module named 'torch'"})
    assert script.main([]) == 1
    assert "No module named 'torch'" in caplog.text


def test_failing_pip_is_reported(script, monkeypatch, caplog):
    monkeypatch.setattr(script, "probe", lambda: ABSENT)
    monkeypatch.setattr(script.sys, "executable", "/bin/false")
    assert script.main([]) == 1
    assert "`pip download sal-detectron2==0.7.2" in caplog.text


def test_a_too_new_setuptools_is_all_that_is_replaced(script, make_pip):
    pip = make_pip()
    pip.found = {"missing": "pkg_resources", "error": "No module named 'pkg_resources'"}
    assert script.main([]) == 0
    assert pip.calls == [("install", "setuptools<81")]


@pytest.mark.parametrize("arguments", [[], ["--from-source"]])
def test_importable_detectron2_is_left_alone(tmp_path, arguments):
    make_package(tmp_path, '__version__ = "9.9"\n')
    before = sorted(tmp_path.rglob("*"))
    done = run_script(*arguments, python_path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "9.9" in done.stdout
    assert str(tmp_path) in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("init", "model_zoo", "message"),
    [
        ('raise ImportError("_C.so: undefined symbol")\n', "", "_C.so: undefined symbol"),
        ("import no_such_requirement\n", "", "No module named 'no_such_requirement'"),
        ("", 'raise RuntimeError("half a detectron2")\n', "half a detectron2"),
        ("import os\nos.abort()\n", "", "code -"),
    ],
)
def test_broken_detectron2_is_reported_and_kept(tmp_path, init, model_zoo, message):
    make_package(tmp_path, init, model_zoo)
    done = run_script(python_path=tmp_path)
    assert done.returncode == 3
    assert message in done.stderr
    assert "pip uninstall detectron2" in done.stderr
    assert done.stdout == ""
    assert (tmp_path / "detectron2" / "__init__.py").read_text() == init


def test_a_clone_in_the_current_folder_is_not_taken_for_an_installation(tmp_path):
    installed, clone = tmp_path / "installed", tmp_path / "clone"
    make_package(installed, '__version__ = "9.9"\n')
    make_package(clone, 'raise RuntimeError("the clone was imported")\n')
    done = run_script(python_path=installed, cwd=clone)
    assert done.returncode == 0, done.stderr
    assert str(installed) in done.stdout


def test_probe_reports_absence(script, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'detectron2':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert script.probe() == ABSENT


def test_bad_command_line_is_refused(tmp_path):
    done = run_script("--form-source", python_path=tmp_path)
    assert done.returncode == 3
    assert "--form-source" in done.stderr
