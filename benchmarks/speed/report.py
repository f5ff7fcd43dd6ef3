"""The figures as tables and as a picture."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from benchmarks.speed.harness import Results
from benchmarks.speed.measure import Figures
from benchmarks.speed.methods import METHODS
from benchmarks.speed.tasks import AFTER, BEFORE, RELEASED
from promerge_d2.labeler.refine import REFINERS
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import atomic_path
from promerge_d2.visualization.figures import picture

BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # of the plot of ratios
STAGES = (*BEFORE, *AFTER)
RATIOS = (
    ("Prompts, filter and merging, to released-style", "masks.ratio_to_released", "masks"),
    ("Refinement, to released-style", "refine.ratio_to_released", "refine"),
    ("Features, to released-style", "features.ratio_to_released", "released"),
    ("Whole labeler, to released-style", "total.ratio_to_released", "released"),
    ("– if all but our features were free", "total.bound_by_features", "released"),
    ("After the features, to released-style", "after_features.ratio_to_released", "released"),
    ("– as throughput", "after_features.throughput_ratio_to_released", "released"),
    ("Whole labeler, to MaskCut", "total.ratio_to_maskcut", "maskcut_reference"),
    (
        "– if MaskCut had our features",
        "total.ratio_to_maskcut_same_features",
        "maskcut_reference",
    ),
    (
        "– if all but our features were free",
        "total.bound_by_features_to_maskcut",
        "maskcut_reference",
    ),
    ("After the features, to MaskCut", "after_features.ratio_to_maskcut", "maskcut_reference"),
    ("– as throughput", "after_features.throughput_ratio_to_maskcut", "maskcut_reference"),
)
"""Row of the table, the figure, and what stands before ``.images`` in the name of its count."""
BEST_COST = ("Preset best, cost in times of release", "total.best_to_ours")

STORE = (
    ("Labeler alone, seconds an image", "store.labeler_s"),
    ("Through the store, to the labeler alone, times", "store.ratio_to_labeler"),
    ("Manifest, store and merge by themselves, ms an image", "store.own_ms"),
    ("– in % of the labeler alone", "store.own_percent"),
    ("Stored images/s, 1 worker", "store.workers.1.images_per_s"),
    ("Stored images/s, 2 workers", "store.workers.2.images_per_s"),
    ("– times 1 worker", "store.workers.2.times_1"),
)

SWEEPS = {
    "grid": "By side of the patch grid",
    "prompts": "By number of prompts",
    "masks": "By masks an image",
    "workers": "By worker processes, whole labeler, our way",
    "images": "By number of (small) images, whole labeler, our way",
}


def machine() -> str:
    """The hardware and the versions that the figures depend on, in one line."""
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ("torch", "timm", "numpy", "scipy")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    return (
        f"{os.cpu_count()} cores of {processor}, {memory:.0f} GB, {platform.system()}, "
        f"Python {platform.python_version()}, {versions}"
    )


def number(figures: Figures, name: str, spread: bool = True) -> str:
    """A figure in three digits, with half its interquartile range if it has one and it is asked."""
    if name not in figures:
        return "not measured"
    around = figures.get(f"{name}.iqr")
    text = digits(figures[name], 3)
    return f"{text} ± {digits(around / 2, 2)}" if spread and around is not None else text


def digits(value: float, count: int) -> str:
    """A number in so many digits, or whole where it has more before the point."""
    return f"{value:.0f}" if abs(value) >= 10 ** (count - 1) else f"{value:.{count}g}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first hold numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(results: Results) -> str:
    """All tables, what bounds us, and the notes."""
    figures = results.figures
    parts = [f"{machine()}. {results.title}; the benchmark took {figures['run.seconds']:.0f} s."]
    if "masks.ratio_to_released" in figures:
        parts += [
            "**How many times faster `promerge` is**",
            ratio_table(figures),
            sameness(figures),
            "**Seconds an image, one process with one thread**",
            *stage_tables(figures),
            bound(figures),
            "**Refiners**",
            refiner_table(figures),
        ]
    for title, rows in sweep_tables(figures):
        parts += [f"**{title}**", rows]
    if "store.own_ms" in figures:
        parts += ["**Store and workers**", store_table(figures)]
    if "device.images_per_s" in figures:
        parts += ["**Device**", device_table(figures)]
    parts.append("\n".join(f"* {note}" for note in results.notes))
    return "\n\n".join(part for part in parts if part)


def ratio_table(figures: Figures) -> str:
    """Every ratio with its spread, and on how many images it was measured."""
    rows = [
        [title, number(figures, name), number(figures, f"{count}.images")]
        for title, name, count in RATIOS
    ]
    return table(["", "times", "images"], rows)


def sameness(figures: Figures) -> str:
    """Whether fast and slow ways give the same."""
    text = (
        f"With {figures['masks.prompts']:.0f} prompts, masks on the grid are identical to the "
        f"released-style ones on {figures['masks.images_identical']:.0f} of "
        f"{figures['masks.images']:.0f} images ({figures['masks_per_image']:.2g} masks an image)"
    )
    if "maskcut.images_identical" in figures:
        text += (
            f", those of `maskcut` to the dense solver's on "
            f"{figures['maskcut.images_identical']:.0f} of "
            f"{figures['maskcut_reference.images']:.0f}; features differ from released-style ones "
            f"by {figures['features.max_difference']:.1g} of the largest at most"
        )
    return f"{text}."


def stage_tables(figures: Figures) -> list[str]:
    """Methods by stages, and by what these add up to."""
    sums = {
        "after_features_s": "after the features",
        "total_s": "in total",
        "images_per_s": "images/s",
        "throughput_images_per_s": "images/s after the features, "
        f"{figures.get('throughput.processes', 0):.0f} processes",
        "peak_mb": "most memory, MB",
        "refined_per_image": "masks refined an image",
        "masks_per_image": "masks kept an image",
        "images": "images",
    }
    stages = {f"{stage}_s": stage for stage in STAGES}
    return [
        table(
            ["", *columns.values()],
            [
                [
                    method.title,
                    *(number(figures, f"{name}.{column}", spread) for column in columns),
                ]
                for name, method in METHODS.items()
            ],
        )
        for columns, spread in ((stages, False), (sums, True))
    ]


def refiner_table(figures: Figures) -> str:
    """Refiners by cost and agreement."""
    columns = {
        "seconds_per_image": "seconds an image",
        "ratio_to_released": "times faster",
        "mean_iou": "mean IoU",
        "share_above_0.95": "share above 0.95",
        "min_iou": "lowest IoU",
        "peak_mb": "peak MB",
    }
    rows = [
        [name, *(number(figures, f"refiner.{name}.{column}") for column in columns)]
        for name in (RELEASED, *(name for name, refiner in REFINERS.items() if refiner))
    ]
    return table(["", *columns.values()], rows)


def bound(figures: Figures) -> str:
    """Where our time goes."""
    if "ours.total_s" not in figures:
        return ""
    whole = figures["ours.total_s"]
    shares = {stage: figures[f"ours.{stage}_s"] / whole for stage in STAGES}
    largest = max(shares, key=shares.get)
    listed = ", ".join(f"{stage} {share:.1%}" for stage, share in shares.items())
    return (
        f"Preset `best` costs {number(figures, 'total.best_to_ours')} times as much as `release` "
        f"(the whole way, {figures['best.images']:.0f} images). What bounds us: {largest}. Of "
        f"{whole:.2f} s an image: {listed}. The process computed for "
        f"{figures['ours.cpu_share']:.0%} of the time after the features; where this is well below "
        "100 %, something else was using the machine."
    )


def sweep_tables(figures: Figures) -> Iterator[tuple[str, str]]:
    """Title and table of each sweep, from figures named ``sweep.KIND.VALUE.FIGURE``."""
    for kind, title in SWEEPS.items():
        prefix = f"sweep.{kind}."
        cells = [name.removeprefix(prefix).split(".", 1) for name in figures if prefix in name]
        cells = [(value, name) for value, name in cells if not name.endswith(".iqr")]
        if cells:
            columns = list(dict.fromkeys(name for _, name in cells))
            values = sorted({value for value, _ in cells}, key=int)
            rows = [
                [value, *(number(figures, f"{prefix}{value}.{name}") for name in columns)]
                for value in values
            ]
            yield title, table([kind, *columns], rows)


def device_table(figures: Figures) -> str:
    """Everything about the device, by name."""
    names = [name for name in figures if name.startswith("device.")]
    rows = [[name.removeprefix("device."), number(figures, name)] for name in names]
    return table(["", ""], rows)


def store_table(figures: Figures) -> str:
    """What the store costs, and throughput by workers."""
    return table(["", ""], [[title, number(figures, name)] for title, name in STORE])


def summary(results: Results) -> str:
    """The ratios and notes, for the terminal."""
    rows = [*((title, name) for title, name, _ in RATIOS), BEST_COST]
    if "store.own_ms" in results.figures:
        rows = STORE
    lines = [f"{title:45} {number(results.figures, name):>16}" for title, name in rows]
    return "\n".join([*lines, *results.notes])


def write_markdown(tables: str, path: Path) -> None:
    """Write tables; in a file that has ``BEGIN`` and ``END``, between these."""
    text = path.read_text(encoding="utf-8") if path.is_file() else f"{BEGIN}\n{END}\n"
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(
            f"{path} has no place for the tables; give it the lines {BEGIN} and {END}, in this "
            "order and once each, or name a file that does not exist"
        )
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    with atomic_path(path) as part:
        part.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}", encoding="utf-8")


def plot(results: Results, path: Path) -> None:
    """Seconds an image by stage, and the ratios, side by side."""
    figures = results.figures
    with picture(path, dpi=150, ncols=2, figsize=(12, 4)) as (_, axes):
        left, right = axes[0]
        methods = [name for name in METHODS if f"{name}.total_s" in figures]
        start = np.zeros(len(methods))
        for stage in STAGES:
            seconds = np.array([figures[f"{name}.{stage}_s"] for name in methods])
            left.barh(methods, seconds, left=start, label=stage)
            start += seconds
        left.invert_yaxis()
        left.set(xlabel="seconds an image, one thread", title="whole labeler")
        left.legend(fontsize=8)
        ratios = [name for _, name, _ in RATIOS if name in figures]
        values = [figures[name] for name in ratios]
        spreads = [figures[f"{name}.iqr"] / 2 for name in ratios]
        right.barh(ratios, values, xerr=spreads, color="tab:gray")
        right.invert_yaxis()
        right.set(xscale="log" if ratios else "linear", xlabel="times faster")
        if ratios:
            ticks = [tick for tick in TICKS if tick <= 2 * max(values)]
            right.set(xlim=(min(1, *values), 2 * max(values)), xticks=ticks, xticklabels=ticks)
            right.minorticks_off()
        right.set_title("ratios ± half the interquartile range")
        right.tick_params(axis="y", labelsize=7)
