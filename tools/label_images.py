#!/usr/bin/env python
"""``promerge label`` from a clone; without --preset, ``release``."""

from functools import partial

from promerge_d2.cli.label import main
from promerge_d2.cli.parser import run_tool

if __name__ == "__main__":
    run_tool(partial(main, preset="release"))
