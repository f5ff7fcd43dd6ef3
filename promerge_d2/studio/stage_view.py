"""A photograph's features once, then a labeler's stages for any thresholds.

The panels are those of ``promerge_d2.visualization.stages``, drawn by the page: what they would
draw on matplotlib's axes is taken down as plain data, in units of the patch grid.

Shape letters: C channels, H and W rows and columns of the patch grid, M masks.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import inspect
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from promerge_d2.features import BACKBONES
from promerge_d2.features.weights import cached_path
from promerge_d2.labeler import LABELERS, GridConfig, ImageFeatures, Labeler, LabelResult
from promerge_d2.pseudo_labels.inputs import TarImage
from promerge_d2.studio.outlines import trace
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.threads import one_thread
from promerge_d2.visualization.overlay import color_of
from promerge_d2.visualization.stages.promerge import affinity
from promerge_d2.visualization.stages.regions import ranked
from promerge_d2.visualization.stages.sheet import PANELS
from promerge_d2.visualization.stages.view import COMMON, View, photograph, refined

SLIDERS: dict[str, dict[str, tuple[float, float, float]]] = {
    "promerge": {
        "stride": (1, 12, 1),
        "tau_b": (-0.2, 0.8, 0.01),
        "component_share": (0, 1, 0.05),
        "background_vote": (0, 1, 0.05),
        "min_background": (0, 1, 0.05),
        "tau_f": (-0.5, 1, 0.01),
        "tau_ioa": (0, 1, 0.05),
        "tau_merge_ioa": (0, 1, 0.05),
        "tau_merge_gate": (0, 1, 0.05),
        "tau_merge_f": (-0.5, 1, 0.01),
    },
    "regions": {
        "min_patches": (2, 60, 1),
        "max_share": (0.05, 1, 0.05),
        "background_quantile": (0, 1, 0.05),
        "max_iou": (0.05, 1, 0.05),
        "max_masks": (1, 200, 1),
    },
    "maskcut": {
        "tau": (-0.2, 0.8, 0.01),
        "masks": (1, 10, 1),
        "void_iou": (0, 1, 0.05),
        "min_area": (0, 0.2, 0.005),
    },
}
"""By labeler, the settings that act on the patch grid: lowest, highest, step."""

_LEFT_OUT = (photograph, affinity, refined, ranked)  # need the refiner, or a picture of their own
_KEPT = 8  # photographs whose features are held: at 60 x 60 with 768 channels 11 MB each
_FINE = 4  # points by which a patch is traced


class StageView:
    """The stages of the labeler that made a label file.

    Args:
        info: of the label file, see ``Labeler.describe``.
        weights: a local file of the backbone's weights, where they are not found by name.
    """

    def __init__(self, info: dict[str, Any], weights: str | None = None) -> None:
        self._info = info
        self._weights = weights
        self._labeler: Labeler | None = None
        self._features: collections.OrderedDict[int, ImageFeatures] = collections.OrderedDict()
        self._lock = threading.Lock()  # the network and the stages: one at a time

    @property
    def unavailable(self) -> str:
        """Why there is no stage view of this file; empty where there is one."""
        info = self._info
        if info.get("labeler") not in LABELERS or not isinstance(info.get("backbone"), dict):
            return "this file does not say which labeler of promerge_d2 made it"
        backbone = BACKBONES.get(info["backbone"].get("name"))
        if backbone is None:
            return f"the backbone {info['backbone'].get('name')!r} is not known here"
        if self._weights is None and backbone.url and not cached_path(backbone.url).is_file():
            return (
                f"the weights of {backbone.name} are not on this machine: label one photograph "
                "with it, which fetches them, or start the studio with --weights FILE"
            )
        return ""

    def describe(self) -> dict[str, Any]:
        """Describe the labeler and its sliders, or say why there is none."""
        reason = self.unavailable
        if reason:
            return {"unavailable": reason}
        name = self._info["labeler"]
        settings = {**_defaults(name), **self._info["settings"]}
        helps = _help(LABELERS[name].config_class)
        sliders = [
            {
                "name": setting,
                "low": low,
                "high": high,
                "step": step,
                "value": settings[setting],
                "help": helps.get(setting, ""),
            }
            for setting, (low, high, step) in SLIDERS[name].items()
        ]
        backbone = self._info["backbone"]["name"]
        return {
            "unavailable": "",
            "title": f"{LABELERS[name].title}, preset {self._info['preset']}, {backbone}",
            "sliders": sliders,
        }

    def run(self, place: int, photo: Path | TarImage, settings: dict[str, float]) -> dict[str, Any]:
        """Take a photograph through the stages; its features are computed the first time.

        Args:
            place: of the photograph.
            photo: its file.
            settings: of ``SLIDERS``, in place of those of the file.

        Returns:
            ``rows`` and ``columns`` of the grid, ``panels``, ``masks`` (how many), the ``reason``
            when there are none, and ``seconds``: ``features`` (0 if they were there), ``stages``.

        Raises:
            UserError: there is no stage view, or a setting is none or out of its range.
            ImageError: the photograph cannot be read.
        """
        with self._lock, one_thread():  # as in labelling, so that the masks are the same
            labeler = self._get_labeler()
            config = self._configure(settings)
            started = time.perf_counter()
            image = self._get_features(labeler, place, photo)
            computed = time.perf_counter()
            grid = labeler.grid_masks(image.features, config)
            panels = _panels(labeler, str(self._info["preset"]), config, image, grid)
            finished = time.perf_counter()
        rows, columns = image.features.shape[-2:]
        return {
            "rows": rows,
            "columns": columns,
            "panels": panels,
            "masks": 0 if grid.merged is None else len(grid.merged),
            "reason": f"{grid.reason}: {labeler.reasons[grid.reason]}" if grid.reason else "",
            "seconds": {"features": computed - started, "stages": finished - computed},
        }

    def label(self, place: int, photo: Path | TarImage, settings: dict[str, float]) -> LabelResult:
        """Label a photograph to the end, refinement included; arguments as of ``run``."""
        with self._lock, one_thread():
            labeler = self._get_labeler()
            config = self._configure(settings)
            image = self._get_features(labeler, place, photo)
            return labeler.postprocess(image, config)

    def _get_labeler(self) -> Labeler:
        if reason := self.unavailable:
            raise UserError(f"no stage view: {reason}")
        if self._labeler is None:
            info, made = self._info, self._info["backbone"]
            labeler = LABELERS[info["labeler"]].from_preset(
                info["preset"],
                backbone=made["name"],
                weights=self._weights,
                facet=made["facet"],
                center=made["center"],
                precision=made["precision"],
                **info["settings"],
            )
            found = labeler.extractor.weights_sha256
            if found != made["weights_sha256"]:
                raise UserError(
                    f"no stage view: the weights of {made['name']} here are not those that made "
                    f"the file: SHA-256 {found} here, {made['weights_sha256']} there"
                )
            self._labeler = labeler
        return self._labeler

    def _configure(self, settings: dict[str, float]) -> GridConfig:
        ranges = SLIDERS[self._info["labeler"]]
        for name, value in settings.items():
            if name not in ranges:
                raise UserError(f"no slider is named {name!r}; there are {', '.join(ranges)}")
            low, high, _ = ranges[name]
            if not low <= value <= high:
                raise UserError(f"{name} is {value}; it takes {low} to {high}")
        whole = {
            name for name, value in _defaults(self._info["labeler"]).items() if type(value) is int
        }
        chosen = {n: int(value) if n in whole else value for n, value in settings.items()}
        config_class = LABELERS[self._info["labeler"]].config_class
        return config_class.from_preset(
            self._info["preset"], **{**self._info["settings"], **chosen}
        )

    def _get_features(self, labeler: Labeler, place: int, photo: Path | TarImage) -> ImageFeatures:
        if place not in self._features:
            file = photo.open() if isinstance(photo, TarImage) else photo
            (self._features[place],) = labeler.forward([labeler.processor.preprocess(file)])
            while len(self._features) > _KEPT:
                self._features.popitem(last=False)
        self._features.move_to_end(place)
        return self._features[place]


@dataclass
class _Layers:
    """What a panel draws, in the place of matplotlib's axes; units are patches."""

    pictures: list[dict[str, Any]] = field(default_factory=list)
    paths: list[dict[str, str]] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)
    scale: list[float] = field(default_factory=list)

    def scatter(self, xs: np.ndarray, ys: np.ndarray, c: Sequence[str], **options: Any) -> None:
        """Take down dots, as ``Axes.scatter``."""
        self.points += [
            {"x": x, "y": y, "color": color}
            for x, y, color in zip(xs.tolist(), ys.tolist(), c, strict=True)
        ]


