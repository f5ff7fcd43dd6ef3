"""The port, and what is left when the process is killed."""

import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from promerge_d2.studio.server import open_port
from promerge_d2.studio.session import Session
from promerge_d2.utils.errors import UserError
from tests.helpers import ROOT

STUDIO = (
    "import sys; from promerge_d2.cli.studio import main; from promerge_d2.cli.parser import "
    "run_tool; run_tool(lambda: main(sys.argv[1:]))"
)


def test_only_this_machine(server):
    port = int(re.search(r":(\d+)/", server.url)[1])
    assert server.url.startswith("http://127.0.0.1:")
    with pytest.raises(UserError, match=f"port {port} "):
        open_port(port)
    hostname = socket.gethostbyname(socket.gethostname())
    if not hostname.startswith("127."):
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((hostname, port), timeout=5)


@pytest.mark.parametrize("port", [-1, 65536])
def test_no_such_port(port):
    with pytest.raises(UserError, match=f"--port is {port}"):
        open_port(port)


def test_one_studio_at_a_time(labels):
    """Another process has the lock: they are of processes, so that no second one here would do."""
    lock = labels.with_name("labels.studio") / "lock"
    lock.parent.mkdir()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
    hold += "f.write('process 7 on x'); f.flush(); print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(UserError, match="process 7 on x") as caught:
            Session(labels)
        holder.communicate(b"\n")
    assert str(labels) in str(caught.value)
    Session(labels).close()


def test_edits_survive_a_kill(labels):
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:  # the studio; nothing of the test may run here
        session = Session(labels)
        session.edit(0, "accept", [1])
        session.edit(1, "merge", [0, 2])
        os.write(theirs, b"!")
        signal.pause()
    assert os.read(ours, 1) == b"!"
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    again = Session(labels)
    try:
        assert again.history()["edits"] == 2
        states = [
            {mask["number"]: mask["state"] for mask in again.photograph(place, "small")["masks"]}
            for place in (0, 1)
        ]
        assert states == [
            {0: "open", 1: "accepted", 2: "open"},
            {0: "merged", 1: "open", 2: "merged", 3: "accepted"},
        ]
    finally:
        again.close()


@pytest.mark.slow
def test_edits_survive_a_kill_of_the_whole_command(labels):
    command = [sys.executable, "-W", "ignore", "-c", STUDIO, str(labels), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = next(
                line.split()[1] for line in process.stdout if line.startswith("open http://")
            )
            with httpx.Client(base_url=url.partition("?")[0], follow_redirects=True) as client:
                assert client.get(url).status_code == 200
                for number in range(3):
                    body = (
                        {"action": "merge", "masks": [0, number]}
                        if number
                        else {
                            "action": "accept",
                            "masks": [1],
                        }
                    )
                    answer = client.post(f"/api/photographs/{number}/edits", json=body)
                    assert answer.status_code == 200
                before = client.get("/api/cards", params={"n": [0, 1, 2]}).json()
        finally:
            process.send_signal(signal.SIGKILL)
    log = labels.with_name("labels.edits.jsonl")
    log.write_bytes(log.read_bytes() + b'{"do":"acc')  # as if killed in the middle of the next
    again = Session(labels)
    try:
        assert [again.photograph(number, "small") for number in range(3)] == before
        assert again.history()["edits"] == 3
        again.undo()
    finally:
        again.close()
