"""What tests of the speed benchmark share."""

from benchmarks.speed import device, sweeps


def shorten_sweeps(monkeypatch):
    """Measure a few small sizes only."""
    monkeypatch.setattr(sweeps, "GRIDS", (8, 12))
    monkeypatch.setattr(sweeps, "STRIDES", (4, 2))
    monkeypatch.setattr(sweeps, "MASKS", (1, 2, 500))
    monkeypatch.setattr(sweeps, "WORKERS", (0,))
    monkeypatch.setattr(sweeps, "IMAGES", (3, 5))
    monkeypatch.setattr(device, "BATCHES", (1, 2))
