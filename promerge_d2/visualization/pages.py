"""Pages that open from disk, without a server: templates filled in by Jinja2, all text escaped."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from promerge_d2.evaluation.matches import KINDS
from promerge_d2.utils.files import atomic_path

METRICS = ("AP", "AP50", "AP75", "AR100")


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        title: the heading above.
        columns: column names.
        rows: cells, strings as they are and numbers with ``decimals``. A column with a number in
            it is set to the right.
        note: a line below, or empty.
        decimals: of the numbers.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    note: str = ""
    decimals: int = 1

    def is_number(self, column: int) -> bool:
        """Tell whether a column has a number in it."""
        return any(not isinstance(row[column], str) for row in self.rows)

    def text(self, cell: str | float) -> str:
        """Return a cell as it is shown."""
        return cell if isinstance(cell, str) else f"{cell:.{self.decimals}f}"


@dataclass(frozen=True)
class Gallery:
    """Rows of pictures with the same captions.

    Attributes:
        title: the heading above.
        captions: one a column.
        rows: for each row its name and the picture files, relative to the page.
        note: a line below the heading, or empty.
    """

    title: str
    captions: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    note: str = ""


def metrics_rows(
    results: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> list[list[str | float]]:
    """Make the rows of a metrics table.

    Args:
        results: data set to method to flat figures in per cent (``segm.AP``, ``bbox.AR100``, ...).

    Returns:
        Rows: data set, method, box or mask, then ``METRICS``; masks first.
    """
    return [
        [dataset, method, KINDS[kind], *(figures[f"{kind}.{metric}"] for metric in METRICS)]
        for kind in KINDS
        for dataset, methods in results.items()
        for method, figures in methods.items()
        if f"{kind}.AP" in figures
    ]


def as_markdown(tables: Sequence[Table]) -> str:
    """Write tables as Markdown, each with its heading and note."""
    parts = []
    for table in tables:
        rows = [table.columns, ["---"] * len(table.columns)]
        rows += [[table.text(cell) for cell in row] for row in table.rows]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        parts += [f"## {table.title}", "\n".join(lines), *([table.note] if table.note else [])]
    return "\n\n".join(parts) + "\n"


def write_page(path: Path, template: str, **content: Any) -> None:
    """Fill in a template and write it as a whole; parent folders are made.

    Args:
        path: the ``.html`` file.
        template: a file of ``templates/``.
        **content: what the template names.
    """
    page = _templates().get_template(template).render(content)
    with atomic_path(path) as part:
        part.write_text(page, encoding="utf-8", errors="backslashreplace")  # names of files


@functools.cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("promerge_d2.visualization"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
