#!/usr/bin/env python
"""``promerge env --install-detectron2`` from a clone, also before promerge_d2 is installed."""

import runpy
from pathlib import Path

CLI = Path(__file__).resolve().parents[1] / "promerge_d2" / "cli"

if __name__ == "__main__":
    # by its path: importing promerge_d2 imports the detectron2 that may be broken
    runpy.run_path(str(CLI / "install_detectron2.py"), run_name="__main__")