class _Recorder(View):
    """A ``View`` whose panels are taken down as data; what is drawn, see ``View``."""

    def show(self, axes: Any, picture: np.ndarray, **options: Any) -> Any:
        """Take down a picture of the grid."""
        if np.ptp(picture):  # else it is the faint photograph, which the page has
            axes.pictures.append({"rgb": _packed(picture), "alpha": 1.0})

    def show_masks(self, axes: Any, masks: np.ndarray) -> None:
        """Take down masks."""
        order = np.argsort(-masks.sum(axis=(1, 2)), kind="stable")  # large ones below
        for index in order.tolist():
            color = "#{:02x}{:02x}{:02x}".format(*color_of(index))
            axes.paths.append({"path": _cells(masks[index]), "color": color})

    def show_heat(self, axes: Any, values: np.ndarray, low: float = 0, high: float = 1) -> Any:
        """Take down values as colours."""
        shares = (np.asarray(values, np.float64) - low) / max(high - low, 1e-9)
        colors = matplotlib.colormaps["viridis"](shares.clip(0, 1))[..., :3]
        axes.pictures.append({"rgb": _packed(np.round(255 * colors)), "alpha": 0.7})
        axes.scale[:] = [float(low), float(high)]

    def outline(self, axes: Any, mask: np.ndarray, width: float = 1.5) -> None:
        """Take down an outline."""
        axes.paths.append({"path": _cells(mask), "color": ""})

    def show_one_by_one(
        self, axes: Any, masks: Sequence[np.ndarray] | np.ndarray, words: Sequence[str]
    ) -> None:
        """Take down masks, all on one photograph."""
        self.show_masks(axes, np.asarray(masks))


