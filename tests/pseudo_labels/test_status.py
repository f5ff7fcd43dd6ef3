import json
import logging

import pytest

from promerge_d2.pseudo_labels import status
from promerge_d2.pseudo_labels.status import ProgressReporter


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(status.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(status, "_terminal", lambda: False)
    return now


def test_a_line_and_a_status_an_interval(tmp_path, clock, caplog):
    synced = []
    with caplog.at_level(logging.INFO):
        seen = ProgressReporter(tmp_path / "status.json", 100, 40, lambda: synced.append(clock[0]))
        first = json.loads((tmp_path / "status.json").read_text())
        assert (first["state"], first["done"], first["images_per_second"]) == ("running", 40, None)
        for masks in (3, 1, None, 2, 0):
            clock[0] += 10
            seen.count_image(masks)
    assert caplog.messages == [
        "43 of 100 images, 0.1 images/s, 0:09:30 left, 2.0 masks an image, 1 failed"
    ]
    assert synced == [130.0]
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["images"], status["done"], status["done_before"]) == (100, 43, 40)
    assert (status["failed"], status["masks_per_image"], status["seconds_left"]) == (1, 2.0, 570)
    seen.close("stopped")
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["done"], status["masks_per_image"]) == ("stopped", 45, 1.5)


def test_a_status_that_cannot_be_written_ends_nothing(tmp_path, clock, caplog):
    (tmp_path / "file").write_text("")
    ProgressReporter(tmp_path / "file" / "status.json", 2, 0, lambda: None).count_image(1)
    assert "cannot write" in caplog.text


def test_a_bar_on_a_terminal(tmp_path, clock, monkeypatch, capsys):
    monkeypatch.setattr(status, "_terminal", lambda: True)
    seen = ProgressReporter(tmp_path / "status.json", 2, 0, lambda: None)
    clock[0] += 31
    seen.count_image(2)
    seen.count_image(None)
    seen.close("finished")
    assert "2.0 masks an image, 0 failed" in capsys.readouterr().err
