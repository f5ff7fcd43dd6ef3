#!/usr/bin/env python
"""Measure the labeler beside the released way and beside normalised cuts, in one run.

Without arguments: the sample photographs at 60x60 patches, at most ten minutes on two cores that
have nothing else to do. docs/benchmark.md says how.
"""

from __future__ import annotations

from promerge_d2.cli.parser import run_tool
from promerge_d2.utils.errors import UserError


def main() -> int:
    """Run the command of ``benchmarks.speed``, which is no part of the wheel."""
    try:
        from benchmarks.speed.command import main
    except ModuleNotFoundError as error:
        if error.name != "benchmarks":
            raise
        raise UserError(
            "the folder benchmarks cannot be imported; install this copy of the repository with "
            "pip install -e ., or put its root on PYTHONPATH"
        ) from error
    return main()


if __name__ == "__main__":
    run_tool(main)
