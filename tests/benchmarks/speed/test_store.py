import pytest

from benchmarks.speed import store
from benchmarks.speed.harness import Plan
from promerge_d2.pseudo_labels import LocalEngine
from tests.benchmarks.speed.helpers import QUICK, check_numbers


def test_the_store(workload, images, monkeypatch):
    monkeypatch.setattr(store, "READY", 7)
    rates = []
    monkeypatch.setattr(  # without processes
        store, "LocalEngine", lambda workers=0, _=1: rates.append(workers) or LocalEngine(0)
    )
    results = store.measure_store(Plan(workload, images, **QUICK))
    check_numbers(results.figures)
    # labelled once ahead, then labelled and stored twice, then the workers in turns
    assert rates == [*[0] * 5, 1, 2, 1, 2]
    figures = results.figures
    assert figures["store.own_percent"] == pytest.approx(
        figures["store.own_ms"] / figures["store.labeler_s"] / 10
    )
    assert "masks.ratio_to_released" not in figures
    text = results.markdown()
    assert "| Stored images/s, 2 workers | " in text
    assert "not measured" not in text
