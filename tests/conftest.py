"""What all tests share: ``--runslow``, and the real data beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Small networks gain nothing from threads, and threads that wait for a busy core cost minutes.
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--runslow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--runslow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --runslow")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder ``shared`` (with ``data`` and ``golden``); tests that use it skip without it."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("PROMERGE_SHARED", beside))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set PROMERGE_SHARED to its folder")
    return folder
