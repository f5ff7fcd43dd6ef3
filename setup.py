"""Package promerge_d2. detectron2 comes from tools/install_detectron2.py, not from the index."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

init = Path(__file__).with_name("promerge_d2").joinpath("version.py").read_text(encoding="utf-8")
version = re.search(r'^__version__ = "(.+)"$', init, re.MULTILINE)[1]

demo = ["onnx", "scikit-image", "scikit-learn"]

setup(
    name="promerge_d2",
    version=version,
    description="Unsupervised class-agnostic instance segmentation with ProMerge and detectron2",
    license="Apache-2.0",
    python_requires=">=3.10",
    # an editable install puts this folder on the path: benchmarks/ is no part of the wheel
    package_dir={"": "."},
    packages=find_packages(include=["promerge_d2", "promerge_d2.*"]),
    package_data={
        "promerge_d2": ["py.typed"],
        "promerge_d2.visualization": ["templates/*.html"],
    },
    install_requires=[
        "fvcore",
        "iopath",
        "jinja2",
        "matplotlib",
        "numba",  # mask refinement
        "numpy",
        "opencv-python-headless",  # the other build wants libGL, which servers lack
        "pillow",
        "pycocotools",
        "scipy",
        "timm>=1.0.20",
        "torch>=2.0",
        "torchvision",
        "tqdm",
    ],
    extras_require={
        "crf": ["pydensecrf2"],  # the papers' CRF, to compare with; needs a C++ compiler
        "demo": demo,  # the quick start: offline weights, example images
        "dev": [
            *demo,
            *("hypothesis", "pytest", "pytest-xdist"),
            *("import-linter", "mypy", "pre-commit", "ruff"),
        ],
        "ray": ["ray[data]"],  # labelling on a Ray cluster
        "fast": ["hotcoco"],  # a quicker matcher for evaluation, same figures
    },
)
