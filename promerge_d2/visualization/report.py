"""A page that shows a run: figures, times, pictures. It opens from disk, without a server."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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

    def text(self, cell: str | float) -> str:
        """A cell as it is shown."""
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


def metrics_rows(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[list]:
    """Rows of a metrics table.

    Args:
        results: data set to method to flat figures in per cent (``segm.AP``, ``bbox.AR100``, ...).

    Returns:
        Rows: data set, method, box or mask, then ``METRICS``; masks first.
    """
    names = {"segm": "mask", "bbox": "box"}
    return [
        [dataset, method, names[kind], *(figures[f"{kind}.{metric}"] for metric in METRICS)]
        for kind in names
        for dataset, methods in results.items()
        for method, figures in methods.items()
        if f"{kind}.AP" in figures
    ]


def write_report(
    path: str | os.PathLike,
    title: str,
    summary: Sequence[str],
    warning: str,
    tables: Sequence[Table],
    figures: Sequence[tuple[str, str]],
    galleries: Sequence[Gallery],
) -> None:
    """Write the page.

    Args:
        path: the ``.html`` file; pictures are named relative to its folder.
        title: heading and window title.
        summary: paragraphs at the top.
        warning: what a reader must know before believing a figure, in a box of its own.
        tables: figures.
        figures: (caption, picture file) of plots.
        galleries: pictures.
    """
    parts = [f"<h1>{_escape(title)}</h1>", f'<p class="warning">{_escape(warning)}</p>']
    parts += [f"<p>{_escape(text)}</p>" for text in summary]
    parts += [_table(table) for table in tables]
    parts += [
        f"<h2>{_escape(caption)}</h2>"
        f'<img class="plot" src="{_escape(file)}" alt="{_escape(caption)}">'
        for caption, file in figures
    ]
    parts += [_gallery(gallery) for gallery in galleries]
    page = _PAGE.format(title=_escape(title), body="\n".join(parts))
    with atomic_path(Path(path)) as part:
        part.write_text(page, encoding="utf-8")


def _table(table: Table) -> str:
    numbers = [
        any(not isinstance(row[column], str) for row in table.rows)
        for column in range(len(table.columns))
    ]

    def line(tag: str, cells: Sequence[str | float]) -> str:
        return "".join(
            f"<{tag}{' class=number' if number else ''}>{_escape(table.text(cell))}</{tag}>"
            for cell, number in zip(cells, numbers, strict=True)
        )

    rows = "".join(f"<tr>{line('td', row)}</tr>\n" for row in table.rows)
    note = f'<p class="note">{_escape(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{_escape(table.title)}</h2>\n<div class="wide"><table><thead><tr>'
        f"{line('th', table.columns)}</tr></thead>\n<tbody>{rows}</tbody></table></div>{note}"
    )


def _gallery(gallery: Gallery) -> str:
    note = f'<p class="note">{_escape(gallery.note)}</p>' if gallery.note else ""
    rows = []
    for name, files in gallery.rows:
        cells = "".join(
            f'<figure><a href="{_escape(file)}"><img loading="lazy" src="{_escape(file)}" '
            f'alt="{_escape(caption)} of {_escape(name)}"></a>'
            f"<figcaption>{_escape(caption)}</figcaption></figure>"
            for caption, file in zip(gallery.captions, files, strict=True)
        )
        rows.append(
            f'<div class="row" style="--columns: {len(files)}">{cells}'
            f'<div class="name">{_escape(name)}</div></div>'
        )
    return f"<h2>{_escape(gallery.title)}</h2>{note}\n" + "\n".join(rows)


def _escape(text: str) -> str:
    return html.escape(str(text))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8885; --soft: #8882; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }}
h1 {{ line-height: 1.2; margin-bottom: 0.5rem; }}
h2 {{ margin-top: 2.5rem; }}
.warning {{ border-left: 4px solid #d80; background: #d802; padding: 0.6rem 1rem; }}
.note {{ opacity: 0.75; font-size: 0.9rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
th.number {{ white-space: normal; overflow-wrap: normal; }}
td:first-child {{ min-width: 9rem; }}
tbody tr:hover {{ background: var(--soft); }}
.row {{ display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: 0.5rem;
  margin: 0 0 1.5rem; }}
.row .name {{ grid-column: 1 / -1; opacity: 0.6; font-size: 0.85rem; margin-top: -0.4rem; }}
figure {{ margin: 0; }}
figure img {{ width: 100%; height: auto; border-radius: 4px; display: block; }}
figcaption {{ font-size: 0.85rem; opacity: 0.75; padding-top: 0.2rem; }}
.plot {{ max-width: 100%; background: #fff; border-radius: 4px; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
