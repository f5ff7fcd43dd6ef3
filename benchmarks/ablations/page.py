"""All experiments of a folder as one page, and as blocks of a Markdown file."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablations import ceilings
from benchmarks.ablations.experiments import EXPERIMENTS
from benchmarks.ablations.results import Row, read_rows
from benchmarks.ablations.sweep import FIGURES
from benchmarks.report import write_blocks
from promerge_d2.utils.files import make_folder, read_json
from promerge_d2.visualization import pages
from promerge_d2.visualization.pages import Table

BEST = 10  # rows shown of a longer table
SHOWN = 20  # rows of a table that is shown whole
HEADS = {"seconds": "seconds*"}
NOTE = (
    "In per cent but for masks and seconds an image. Empty: images without a mask. Precision and "
    "recall at IoU 0.5. *Of the median image, from features to masks on the grid, as measured in "
    "that run: the one column that differs from run to run."
)


def write_page(folder: Path, changed: str) -> list[str]:
    """Write ``index.html`` with every experiment whose table is in a folder.

    Args:
        folder: of the tables; gets the page and the plots.
        changed: the experiment that is plotted anew; others only where the plot is missing.

    Returns:
        The names of these experiments.
    """
    tables: list[Table] = []
    figures: list[tuple[str, str]] = []
    trainings: dict[str, None] = {}
    for name, experiment in EXPERIMENTS.items():
        rows = read_rows(folder / f"{name}.csv")
        if not rows:
            continue
        plot = folder / f"{name}.png"
        if name == changed or not plot.is_file():
            experiment.plot(rows, plot)
        run = read_json(folder / f"{name}.json", "record of an experiment")
        head, body, cut = _cells(name, rows)
        tables.append(Table(experiment.title, head, body, " ".join((_made_with(run), cut))))
        figures.append((experiment.title, plot.name))
        if "description" in run:
            trainings[run["description"]] = None
    pages.write_page(
        folder / "index.html",
        "report.html",
        title="Experiments",
        summary=[
            NOTE,
            "All rows are in the .csv files beside this page, their settings in the .json.",
        ],
        warning="; ".join(trainings) or "Compared with other backbones on the same images only.",
        tables=tables,
        figures=figures,
        galleries=[],
    )
    return [name for name in EXPERIMENTS if (folder / f"{name}.csv").is_file()]


def write_markdown(folder: Path, names: Sequence[str], file: Path) -> None:
    """Write plots into the blocks of a Markdown file; they go to ``images`` beside it.

    The tables are in the folder's page and CSV.

    Args:
        folder: of ``write_page``.
        names: of experiments; a block has the name of one, see ``write_blocks``.
        file: the page.

    Raises:
        UserError: as ``write_blocks``.
    """
    blocks = {n: f"![{EXPERIMENTS[n].title}](images/{_plot(n)})" for n in names}
    for name in write_blocks(file, blocks):
        images = make_folder(file.parent / "images")
        shutil.copyfile(folder / f"{name}.png", images / _plot(name))


def _plot(name: str) -> str:
    return f"ablate_{name}.png"


def _cells(name: str, rows: list[Row]) -> tuple[list[str], list[list[str]], str]:
    """Return column names, cells, and a remark where rows are left out."""
    cut = ""
    if len(rows) > SHOWN:
        different = {tuple(row[name] for name in FIGURES[:-1]): row for row in reversed(rows)}
        rows = sorted(different.values(), key=lambda row: -float(row["AP"] or -1))[:BEST]
        cut = (
            f"Of the rows with different figures those with the highest AP, at most {BEST}, and of "
            f"equal ones the first; all are in {name}.csv."
        )
    head = [HEADS.get(column, column) for column in rows[0]]
    return head, [[_short(column, cell) for column, cell in row.items()] for row in rows], cut


def _short(column: str, cell: str) -> str:
    """Write a figure as a table shows it."""
    if column not in (*FIGURES, *ceilings.FIGURES) or not cell:
        return cell or "–"
    return f"{float(cell):.{3 if column == 'seconds' else 2 if column in ('AP', 'masks') else 1}f}"


def _made_with(run: dict[str, Any]) -> str:
    """Say what a table was computed with, in a sentence."""
    data, grid = run["data"], "x".join(map(str, run["settings"]["grid"]))
    parts = [f"{run['labeler']} {run['preset']}, grid {grid}"]
    if "backbone" in run:
        facet = run["backbone"].get("facet")
        parts.append(run["backbone"]["name"] + (f", facet {facet}" if facet else ""))
    if "images" in data:
        kind = {"segm": "masks", "bbox": "boxes"}[data["iou_type"]]
        parts.append(f"{kind} of {data['images']} images")
    else:
        parts.append(f"masks of {data['scenes']} scenes a case")
    return f"{'; '.join(parts)}."
