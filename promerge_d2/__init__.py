"""Unsupervised class-agnostic instance segmentation: ProMerge masks, detectron2 detectors.

Importing this registers the data sets, heads and backbones with detectron2, when it is installed.
``promerge_d2.labeler`` and ``promerge_d2.features`` do without it. In the command ``promerge``,
whose help must not wait for torch, importing ``promerge_d2.engine`` registers them.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from promerge_d2.version import __version__

__all__ = ["ProMergeLabeler", "__version__", "add_promerge_config", "register_promerge_instances"]

# Resolved when asked for: the labeler's imports must not slow down this one, and the other two
# have to say what is missing where there is no detectron2.
_HOME = {
    "ProMergeLabeler": "promerge_d2.labeler",
    "add_promerge_config": "promerge_d2.config",
    "register_promerge_instances": "promerge_d2.data",
}


def _in_command() -> bool:
    """Return whether this process is ``promerge`` or ``python -m promerge_d2``."""
    script = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    return script in ("promerge", "promerge.exe") or sys.orig_argv[1:3] == ["-m", "promerge_d2"]


if not _in_command():
    try:
        import detectron2  # noqa: F401 - only to see whether it is there
    except ModuleNotFoundError as error:
        if error.name != "detectron2":
            raise
    else:
        from promerge_d2 import data, modeling  # noqa: F401 - they register when imported


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "detectron2":
            raise
        raise ImportError(
            f"promerge_d2.{name} needs detectron2, which is not installed: "
            "run `promerge env --install-detectron2`"
        ) from error
