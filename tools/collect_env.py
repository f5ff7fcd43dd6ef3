#!/usr/bin/env python
"""``promerge env`` from a clone; the same options."""

from promerge_d2.cli.env import main
from promerge_d2.cli.parser import run_tool

if __name__ == "__main__":
    run_tool(main)
