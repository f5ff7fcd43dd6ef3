"""Compare two records of how something was made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the values that differ between two nested dicts; None is as good as not there.

    Example: ``{"a": {"b": 1}}`` and ``{"a": {"b": 2}}`` differ in ``("a.b", 1, 2)``.

    Args:
        before: a dict, or a value in one.
        now: likewise.
        name: of the value, its keys joined by dots.

    Yields:
        Name, value before and value now; the keys of ``before`` come first.
    """
    nested = [value for value in (before, now) if value is not None]
    if nested and all(isinstance(value, dict) for value in nested):
        before, now = before or {}, now or {}
        for key in dict.fromkeys((*before, *now)):
            inner = f"{name}.{key}" if name else key
            yield from differences(before.get(key), now.get(key), inner)
    elif before != now:
        yield name, before, now
