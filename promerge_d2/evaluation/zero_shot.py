"""Score runs of predictions on a data set, all classes as one.

A run is a set of predictions under a name: one file, scored on every data set whose images it has,
or a folder with a file ``NAME.json`` for each data set, its name with or without
``cls_agnostic_``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from promerge_d2.coco.ground_truth import GroundTruth, read_ground_truth
from promerge_d2.coco.predictions import PredictionFile, read_predictions
from promerge_d2.data.benchmarks import DataSet
from promerge_d2.evaluation.align import NoCommonImageError, Predictions, align_predictions
from promerge_d2.evaluation.bootstrap import Estimate, bootstrap
from promerge_d2.evaluation.matches import Matches, match_instances
from promerge_d2.evaluation.metrics import check_iou_types, metrics_of
from promerge_d2.utils.errors import UserError


@dataclass
class Run:
    """Predictions under a name; a single file is read once for all data sets.

    Attributes:
        name: in tables.
        path: a file, or a folder with one for each data set.
        about: what made them, where the files do not say it.
    """

    name: str
    path: Path
    about: str = ""
    _file: PredictionFile | None = field(default=None, repr=False)

    def predictions(self, data_set: str) -> PredictionFile | None:
        """Read those for a data set; None where the folder has no file for it."""
        if self.path.is_dir():
            names = (data_set, data_set.removeprefix("cls_agnostic_"))
            files = [self.path / f"{name}.json" for name in names]
            return next((read_predictions(file) for file in files if file.exists()), None)
        if self._file is None:
            self._file = read_predictions(self.path)
        return self._file


@dataclass(frozen=True)
class Score:
    """A run on a data set.

    Attributes:
        data_set: the data set.
        run: name of the run.
        truth: the ground truth.
        predictions: what was scored.
        matches: by IoU type, ``bbox`` and maybe ``segm``.
        figures: by IoU type, the metrics in per cent, -1 where there is no object.
        intervals: by IoU type and metric; empty without resamples.
        differences: the same for this run minus the first run on this data set; empty for the
            first.
        first: name of that first run.
        left_out: how many images of the ground truth were left out, since not every run lists
            them.
        about: what made the predictions, as far as it is known.
    """

    data_set: DataSet
    run: str
    truth: GroundTruth
    predictions: Predictions
    matches: dict[str, Matches]
    figures: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Estimate]]
    first: str
    left_out: int = 0
    about: str = ""

    @property
    def main(self) -> str:
        """Return the IoU type that papers report: masks where there are any."""
        return "segm" if "segm" in self.figures else "bbox"


def score(
    data_set: DataSet,
    runs: Sequence[Run],
    *,
    detections: int = 100,
    backend: str = "pycocotools",
    resamples: int = 1000,
    seed: int = 0,
    only_listed: bool = False,
) -> tuple[list[Score], dict[str, str]]:
    """Score runs on a data set and compare them with the first one that has predictions.

    Args:
        data_set: one whose files are there, see ``DataSet.missing``.
        runs: the runs.
        detections: how many an image are matched, if a run keeps more than 100; at least 100.
        backend: of ``match_instances``.
        resamples: of ``bootstrap``; 0 for no intervals.
        seed: of ``bootstrap``.
        only_listed: only on the images that every run lists; else images that a run does not list
            are images without predictions.

    Returns:
        The scores, and for each run that could not be scored here why.

    Raises:
        UserError: a file is broken; the message names the record.
    """
    truth = read_ground_truth(data_set.json_file)
    placed: dict[str, Predictions] = {}
    about: dict[str, str] = {}
    without: dict[str, str] = {}
    for run in runs:
        file = run.predictions(data_set.name)
        if file is None:
            without[run.name] = f"{run.path} has no {data_set.name}.json"
            continue
        try:
            placed[run.name] = align_predictions(file, truth)
            about[run.name] = run.about or file.description
        except NoCommonImageError:
            without[run.name] = f"no image of {run.path} is in it"
    left_out = 0
    if only_listed and placed:
        common = set.intersection(*(predictions.listed for predictions in placed.values()))
        if not common:
            raise UserError(f"{data_set.name} has no image that all of {', '.join(placed)} list")
        left_out = len(truth.images) - len(common)
        truth = truth.restricted_to(common)
        placed = {name: predictions.restricted_to(common) for name, predictions in placed.items()}
    most = [np.bincount(run.instances.image, minlength=1).max() for run in placed.values()]
    if max(most, default=0) <= 100:
        detections = 100  # more would be the same figure under another name
    scores: list[Score] = []
    for name, predictions in placed.items():
        kinds = check_iou_types(truth, predictions)
        matches = {
            kind: match_instances(truth, predictions, kind, detections, backend) for kind in kinds
        }
        intervals: dict[str, dict[str, Estimate]] = {}
        differences: dict[str, dict[str, Estimate]] = {}
        for kind in kinds if resamples else ():
            base = scores[0].matches.get(kind) if scores else None
            rows = bootstrap(matches[kind], base, resamples=resamples, seed=seed)
            intervals[kind] = {metric: row[0] for metric, row in rows.items()}
            if base is not None:
                differences[kind] = {metric: row[2] for metric, row in rows.items()}
        scores.append(
            Score(
                data_set,
                name,
                truth,
                predictions,
                matches,
                {kind: metrics_of(found) for kind, found in matches.items()},
                intervals,
                differences,
                scores[0].run if scores else name,
                left_out,
                about[name],
            )
        )
    return scores, without
