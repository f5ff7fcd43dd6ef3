#!/usr/bin/env python
"""``promerge convert-dino-resnet`` from a clone; the same options."""

from promerge_d2.cli.convert_dino_resnet import main
from promerge_d2.cli.parser import run_tool

if __name__ == "__main__":
    run_tool(main)
