"""A labeler that takes milliseconds, processes to kill, label files made up."""

import json
import os
import signal
import time
import traceback

import numpy as np
import torch

from promerge_d2.features import FeatureExtractor
from promerge_d2.features.extractor import build_vit
from promerge_d2.labeler import ProMergeConfig, ProMergeLabeler, RegionsLabeler
from promerge_d2.pseudo_labels import label_images, list_images
from promerge_d2.pseudo_labels.store import parts_of
from tests.helpers import TINY, photo, save_image

ON_A_DEVICE = [(ProMergeLabeler, "mean_field"), (RegionsLabeler, "guided")]
"""Labelers and refiners that have a twin in torch."""


def tiny_labeler(cls=ProMergeLabeler, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = build_vit(TINY)
    few = {"stride": 2} if cls.config_class is ProMergeConfig else {"max_masks": 5}
    settings = {"grid": 12, "refine": "none", **few, **settings}
    return cls(FeatureExtractor(TINY, vit), cls.config_class(**settings))


def save_photos(folder, count):
    """Photographs with an object each, every fifth without (an even surface)."""
    for number in range(count):
        pixels = photo(48, 72, (42, 8, 60, 24), number)
        if number % 5 == 4:
            pixels = np.full((40, 50, 3), 90, np.uint8)
        save_image(folder / f"{number:04d}.png", pixels)
    return folder


def label(labeler, folder, output, **options):
    return label_images(list_images(folder), output, labeler, "release", **options)


def in_a_fork(work):
    """Start ``work()`` in a process of its own; its id. Exit code 0 means that it ended well."""
    process = os.fork()
    if process:
        return process
    try:
        work()
    except BaseException:  # noqa: BLE001 - nothing may go on in the copy
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def whole_lines(output, kind="records"):
    """Finished records on disk."""
    files = parts_of(output).glob(f"shard-*/*.{kind}*")
    return sum(file.read_bytes().count(b"\n") for file in files)


def wait_until(condition, process, seconds=60):
    """Wait for a condition or the end of a forked process; whether it has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(process, os.WNOHANG)[0]:
            return True
        if condition():
            return False
        time.sleep(0.0005)
    os.kill(process, signal.SIGKILL)
    raise TimeoutError


def read(path):
    return json.loads(path.read_text())
