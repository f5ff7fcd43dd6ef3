"""The command ``promerge``: finds the subcommand, and imports no other."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from promerge_d2.cli.parser import ArgumentParser, run_tool
from promerge_d2.utils.errors import EXIT_OK, UserError
from promerge_d2.version import __version__

# name: its module in this room, which has ``make_parser()`` and ``main(argv)``; what it does
COMMANDS = {
    "label": ("label", "photographs to a label file and a page to look at"),
    "studio": ("studio", "look at a label file, and put it right, in the browser"),
    "train": ("train", "train or evaluate a detector"),
    "self-train": ("self_train", "label, train, label better, round by round"),
    "evaluate": ("evaluate", "score a label file against ground truth"),
    "zero-shot": ("zero_shot", "score labels or a detector on every benchmark that is there"),
    "demo": ("demo", "draw what a detector finds in photographs"),
    "validate": ("validate", "check a label file, and make a gallery of it"),
    "merge": ("merge", "put the shards of a labelling together"),
    "import": ("import_labels", "make a label file of another project's"),
    "export": ("export", "write a label file in another tool's format"),
    "visualize": ("visualize", "draw what each stage of a labeler makes of a photograph"),
    "cache-features": ("cache_features", "compute a frozen ViT's features ahead of training"),
    "convert-dino-resnet": ("convert_dino_resnet", "fetch the start weights of the ResNet configs"),
    "env": ("env", "print versions, devices, weights; install detectron2"),
}

# what a subcommand may lack, and what brings it
OPTIONAL = {
    "detectron2": "promerge env --install-detectron2",
    "pydensecrf": "pip install pydensecrf2, needs a C++ compiler",
    "onnx": "pip install onnx",
    "skimage": "pip install scikit-image",
    "sklearn": "pip install scikit-learn",
    "fastapi": "pip install fastapi uvicorn",
    "uvicorn": "pip install fastapi uvicorn",
    "hotcoco": "pip install hotcoco",
    "ray": "pip install 'ray[data]'",
}

SHELLS = ("bash", "zsh", "tcsh")


def run() -> NoReturn:
    """Run the command of this process; the console script ``promerge``."""
    run_tool(main)


def make_parser() -> ArgumentParser:
    """Describe the command line up to the subcommand."""
    lines = [f"  {name:20} {what}" for name, (_, what) in COMMANDS.items()]
    parser = ArgumentParser(
        prog="promerge",
        usage="promerge COMMAND ...",
        description="Instance masks without labels, and detectors that learn from them.",
        epilog="\n".join(["commands (promerge COMMAND --help describes one):", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"promerge_d2 {__version__}")
    parser.add_argument(
        "--print-completion",
        choices=SHELLS,
        metavar="SHELL",
        help=f"print what makes a shell complete this command: {', '.join(SHELLS)}",
    )
    parser.add_argument("command", nargs="?", choices=COMMANDS, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Hand the rest of the command line to a subcommand.

    Args:
        argv: without the program's name; None takes this process's.

    Returns:
        The exit code.

    Raises:
        UserError: the subcommand needs a part that is not installed.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = make_parser()
    args = parser.parse_args(argv[:1] if argv[:1] and argv[0] in COMMANDS else argv)
    if args.print_completion:
        print(completion(args.print_completion))
    elif args.command is None:
        parser.print_help()
    else:
        module, _ = COMMANDS[args.command]
        try:
            return importlib.import_module(f"promerge_d2.cli.{module}").main(argv[1:])
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in OPTIONAL:
                raise
            raise UserError(
                f"promerge {args.command} needs {missing}, which is not installed: "
                f"{OPTIONAL[missing]}"
            ) from error
    return EXIT_OK


def completion(shell: str) -> str:
    """Write the script that makes a shell complete the command.

    Args:
        shell: one of ``SHELLS``.

    Returns:
        The script; it knows the options of every subcommand whose parts are installed.
    """
    import shtab

    parser = argparse.ArgumentParser(prog="promerge")
    subparsers = parser.add_subparsers()
    for name, (module, what) in COMMANDS.items():
        try:
            parents = [importlib.import_module(f"promerge_d2.cli.{module}").make_parser()]
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in OPTIONAL:
                raise
            parents = []
        subparsers.add_parser(name, help=what, parents=parents, add_help=not parents)
    return shtab.complete(parser, shell)
