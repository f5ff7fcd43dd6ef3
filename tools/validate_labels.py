#!/usr/bin/env python
"""``promerge validate`` from a clone; the same options."""

from promerge_d2.cli.parser import run_tool
from promerge_d2.cli.validate import main

if __name__ == "__main__":
    run_tool(main)
