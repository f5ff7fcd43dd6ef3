"""``promerge studio`` says in one line what is wrong with its command line."""

import builtins
import socket
import sys

import pytest

from promerge_d2.cli import command
from promerge_d2.cli.studio import main
from promerge_d2.utils.errors import UserError


@pytest.mark.parametrize("name", ["fastapi", "uvicorn"])
def test_the_extra_is_named_where_it_is_missing(monkeypatch, name):
    for module in [*sys.modules]:
        if module.startswith("promerge_d2.studio") or module.partition(".")[0] == name:
            monkeypatch.delitem(sys.modules, module)
    real = builtins.__import__

    def refuse(wanted, *arguments, **more):
        if wanted.partition(".")[0] == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(wanted, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=rf"{name}.*pip install fastapi uvicorn"):
        command.main(["studio", "labels.json"])


def test_a_busy_port(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} "):
            main([str(tmp_path / "none.json"), "--port", str(port)])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["none.json", "--port", "0"], r"none\.json"),
        ([".", "--port", "0"], r"no label file \."),
        (["none.json", "--port", "99999"], "--port is 99999"),
    ],
)
def test_what_is_refused_is_named_and_leaves_nothing(tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=named):
        main(arguments)
    assert [*tmp_path.iterdir()] == []
