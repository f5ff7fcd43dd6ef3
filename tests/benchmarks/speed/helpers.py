"""What tests of the speed benchmark share."""

import json

from benchmarks.speed import device, sweeps

SETTINGS = {"grid": (12, 12), "stride": 2}
QUICK = {
    "whole": 2,
    "reference": 2,
    "repeats": 2,
    "slow_repeats": 1,
    "fresh": False,
    "seconds": 0.01,
    "stream": 4,
}
"""Of a plan: a benchmark in this process, whose times mean little."""


def shorten_sweeps(monkeypatch):
    """Measure few and small sizes only."""
    monkeypatch.setattr(sweeps, "GRIDS", (8, 12))
    monkeypatch.setattr(sweeps, "STRIDES", (4, 2))
    monkeypatch.setattr(sweeps, "MASKS", (1, 2, 500))
    monkeypatch.setattr(sweeps, "WORKERS", (0,))
    monkeypatch.setattr(sweeps, "IMAGES", (3, 5))
    monkeypatch.setattr(device, "BATCHES", (1, 2))


def check_numbers(figures):
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    for name, value in figures.items():
        assert type(value) in (int, float), name
        assert value >= 0, name
        if name.endswith(".iqr"):
            assert name.removesuffix(".iqr") in figures
