"""The work that is timed. Each function runs in a fresh process, see ``Benchmark.call``.

Whatever happens once a process (imports, compiling, the first use of a library) is done on a
small input before the clock starts.

Shape letters: N images, R repeats, H and W rows and columns of the patch grid, M masks; h, w
working image.
"""

from __future__ import annotations

import dataclasses
import pickle
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.measure import Samples, forget_peak, start_together
from benchmarks.speed.methods import METHODS, Workload
from benchmarks.speed.released import refine_one_by_one
from promerge_d2.labeler import GridConfig, ImageFeatures, Labeler
from promerge_d2.labeler.refine import refine_masks
from promerge_d2.labeler.refine.resize import upsample

BEFORE = ("decoding", "features")
AFTER = ("masks", "refinement", "encoding")
RELEASED = "released"  # beside the names of REFINERS: exact, one CRF object a mask


@dataclasses.dataclass
class Finished:
    """What the part after the features took and gave.

    Attributes:
        seconds: stage to samples (N, R); a stage that was not reached took 0.
        cpu_share: CPU time over wall-clock time: about 1 where nothing else disturbs.
        merged: for each image its masks on the grid (M, H, W) bool, M may be 0.
        records: masks in the end, for each image.
    """

    seconds: dict[str, Samples]
    cpu_share: float
    merged: list[np.ndarray]
    records: list[int]


def extract(
    workload: Workload, name: str, files: Sequence[Path], folder: Path
) -> dict[str, Samples]:
    """Decode images and compute their features, once each.

    Args:
        workload: what to work with.
        name: of the method.
        files: N images.
        folder: gets the result of each image, see ``load_prepared``.

    Returns:
        Samples (N, 1) of the stages ``BEFORE``.
    """
    labeler = workload.labeler(METHODS[name])
    small = dataclasses.replace(labeler.config, grid=(4, 4))
    blank = np.zeros((64, 64, 3), np.uint8)
    processor = dataclasses.replace(labeler.processor, config=small)
    labeler.forward([processor.preprocess(blank)])
    labeler.processor.preprocess(files[0])
    forget_peak()  # of loading the weights
    folder.mkdir(parents=True)
    seconds = []
    for index, file in enumerate(files):
        (prepared,) = labeler.forward([labeler.processor.preprocess(file)])
        seconds.append([prepared.seconds[stage] for stage in BEFORE])
        with open(folder / f"{index:04d}.pkl", "wb") as out:
            pickle.dump(prepared, out)
    columns = np.array(seconds).T[:, :, None]
    return dict(zip(BEFORE, map(Samples, columns), strict=True))


def load_prepared(folder: Path, index: int) -> ImageFeatures:
    """Read an image that ``extract`` has prepared."""
    with open(folder / f"{index:04d}.pkl", "rb") as file:
        return pickle.load(file)


def warm_up(labeler: type[Labeler], config: GridConfig, prepared: ImageFeatures) -> None:
    """Do everything after the features once, on a corner of an image."""
    side = min(12, *prepared.features.shape[-2:])
    pixels = side * config.pixels_per_patch
    corner = dataclasses.replace(
        prepared,
        features=prepared.features[..., :side, :side],
        working_image=np.ascontiguousarray(prepared.working_image[:pixels, :pixels]),
    )
    labeler.postprocess(corner, config)
    mask = np.zeros((1, side, side), bool)  # for the refiner, had there been no mask
    mask[:, : side // 2] = True
    refine_masks(corner.working_image, upsample(mask, pixels, pixels), config.refine, 0)


def finish(
    workload: Workload,
    name: str,
    folder: Path,
    images: Sequence[int],
    repeats: int,
    together: bool = False,
) -> Finished:
    """Do everything after the features, from memory to records.

    Args:
        workload: what to work with.
        name: of the method.
        folder: of ``extract``.
        images: which of its images.
        repeats: R; images are taken round by round, so that a slow minute of the machine hits all.
        together: in a pool, start when its other processes do.
    """
    labeler, config = METHODS[name].labeler, workload.config(METHODS[name])
    prepared = [load_prepared(folder, index) for index in images]
    warm_up(labeler, config, prepared[0])
    merged: list[np.ndarray] = []

    seconds = np.zeros((len(AFTER), len(images), repeats))
    records = [0] * len(images)
    if together:
        start_together()
    wall, cpu = time.perf_counter(), time.process_time()
    for repeat in range(repeats):
        for index, image in enumerate(prepared):
            started = time.perf_counter()
            grid = labeler.find_masks(image, config)
            seconds[0, index, repeat] = time.perf_counter() - started
            result = labeler.make_records(image, grid, config)
            seconds[1:, index, repeat] = [result.seconds.get(stage, 0) for stage in AFTER[1:]]
            if not repeat:
                nothing = np.zeros((0, *image.features.shape[-2:]), bool)
                merged.append(nothing if grid.merged is None else grid.merged)
            records[index] = len(result.records)
    share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    samples = dict(zip(AFTER, map(Samples, seconds), strict=True))
    return Finished(samples, share, merged, records)


def refine(
    refiner: str, folder: Path, masks: dict[int, np.ndarray], repeats: int
) -> tuple[Samples, list[np.ndarray]]:
    """Refine given masks.

    Args:
        refiner: a name of ``REFINERS``, or ``RELEASED``.
        folder: of ``extract``.
        masks: for each image of it (M, H, W) bool on the grid, M at least 1.
        repeats: R.

    Returns:
        Samples (N, R), and for each image its masks (M, h, w) bool, holes filled, none dropped.
    """

    def run(image: np.ndarray, coarse: np.ndarray) -> np.ndarray:
        if refiner == RELEASED:
            return refine_one_by_one(image, coarse, "dense_crf", 0)[0]
        return refine_masks(image, upsample(coarse, *image.shape[:2]), refiner, 0)[0]

    run(np.zeros((32, 32, 3), np.uint8), np.eye(4, dtype=bool)[None])
    seconds = np.zeros((len(masks), repeats))
    refined: list[np.ndarray] = []
    for repeat in range(repeats):
        refined.clear()
        for row, (index, coarse) in enumerate(masks.items()):
            image = load_prepared(folder, index).working_image
            started = time.perf_counter()
            refined.append(run(image, coarse))
            seconds[row, repeat] = time.perf_counter() - started
    return Samples(seconds), refined
