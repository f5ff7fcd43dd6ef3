#!/usr/bin/env python
"""``promerge evaluate`` from a clone; the same options."""

from promerge_d2.cli.evaluate import main
from promerge_d2.cli.parser import run_tool

if __name__ == "__main__":
    run_tool(main)
