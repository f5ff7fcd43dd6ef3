#!/usr/bin/env python
"""``promerge cache-features`` from a clone; the same options."""

from promerge_d2.cli.cache_features import main
from promerge_d2.cli.parser import run_tool

if __name__ == "__main__":
    run_tool(main)
