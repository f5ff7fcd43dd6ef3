"""What every command-line tool shares: argument parsing, logging, the exit code."""

from __future__ import annotations

import argparse
import io
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from promerge_d2.utils.errors import EXIT_NOT_FINISHED, EXIT_OK, EXIT_REFUSED, UserError


class ArgumentParser(argparse.ArgumentParser):
    """An ``argparse.ArgumentParser`` that exits with ``EXIT_REFUSED`` on a bad command line.

    argparse's own 2 would read as "finished with failures".
    """

    def group(self, title: str) -> argparse._ArgumentGroup:
        """Return the group of options with this title; where there is none yet, it is added."""
        found = (each for each in self._action_groups if each.title == title)
        return next(found, None) or self.add_argument_group(title)

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit."""
        self.print_usage(sys.stderr)
        self.exit(EXIT_REFUSED, f"{self.prog}: error: {message}\n")


def run_tool(main: Callable[[], int | None]) -> NoReturn:
    """Run a tool's ``main`` and exit with its code; a ``UserError`` becomes one message.

    Args:
        main: takes nothing, returns one of the ``EXIT_*`` codes (None means ``EXIT_OK``).
    """
    # timm's and detectron2's, nothing to act on
    warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)
    warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
    warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release", UserWarning)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = main()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(EXIT_NOT_FINISHED)
    sys.exit(EXIT_OK if code is None else code)


def find_config(name: str) -> str:
    """Find a configuration: a file, or else one of those that come with this package.

    Args:
        name: path of a file, or a shipped config's name such as ``promerge_cascade.yaml`` or
            ``semi_supervised/promerge_cascade_10perc.yaml``.

    Returns:
        The file; ``name`` itself if there is none, which its reader refuses.
    """
    package = Path(__file__).parents[1]
    folders = (package / "configs", package.parent / "configs")  # of a wheel, of the repository
    shipped = (folder / name for folder in folders)
    return next((str(file) for file in (Path(name), *shipped) if name and file.is_file()), name)
