import pytest

from benchmarks.speed.methods import Workload
from tests.benchmarks.speed.helpers import SETTINGS, shorten_sweeps
from tests.helpers import (
    TINY,
    photo,
    save_image,
    use_tiny,
)


def scene(seed):
    """Three bright objects of whole patches."""
    pixels = photo(box=(84, 16, 108, 32), seed=seed)
    pixels[40:56, 12:36] = (200, 60, 40)
    pixels[64:88, 60:84] = (40, 200, 90)
    return pixels


@pytest.fixture
def short_sweeps(monkeypatch):
    shorten_sweeps(monkeypatch)


@pytest.fixture
def images(tmp_path):
    return tuple(save_image(tmp_path / f"{seed}.png", scene(seed)) for seed in range(3))


@pytest.fixture
def workload(monkeypatch, tmp_path):
    weights = use_tiny(monkeypatch, tmp_path)
    return Workload(TINY, weights=str(weights), settings=SETTINGS)
