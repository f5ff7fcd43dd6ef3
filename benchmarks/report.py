"""Figures as Markdown: numbers, tables, and the marked blocks of a page that tables go into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measure import Figures, machine
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import atomic_path


@dataclass
class Results:
    """What a benchmark gives.

    Attributes:
        title: what was measured on what, in words.
        figures: numbers by name; what was not measured is absent.
        parts: Markdown: tables, and the sentences between them.
        notes: what a reader must know: what was not measured and why, how things were chosen.
    """

    title: str
    figures: Figures = field(default_factory=Figures)
    parts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """Return all as Markdown, with the machine's line above."""
        notes = "\n".join(f"* {note}" for note in self.notes)
        parts = (f"{machine()}. {self.title}.", *self.parts, notes)
        return "\n\n".join(filter(None, parts))


def digits(value: float, count: int) -> str:
    """Write a number in so many digits, or whole where it has more before the point."""
    return f"{value:.0f}" if abs(value) >= 10 ** (count - 1) else f"{value:.{count}g}"


def number(figures: Figures, name: str, spread: bool = True) -> str:
    """Write a figure in three digits, with half its interquartile range where there is one.

    Args:
        figures: by name.
        name: of the figure.
        spread: False leaves the range out.
    """
    if name not in figures:
        return "not measured"
    around = figures.get(f"{name}.iqr")
    text = digits(figures[name], 3)
    return f"{text} ± {digits(around / 2, 2)}" if spread and around is not None else text


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table; all columns but the first hold numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def list_table(figures: Figures, rows: Mapping[str, str]) -> str:
    """Write a table of one figure a row.

    Args:
        figures: by name.
        rows: name of a figure to what the reader sees.
    """
    return table(["", ""], [[title, number(figures, name)] for name, title in rows.items()])


def cross_table(
    figures: Figures,
    rows: Mapping[str, str],
    columns: Mapping[str, str],
    corner: str = "",
    spread: bool = True,
) -> str:
    """Write a table of the figures that are named ``ROW.COLUMN``.

    Args:
        figures: by name.
        rows: the first part of the names to what the reader sees.
        columns: likewise the last part.
        corner: above the rows.
        spread: see ``number``.
    """
    cells = (
        [title, *(number(figures, f"{row}.{column}", spread) for column in columns)]
        for row, title in rows.items()
    )
    return table([corner, *columns.values()], cells)


def write_blocks(file: Path, blocks: Mapping[str, str]) -> list[str]:
    """Write blocks of text into a Markdown file, each between two lines of its own.

    Args:
        file: a page with the lines ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->`` for some of
            the blocks; what stands between them is replaced, and nothing else. A file that is not
            there is made, with all blocks.
        blocks: by name.

    Returns:
        The names of the blocks that the page has.

    Raises:
        UserError: the page has none of them, or the two lines are not there once each, in order.
    """
    marks = {name: (f"<!-- {name}: begin -->", f"<!-- {name}: end -->") for name in blocks}
    if file.is_file():
        text = file.read_text(encoding="utf-8")
    else:
        text = "\n".join(f"{begin}\n{end}\n" for begin, end in marks.values())
    present = [name for name in blocks if any(mark in text for mark in marks[name])]
    for name in present or blocks:
        begin, end = marks[name]
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise UserError(
                f"{file} has no place for the tables; it needs the lines {begin} and {end}, in "
                "this order and once each. Add them, or name a file that does not exist"
            )
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n\n{blocks[name]}\n\n{end}{after}"
    with atomic_path(file) as part:
        part.write_text(text, encoding="utf-8")
    return present
