#!/usr/bin/env python
"""``promerge import`` from a clone; the same options."""

from promerge_d2.cli.import_labels import main
from promerge_d2.cli.parser import run_tool

if __name__ == "__main__":
    run_tool(main)
