"""Decisions: undone, done again, and read from a log that was cut off anywhere."""

import json
import random

import pytest

from promerge_d2.studio.catalog import Catalog
from promerge_d2.studio.edits import EditLog, Edits, UnknownId
from promerge_d2.utils.errors import UserError
from tests.studio.conftest import write_labels


@pytest.fixture
def catalog(labels):
    return Catalog(labels)


def picture_of(edits):
    """All that decisions consist of."""
    return (
        edits.states.tolist(),
        edits.reviewed.tolist(),
        {place: list(map(str, added)) for place, added in edits.added.items() if added},
        edits.can_undo,
        edits.can_redo,
    )


def entry(do, place=0, *masks, **more):
    return {"do": do, "image": place + 1, "masks": list(masks), **more}


def test_decisions(catalog):
    edits = Edits(catalog)
    edits.do(entry("accept", 0, 0))
    edits.do(entry("reject", 0, 1, 2))
    edits.do(entry("reopen", 0, 2))
    assert [edits.state(0, number) for number in range(3)] == [1, 2, 0]
    assert not edits.reviewed.any()
    edits.do(entry("finish", 0, 2))
    assert (edits.state(0, 2), edits.reviewed[0]) == (1, True)
    edits.do(entry("merge", 1, 0, 1))
    edits.do(entry("reopen", 1, 3))
    edits.do(entry("only", 1, 2))
    assert [edits.state(1, number) for number in range(4)] == [3, 3, 1, 2]
    assert edits.reviewed[1]


def test_merged_masks_can_be_merged_again(catalog):
    edits = Edits(catalog)
    edits.do(entry("merge", 1, 0, 2))
    assert [edits.state(1, number) for number in range(4)] == [3, 0, 3, 1]
    assert edits.score(1, 3) == pytest.approx(0.4)  # the better one's
    edits.do(entry("merge", 1, 3, 1))
    assert [edits.state(1, number) for number in range(5)] == [3, 3, 3, 3, 1]
    with pytest.raises(UserError, match="mask 3 "):
        edits.do(entry("merge", 1, 3, 4))


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (entry("accept", 0, 3), "a/0.jpg has no mask 3"),
        (entry("accept", 0, -1), "a/0.jpg has no mask -1"),
        (entry("accept", 5, 0), "b/5.jpg has no mask 0"),
        (entry("accept", 6, 0), "the id 7"),
        (entry("merge", 0, 1), "two masks"),
        (entry("merge", 0, 1, 1), "two masks"),
        (entry("explode", 0, 1), "'explode'"),
        ({"do": "undo"}, "to undo"),
        ({"do": "redo"}, "to redo"),
    ],
)
def test_what_cannot_be_done_changes_nothing(catalog, bad, named):
    edits = Edits(catalog)
    before = picture_of(edits)
    with pytest.raises(UserError, match=named):
        edits.do(bad)
    assert picture_of(edits) == before
    assert (bad.get("image") == 7 or "no mask" in named) == (_error_of(edits, bad) is UnknownId)


def _error_of(edits, bad):
    with pytest.raises(UserError) as caught:
        edits.do(bad)
    return type(caught.value)


def random_entries(catalog, count, seed):
    """Entries that can be done, undoing and redoing among them; and the picture after each."""
    chance = random.Random(seed)
    edits, entries, pictures = Edits(catalog), [], [picture_of(Edits(catalog))]
    record = {"segmentation": {"size": [60, 80], "counts": "0"}, "score": 0.3}
    while len(entries) < count:
        place = chance.randrange(6)
        total = 3 * (place < 5) + len(edits.added.get(place, ()))
        masks = chance.sample(range(total), chance.randint(0, total))
        do = chance.choice(["accept", "reject", "reopen", "merge", "finish", "only", "replace"])
        one = entry(do, place, *masks, **({"records": [record]} if do == "replace" else {}))
        one = chance.choice([one, one, {"do": "undo"}, {"do": "redo"}])
        try:
            edits.do(one)
        except UserError:
            continue
        entries.append(one)
        pictures.append(picture_of(edits))
    return entries, pictures


