"""Bootstrap intervals of AP and AR over images, and of the paired difference of two runs.

The images are drawn again, as many as there are and with replacement, and AP and AR are computed
anew from each draw (percentile bootstrap, Efron 1979). Both runs see the same draws, so that what
makes an image hard for both does not count as a difference. Detections are not matched again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from promerge_d2.evaluation.matches import KINDS, Matches
from promerge_d2.utils.errors import UserError

LEVEL = 95  # per cent


@dataclass(frozen=True)
class Estimate:
    """A figure in per cent (or a difference of two), with its ``LEVEL`` per cent interval.

    All three are None where the ground truth has no object of that size.
    """

    value: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def bootstrap(
    first: Matches, second: Matches | None = None, *, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[Estimate, ...]]:
    """Compute the intervals of one run, or of two runs and of their difference.

    Args:
        first: from ``match_instances``.
        second: of other predictions on the same ground truth.
        resamples: how many draws of the images; the ends of an interval move less with more.
        seed: of the draws; the same seed gives the same intervals.

    Returns:
        For each metric ``(first,)``, or ``(first, second, first - second)``. Draws without an
        object of a size are left out of that size's intervals. In an image that is drawn twice,
        each detection stands beside its copy.

    Raises:
        UserError: no resamples, or runs of other images or other numbers of detections.
    """
    if resamples < 1:
        raise UserError(f"resamples is {resamples}; it must be at least 1")
    runs = [first] if second is None else [first, second]
    same = len({tuple(run.image_ids) for run in runs}) == len({run.metrics for run in runs}) == 1
    if not same or any(not np.array_equal(run.objects, first.objects) for run in runs):
        raise UserError(
            "the two runs were not scored against the same ground truth with the same number of "
            "detections, so their difference means nothing; evaluate both on the same file"
        )
    count = len(first.image_ids)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    values = [run.figures()[0] for run in runs]
    samples = [run.figures(draws) for run in runs]
    if second is not None:
        values.append(values[0] - values[1])
        samples.append(samples[0] - samples[1])
    return {
        name: tuple(
            _estimate(value[i], sample[:, i]) for value, sample in zip(values, samples, strict=True)
        )
        for i, name in enumerate(first.metrics)
    }


def _estimate(value: float, sample: np.ndarray) -> Estimate:
    if np.isnan(value):
        return Estimate(None, None, None)
    tail = (100 - LEVEL) / 2
    low, high = np.nanpercentile(sample, [tail, 100 - tail])
    return Estimate(float(value), float(low), float(high))


def format_bootstrap(results: dict[str, dict[str, tuple[Estimate, ...]]]) -> str:
    """Format estimates, by IoU type and metric, as a Markdown table with a row for each metric."""
    width = max(len(row) for metrics in results.values() for row in metrics.values())
    head = ["", f"{LEVEL} % interval", "of the other", "difference"][: width + 1]
    rows = [head, ["---"] * len(head)]
    for iou_type, metrics in results.items():
        rows += [[f"{KINDS[iou_type]} {name}", *map(str, row)] for name, row in metrics.items()]
    sizes = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "| " + " | ".join(c.ljust(n) for c, n in zip(row, sizes, strict=True)) + " |"
        for row in rows
    )
