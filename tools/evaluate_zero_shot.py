#!/usr/bin/env python
"""``promerge zero-shot`` from a clone; the same options."""

from promerge_d2.cli.parser import run_tool
from promerge_d2.cli.zero_shot import main

if __name__ == "__main__":
    run_tool(main)
