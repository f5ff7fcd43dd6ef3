#!/usr/bin/env python
"""``promerge visualize`` from a clone; without --preset, ``release``."""

from functools import partial

from promerge_d2.cli.parser import run_tool
from promerge_d2.cli.visualize import main

if __name__ == "__main__":
    run_tool(partial(main, preset="release"))