@pytest.mark.parametrize("seed", range(5))
def test_undo_leads_back_to_the_beginning_and_redo_to_the_end(catalog, seed):
    entries, pictures = random_entries(catalog, 60, seed)
    edits = Edits(catalog)
    for one in entries:
        edits.do(one)
    end, path = picture_of(edits), []
    while edits.can_undo:
        path.append(picture_of(edits)[:3])
        edits.do({"do": "undo"})
    assert picture_of(edits)[:3] == pictures[0][:3]
    while path:
        edits.do({"do": "redo"})
        assert picture_of(edits)[:3] == path.pop()
    assert picture_of(edits)[:3] == end[:3]


@pytest.mark.parametrize("seed", range(3))
def test_the_log_gives_the_decisions_wherever_it_is_cut_off(catalog, tmp_path, seed, caplog):
    path = tmp_path / "edits.jsonl"
    entries, pictures = random_entries(catalog, 30, seed)
    log = EditLog(path, catalog)
    for one in entries:
        log.append(one)
    log.close()
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    assert len(lines) == 31
    for number in range(31):
        for torn in (b"", lines[min(number + 1, 30)][:7] if number < 30 else b'{"do'):
            path.write_bytes(b"".join(lines[: number + 1]) + torn)
            again = EditLog(path, catalog)
            assert picture_of(again.edits) == pictures[number]
            assert again.entries == number
            again.close()
            assert path.read_bytes() == b"".join(lines[: number + 1])
    assert str(path) in caplog.text


def test_a_log_of_another_file_is_refused(labels, catalog, tmp_path):
    path = tmp_path / "edits.jsonl"
    EditLog(path, catalog).close()
    content = json.loads(labels.read_text())
    content["annotations"][0]["score"] = 0.25
    labels.write_text(json.dumps(content))
    with pytest.raises(UserError, match=str(path)) as caught:
        EditLog(path, Catalog(labels))
    assert catalog.sha256[:12] in str(caught.value)
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (["no json"], "line 1"),
        (['{"a": 1}'], "no log of edits"),
        (["HEAD", "[]"], "line 2"),
        (["HEAD", '{"do": "accept", "image": 1, "masks": [0]}', '{"do": "undo"'], "line 3"),
        (["HEAD", '{"do": "accept"}'], "line 2"),
        (["HEAD", '{"do": "accept", "image": 99, "masks": [0]}'], "line 2"),
        (["HEAD", '{"do": "accept", "image": [], "masks": [0]}'], "line 2"),
        (["HEAD", '{"do": "accept", "image": 1, "masks": ["x"]}'], "line 2"),
    ],
)
def test_a_broken_log_is_refused_by_its_line(catalog, tmp_path, lines, named):
    path = tmp_path / "edits.jsonl"
    EditLog(path, catalog).close()
    head = path.read_text().strip()
    path.write_text("".join(f"{head if line == 'HEAD' else line}\n" for line in lines))
    before = path.read_bytes()
    with pytest.raises(UserError, match=named) as caught:
        EditLog(path, catalog)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def test_a_full_disk_loses_nothing_that_was_said_to_be_kept(catalog, tmp_path, monkeypatch):
    path = tmp_path / "edits.jsonl"
    log = EditLog(path, catalog)
    log.append(entry("accept", 0, 0))
    good = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", _full)
        with pytest.raises(UserError, match="No space left"):
            log.append(entry("reject", 0, 1))
    with pytest.raises(UserError, match="start again"):
        log.append(entry("reject", 0, 1))
    log.close()
    assert path.read_bytes() == good


def _full(file):
    raise OSError(28, "No space left on device")


def test_equal_files_in_two_folders_share_no_log(tmp_path):
    first, second = (Catalog(write_labels(tmp_path / name)) for name in ("x", "y"))
    log = EditLog(tmp_path / "edits.jsonl", first)
    log.append(entry("accept", 0, 0))
    log.close()
    again = EditLog(tmp_path / "edits.jsonl", second)  # moved with its file, it goes on
    assert again.entries == 1
    again.close()
