"""No test passes because it asks nothing."""

import ast
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.rglob("test_*.py"))


def asks(node):
    """Whether a statement can fail a test: an assert, pytest.raises, or a checking helper."""
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in ("raises", "fail", "refused") or name.startswith(("check", "assert", "expect"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_every_test_asserts(file):
    silent = [
        node.name
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and not any(asks(inner) for inner in ast.walk(node))
    ]
    assert silent == []
