"""Progress bars that stay readable in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable | None = None, **options: Any) -> tqdm:
    """Return ``tqdm(items, **options)``, refreshed every 15 seconds where there is no terminal."""
    return tqdm(items, mininterval=0.1 if sys.stderr.isatty() else 15, **options)


def late_progress(items: Iterable | None = None, **options: Any) -> tqdm:
    """Return ``progress`` that shows nothing of what takes two seconds, and leaves no trace."""
    return progress(items, delay=2, leave=False, **options)
