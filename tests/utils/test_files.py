import hashlib
import json
import os
import re
import stat

import pytest

from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import (
    atomic_path,
    check_writable,
    make_folder,
    read_json,
    sha256_of,
    write_json,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "er" / "file.txt"
    with atomic_path(target) as part:
        assert part.parent == target.parent
        part.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert names(target.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write_half():
        with atomic_path(target) as part:
            part.write_text("half of the n")
            raise error

    with pytest.raises(error):
        write_half()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    with atomic_path(tmp_path / "ours") as part:
        part.write_text("")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_json(path, {}),
        lambda path: make_folder(path.parent),
        check_writable,
    ],
)
def test_a_file_where_a_folder_should_be(tmp_path, write):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken"):
        write(tmp_path / "taken" / "a.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o500)
    with pytest.raises(UserError, match=r"a\.json: Permission denied"):
        write_json(folder / "a.json", {})
    with pytest.raises(UserError, match=r"a\.json: Permission denied"):
        check_writable(folder / "a.json")


def test_check_writable_makes_the_folder_and_no_file(tmp_path):
    check_writable(tmp_path / "new" / "a.json")
    assert names(tmp_path / "new") == []


def test_check_writable_names_a_folder(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        check_writable(tmp_path)


def test_write_json_is_utf8_with_a_newline(tmp_path):
    write_json(tmp_path / "a.json", {"name": "café", "n": [1, 2.5, None]})
    content = (tmp_path / "a.json").read_bytes()
    assert content.endswith(b"}\n")
    assert json.loads(content) == {"name": "café", "n": [1, 2.5, None]}
    write_json(tmp_path / "b.json", [1], indent=2)
    assert (tmp_path / "b.json").read_text() == "[\n  1\n]\n"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), object()])
def test_write_json_refuses_what_json_cannot_say(tmp_path, bad):
    target = tmp_path / "a.json"
    write_json(target, "old")
    with pytest.raises((ValueError, TypeError)):
        write_json(target, {"score": bad})
    assert read_json(target) == "old"
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", ["", "{", "{'a': 1}", "[1,]"])
def test_read_json_of_something_else(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"the ground truth .*a\.json.*JSON"):
        read_json(tmp_path / "a.json", "ground truth")


def test_read_json_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_text('{"a": "é"}', encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == {"a": "é"}


def test_read_json_of_binary(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"a\.json.*JSON"):
        read_json(tmp_path / "a.json")


def test_read_json_of_nothing(tmp_path):
    with pytest.raises(UserError, match=r"gone\.json: No such file"):
        read_json(tmp_path / "gone.json")
    with pytest.raises(UserError, match="Is a directory"):
        read_json(tmp_path)


def test_sha256(tmp_path):
    content = bytes(range(256)) * 10000  # longer than a block
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    (tmp_path / "empty").write_bytes(b"")
    assert sha256_of(tmp_path / "empty").startswith("e3b0c44298fc1c14")
