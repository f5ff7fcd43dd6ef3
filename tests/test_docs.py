"""What the pages say holds: links lead somewhere, commands parse, files and options exist."""

import ast
import importlib
import re
import shlex

import pytest
import yaml

from promerge_d2.cli.command import COMMANDS
from tests.helpers import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
USER_PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)

# options of other programs that pages name
FOREIGN = {
    *("--from-source", "--no-deps", "--runslow"),
    *("--nproc-per-node", "--no-python", "--array", "--gpus-per-task", "--cpus-per-task"),
    *("--mem", "--time", "--signal", "--requeue", "--strict"),
}


def text_of(page):
    return page.read_text(encoding="utf-8")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


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
    page = text_of(ROOT / "docs" / "architecture.md")
    steps = re.findall(r"^(\d+)\. `([\w.]+)` in `([\w./]+)`: ", page, re.MULTILINE)
    assert [int(number) for number, _, _ in steps] == list(range(1, len(steps) + 1))
    assert 10 <= len(steps) <= 15
    for _, name, file in steps:
        assert name in defined((ROOT / file).read_text(encoding="utf-8")), (name, file)


@pytest.mark.parametrize("page", ["docs/architecture.md", "README.md"])
def test_every_room_is_on_the_map(page):
    text = text_of(ROOT / page)
    rooms = {path.parent.name for path in (ROOT / "promerge_d2").glob("*/__init__.py")}
    assert len(rooms) >= 10
    assert {room for room in rooms if f"{room}/`" not in text} == set()


def test_the_readme_is_one_page():
    assert len(text_of(ROOT / "README.md").split()) <= 700


def test_the_readme_begins_with_its_two_commands():
    before = text_of(ROOT / "README.md").partition("\n---\n")[0]
    commands = re.findall(r"^    (.+)$", before, re.MULTILINE)
    assert commands == ["bash tools/quickstart.sh", "bash tools/test.sh"]


def anchors(page):
    """Of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page):
    folders = "promerge_d2|benchmarks|configs|datasets|notebooks|tests|tools"
    named = rf"(?<![\w/])(?:{folders})/[a-z_0-9/]+\.(?:py|sh|yaml|ipynb)\b"
    files = re.findall(named, text_of(page))
    assert {file for file in files if not (ROOT / file).exists()} == set()


def test_every_page_has_its_place_on_the_site():
    def names(entry):
        if isinstance(entry, str):
            return {entry}
        return set().union(*map(names, entry if isinstance(entry, list) else entry.values()))

    nav = yaml.safe_load(text_of(ROOT / "mkdocs.yml"))["nav"]
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert names(nav) == pages


def commands(page):
    """The command lines of a page's code blocks that call this project, as lists of words."""
    code = "\n".join(
        [
            *re.findall(r"^```bash\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL),
            *re.findall(r"^    (.*)$", FENCE.sub("", text_of(page)), re.MULTILINE),
        ]
    )
    found = []
    for line in code.replace("\\\n", " ").replace("$k", "0").splitlines():
        inner = re.search(r"(?<![\w./-])(?:promerge|python) [^&;|']+(?:'[^']*'[^&;|']*)*", line)
        if inner and "…" not in inner[0] and "COMMAND" not in inner[0]:
            found.append(shlex.split(inner[0], comments=True))
    return found


def all_commands(start):
    return [
        pytest.param(words, id=f"{name_of(page)}: {shlex.join(words)[:60]}")
        for page in USER_PAGES
        for words in commands(page)
        if words[0] == start
    ]


@pytest.mark.parametrize("words", all_commands("promerge"))
def test_commands_parse(words):
    assert words[1] in COMMANDS
    module = importlib.import_module(f"promerge_d2.cli.{COMMANDS[words[1]][0]}")
    module.make_parser().parse_args(words[2:])


@pytest.mark.parametrize("words", all_commands("python"))
def test_scripts_that_are_called_exist(words):
    if words[1] == "-m":
        assert (ROOT / f"{words[2].replace('.', '/')}.py").is_file()
    elif words[1] != "-c":
        assert (ROOT / words[1]).is_file()


@pytest.fixture(scope="module")
def options():
    """Every option of the project's command lines, and of detectron2's."""
    from detectron2.engine import default_argument_parser

    from benchmarks.speed import BENCHMARKS

    folders = ("promerge_d2", "benchmarks", "datasets", "tools", "tests")
    sources = [text_of(file) for folder in folders for file in (ROOT / folder).rglob("*.py")]
    own = {option for text in sources for option in re.findall(r'"(--[a-z][a-z0-9-]*)"', text)}
    return (
        own
        | set(default_argument_parser()._option_string_actions)
        | {f"--{name}" for name in BENCHMARKS}
        | FOREIGN
    )


@pytest.mark.parametrize("page", USER_PAGES, ids=name_of)
def test_options_that_are_named_exist(page, options):
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`|^    .*$", text_of(page), re.M | re.S))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", code))
    assert named - options == set()
