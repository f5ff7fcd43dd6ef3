"""What the pages say of files holds: links lead somewhere, the walk's functions exist."""

import ast
import re

import pytest

from tests.helpers import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def defined(source):
    """Names of functions and methods, such as ``f`` and ``A.f``."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef)
            }
    return names


def test_the_walk_of_a_photograph():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    steps = re.findall(r"^(\d+)\. `([\w.]+)` in `([\w./]+)`: ", page, re.MULTILINE)
    assert [int(number) for number, _, _ in steps] == list(range(1, len(steps) + 1))
    assert 10 <= len(steps) <= 15
    for _, name, file in steps:
        assert name in defined((ROOT / file).read_text(encoding="utf-8")), (name, file)


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md", "README.md"])
def test_every_room_is_on_the_map(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    rooms = {path.parent.name for path in (ROOT / "promerge_d2").glob("*/__init__.py")}
    assert len(rooms) >= 10
    assert {room for room in rooms if f"{room}/`" not in text} == set()


def anchors(page):
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    folders = "promerge_d2|benchmarks|configs|datasets|tests|tools"
    text = page.read_text(encoding="utf-8")
    files = re.findall(rf"(?<![\w/])(?:{folders})/[a-z_0-9/]+\.(?:py|sh|yaml)\b", text)
    assert {file for file in files if not (ROOT / file).exists()} == set()
