import os
import signal
import subprocess
import sys

import pytest

from promerge_d2.cli.parser import ArgumentParser, run_tool
from promerge_d2.utils.errors import (
    EXIT_FAILURES,
    EXIT_NOT_FINISHED,
    EXIT_OK,
    EXIT_REFUSED,
    UserError,
)


def raiser(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code"),
    [
        (lambda: None, 0),
        (lambda: EXIT_OK, 0),
        (lambda: EXIT_NOT_FINISHED, 1),
        (lambda: EXIT_FAILURES, 2),
        (raiser(UserError("no such thing")), 3),
        (raiser(KeyboardInterrupt()), 1),
    ],
)
def test_exit_codes(main, code):
    with pytest.raises(SystemExit) as caught:
        run_tool(main)
    assert caught.value.code == code


def test_codes_are_the_documented_ones():
    assert (EXIT_OK, EXIT_NOT_FINISHED, EXIT_FAILURES, EXIT_REFUSED) == (0, 1, 2, 3)


def test_user_error_is_one_line(capsys):
    with pytest.raises(SystemExit):
        run_tool(raiser(UserError("the folder x is missing; make it")))
    captured = capsys.readouterr()
    assert captured.err == "error: the folder x is missing; make it\n"
    assert captured.out == ""


def test_a_subclass_may_bring_its_own_code():
    class Late(UserError):
        exit_code = 2

    with pytest.raises(SystemExit) as caught:
        run_tool(raiser(Late("late")))
    assert caught.value.code == 2


def test_unexpected_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_tool(raiser(ZeroDivisionError()))


@pytest.mark.parametrize("arguments", [[], ["--number", "x"], ["--number", "1", "--typo"]])
def test_bad_command_line_is_refused(capsys, arguments):
    parser = ArgumentParser(prog="tool")
    parser.add_argument("--number", type=int, required=True)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(arguments)
    assert caught.value.code == 3
    error = capsys.readouterr().err
    assert error.startswith("usage: tool")
    assert "tool: error: " in error


def test_help_is_ok(capsys):
    with pytest.raises(SystemExit) as caught:
        ArgumentParser(prog="tool").parse_args(["--help"])
    assert caught.value.code == 0
    assert "usage: tool" in capsys.readouterr().out


def tool(body):
    # without detectron2, whose import takes seconds
    code = (
        "import sys\nsys.modules['detectron2'] = None\n"
        f"from promerge_d2.cli.parser import run_tool\n{body}\nrun_tool(main)"
    )
    return [sys.executable, "-c", code]


def test_as_a_process():
    body = (
        "import logging\n"
        "def main():\n"
        "    logging.getLogger('promerge_d2.x').info('progress')\n"
        "    print('result')\n"
        "    return 2\n"
    )
    done = subprocess.run(tool(body), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == "result\n"
    assert "progress\n" in done.stderr


def test_a_crash_of_the_process_is_not_finished():
    done = subprocess.run(
        tool("def main():\n    raise ZeroDivisionError"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_interrupt_of_the_process():
    # a shell's background job inherits an ignored SIGINT, which Python then leaves ignored
    body = (
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def main():\n    print('up', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen(
        tool(body), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error.endswith("interrupted\n")
    assert "Traceback" not in error
