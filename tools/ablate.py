#!/usr/bin/env python
"""Find out which settings suit your images: sweeps over a labelled folder, and painted cases.

--help lists the experiments.
"""

from __future__ import annotations

from promerge_d2.cli.parser import run_tool
from promerge_d2.utils.errors import UserError


def main() -> int:
    """Run the command of ``benchmarks.ablations``, which is no part of the wheel."""
    try:
        from benchmarks.ablations.command import main
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
