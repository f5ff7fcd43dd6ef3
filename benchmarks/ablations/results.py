"""The rows of an experiment on disk: a CSV, and beside it what its rows were computed with."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from promerge_d2.utils.differences import differences
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import atomic_path, read_json, write_json

Row = dict[str, str]

_NAMED = 5  # differences that a message names


class Results:
    """``NAME.csv`` in a folder. A row begins with the columns that say which point it is.

    All but the column ``seconds`` follows from ``NAME.json``: what was labelled, and how.

    Args:
        folder: of the outputs; made when the first row is added.
        name: of the experiment.
        run: what all rows follow from, as JSON takes it.

    Raises:
        UserError: there are rows that were computed with something else, or no table.
    """

    def __init__(self, folder: Path, name: str, run: Mapping[str, Any]) -> None:
        self.file = folder / f"{name}.csv"
        self.rows = read_rows(self.file)
        self._run_file = folder / f"{name}.json"
        self._run = json.loads(json.dumps(run))  # as it will be read: tuples become lists
        if self.rows:
            self._check(read_json(self._run_file, f"record of what {self.file} was computed with"))

    def _check(self, run: Any) -> None:
        changed = [
            f"{name} was {_told(before)}, now {_told(now)}"
            for name, before, now in differences(run, self._run)
        ]
        if changed:
            more = f"; and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
            raise UserError(
                f"{self.file} was computed with something else: {'; '.join(changed[:_NAMED])}"
                f"{more}. Name another --output, or delete the file to compute it anew"
            )

    def has(self, point: Mapping[str, str]) -> bool:
        """Whether there is a row that begins with these columns."""
        return any(point.items() <= row.items() for row in self.rows)

    def add(self, row: Row) -> None:
        """Append a row; the file is whole at any time."""
        if not self.rows:
            write_json(self._run_file, self._run, indent=1)
        elif list(self.rows[0]) != list(row):
            raise UserError(
                f"{self.file} has the columns {', '.join(self.rows[0])}, not {', '.join(row)}; "
                "delete it to compute it anew"
            )
        self.rows.append(row)
        with (
            atomic_path(self.file) as part,
            open(part, "w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.DictWriter(file, row, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


def read_rows(file: Path) -> list[Row]:
    """The rows of a CSV, none where there is no file.

    Raises:
        UserError: it is no table.
    """
    if not file.is_file():
        return []
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    if any(None in row or None in row.values() for row in rows):
        raise UserError(f"{file} has rows of different lengths; delete it to compute it anew")
    return rows


def _told(value: Any) -> Any:
    return "not there" if value is None else value
