import json

import pytest

from promerge_d2.coco import json_stream
from promerge_d2.coco.json_stream import JsonStream
from promerge_d2.utils.errors import UserError


def elements(path):
    return [(e.section, e.value) for e in JsonStream(path)]


@pytest.mark.parametrize("chunk", [1, 3, 7, 1 << 20])
def test_elements_and_their_places(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    content = {
        "info": {"a": [1, 2]},
        "images": [{"name": "söder/\u6771.jpg"}, 12, -3.5, "x,]}", None],
        "empty": [],
        "n": 123456,
    }
    expected = [("info", content["info"]), *(("images", v) for v in content["images"])]
    expected += [("n", 123456)]
    for ascii_only in (True, False):
        path = tmp_path / "f.json"
        path.write_text(json.dumps(content, ensure_ascii=ascii_only, indent=1), encoding="utf-8")
        stream = JsonStream(path)
        found = list(stream)
        assert [(e.section, e.value) for e in found] == expected
        assert stream.sections == ["info", "images", "empty", "n"]
        for element in found:
            piece = path.read_bytes()[element.start : element.end]
            assert json.loads(piece) == element.value


def test_a_bare_list(tmp_path):
    (tmp_path / "f.json").write_text(' [1, {"a": 2}] \n')
    assert elements(tmp_path / "f.json") == [("", 1), ("", {"a": 2})]
    (tmp_path / "f.json").write_text("[]")
    assert elements(tmp_path / "f.json") == []


@pytest.mark.parametrize(
    ("text", "byte"),
    [
        ("", 0),
        ("12", 1),
        ('{"a": [1, 2', 11),
        ('{"a": [1, {"b": tru', 10),
        ('{"a": [1 2]}', 10),
        ("{1: 2}", 2),
        ('{"a": [1]} x', 11),
        ('{"a": [1],}', 10),
    ],
)
def test_broken_files_are_refused(tmp_path, text, byte):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(UserError, match=rf"f\.json .*byte {byte}\b"):
        elements(tmp_path / "f.json")


def test_an_element_without_an_end_is_not_read_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", 10)
    monkeypatch.setattr(json_stream, "_LONGEST", 1000)
    (tmp_path / "f.json").write_text('["' + "x" * 100_000)
    with pytest.raises(UserError, match="byte 1"):
        elements(tmp_path / "f.json")


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"gone: No such file"):
        list(JsonStream(tmp_path / "gone", "labels"))


@pytest.mark.parametrize("chunk", [1, 50, 1 << 20])
def test_without_spans_the_same_values(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    content = {
        "images": [{"id": n, "name": "söder }, {" if n == 7 else "x"} for n in range(20)],
        "segments": [{"parts": [{"a": n}, {"b": [{}, {}]}]} for n in range(20)],
        "mixed": [{}, 3, {"c": 4.5}, {"d": None}, "}, {", {"e": 1}, {"f": 2}],
        "empty": [],
    }
    for separators in ((",", ":"), (" , ", " : ")):
        path = tmp_path / "f.json"
        path.write_text(json.dumps(content, ensure_ascii=False, separators=separators))
        stream = JsonStream(path, spans=False)
        found = {key: [] for key in content}
        for element in stream:
            found[element.section].append(element.value)
        assert found == content
        assert stream.lists == list(content)


def test_what_python_cannot_take_is_refused(tmp_path):
    (tmp_path / "f.json").write_text('{"a": [' + "[" * 100_000)
    (tmp_path / "g.json").write_bytes(b'{"a": ["caf\xe9"], "b": 1}')
    for name, message in (("f", "nested too deep"), ("g", "not UTF-8")):
        for spans in (True, False):
            with pytest.raises(
                UserError, match=f"{name}.json is not valid JSON at byte.*{message}"
            ):
                list(JsonStream(tmp_path / f"{name}.json", spans=spans))


def test_reading_a_large_file_is_shown(tmp_path, monkeypatch):
    shown = []

    class Bar:
        def __init__(self, **options):
            shown.append(options["total"])

        def __enter__(self):
            return self

        def __exit__(self, *error):
            shown.append("closed")

        def update(self, count):
            shown.append(count)

    monkeypatch.setattr(json_stream, "late_progress", Bar)
    path = tmp_path / "l.json"
    path.write_text(json.dumps({"images": [{"id": 1}]}))
    assert len(list(JsonStream(path))) == 1
    assert shown == []
    monkeypatch.setattr(json_stream, "_LARGE", 1)
    assert len(list(JsonStream(path))) == 1
    size = path.stat().st_size
    assert shown == [size, size, "closed"]