def _panels(
    labeler: Labeler, preset: str, config: GridConfig, image: ImageFeatures, grid: Any
) -> list[dict[str, Any]]:
    """Take down the panels of a labeler, in the order of its stages."""
    features = image.features[0]
    view = _Recorder(
        "",
        np.zeros((*features.shape[1:], 3), np.uint8),
        _Configured(labeler, config),  # type: ignore[arg-type]
        preset,
        features,
        grid,
        LabelResult(image.height, image.width, reason=grid.reason),
    )
    panels = []
    for title, draw in PANELS.get(labeler.name, COMMON):
        if draw in _LEFT_OUT:
            continue
        layers = _Layers()
        caption = draw(view, layers)  # type: ignore[arg-type]
        panel: dict[str, Any] = {"title": title, "reached": caption is not None}
        if caption is not None:
            panel |= dataclasses.asdict(layers)
            panel |= {"found": caption.found, "shows": caption.shows}
            panel["threshold"] = caption.threshold
        panels.append(panel)
    return panels


class _Configured:
    """A labeler with other settings."""

    def __init__(self, labeler: Labeler, config: GridConfig) -> None:
        self._labeler = labeler
        self.config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._labeler, name)


def _packed(picture: np.ndarray) -> str:
    """Return an RGB picture (H, W, 3) as base64 of its bytes."""
    return base64.b64encode(np.ascontiguousarray(picture, np.uint8).tobytes()).decode()


def _cells(mask: np.ndarray) -> str:
    """Trace a mask (H, W) along the edges of its patches, in units of patches."""
    fine = np.repeat(np.repeat(np.asarray(mask, bool), _FINE, axis=0), _FINE, axis=1)
    return trace(fine, 0.5, 1 / _FINE)


def _defaults(name: str) -> dict[str, Any]:
    config_class = LABELERS[name].config_class
    return {each.name: each.default for each in dataclasses.fields(config_class)}


def _help(config_class: type[GridConfig]) -> dict[str, str]:
    """Read what each setting means out of a config's docstring."""
    text = (inspect.getdoc(config_class) or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in found}
