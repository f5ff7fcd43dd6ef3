"""What is measured: every way of labelling, and the work that they are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.speed.released import ReleasedExtractor, ReleasedLabeler, ReleasedMaskCut
from promerge_d2.features import Backbone, FeatureExtractor
from promerge_d2.features.extractor import build_vit, check_device
from promerge_d2.labeler import GridConfig, Labeler, ProMergeConfig, ProMergeLabeler, RegionsLabeler
from promerge_d2.labeler.maskcut.labeler import MaskCutLabeler
from promerge_d2.labeler.regions.config import RegionsConfig
from promerge_d2.utils.errors import UserError


@dataclass(frozen=True)
class Method:
    """One way of labelling.

    Attributes:
        title: in tables.
        preset: of the labeler, below the workload's settings.
        labeler: finds the masks.
        extractor: gives the features.
        settings: of the labeler, on top of the workload's.
    """

    title: str
    preset: str
    labeler: type[Labeler]
    extractor: type[FeatureExtractor]
    settings: Mapping[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "released": Method("ProMerge, released-style", "release", ReleasedLabeler, ReleasedExtractor),
    "ours": Method("`promerge`", "release", ProMergeLabeler, FeatureExtractor),
    "best": Method("`regions` (preset `best`)", "best", RegionsLabeler, FeatureExtractor),
    "fast": Method(
        "`regions` (preset `fast`)",
        "fast",
        RegionsLabeler,
        FeatureExtractor,
        {"grid": RegionsConfig.presets["fast"]["grid"]},  # whatever grid the others have
    ),
    "maskcut": Method("`maskcut`", "maskcut", MaskCutLabeler, FeatureExtractor),
    "maskcut_reference": Method(
        "MaskCut, released-style", "maskcut", ReleasedMaskCut, ReleasedExtractor
    ),
}
"""By the names that figures carry."""

PRESETS = {"release": "ours", "best": "best", "fast": "fast"}
"""Those whose way from file to label file is measured, to their names in ``METHODS``."""


@dataclass(frozen=True)
class Workload:
    """What every method works with; plain data, so that it can go to other processes.

    Attributes:
        backbone: the registry's entry.
        weights: a local weights file instead of the official one.
        random_weights: the network's speed without its weights; they are seeded.
        device: where features are computed.
        precision: of the network's products, see ``FeatureExtractor``.
        compiled: likewise.
        settings: of the labelers; a labeler takes those that it knows.

    Raises:
        UserError: no labeler knows a setting, or its value is bad.
    """

    backbone: Backbone
    weights: str | None = None
    random_weights: bool = False
    device: str = "cpu"
    precision: str = "fp32"
    compiled: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known: set[str] = set()
        for method in METHODS.values():
            known |= dataclasses.asdict(self.config(method)).keys()
        if unknown := self.settings.keys() - known:
            raise UserError(
                f"no labeler setting is named {', '.join(sorted(unknown))}; known: "
                f"{', '.join(sorted(known))}"
            )

    def with_settings(self, settings: Mapping[str, Any]) -> Workload:
        """Return the same with other settings on top."""
        return dataclasses.replace(self, settings={**self.settings, **settings})

    def config(self, method: Method) -> GridConfig:
        """Make a method's settings."""
        config_class = method.labeler.config_class
        known = {item.name for item in dataclasses.fields(config_class)}
        own = {name: value for name, value in self.settings.items() if name in known}
        return config_class.from_preset(method.preset, **{**own, **method.settings})

    @property
    def ours(self) -> ProMergeConfig:
        """The settings of ``promerge``."""
        config = self.config(METHODS["ours"])
        assert isinstance(config, ProMergeConfig)
        return config

    def labeler(self, method: Method) -> Labeler:
        """Make a method's labeler, its network loaded."""
        return method.labeler(self.extractor(method.extractor), self.config(method))

    def extractor(self, kind: type[FeatureExtractor]) -> FeatureExtractor:
        """Make the network as ``kind`` runs it."""
        check_device(self.device)
        if not self.random_weights:
            return kind.from_name(
                self.backbone.name,
                self.weights,
                device=self.device,
                precision=self.precision,
                compiled=self.compiled,
            )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            vit = build_vit(self.backbone)
        extractor = kind(self.backbone, vit, precision=self.precision, compiled=self.compiled)
        return extractor.to(self.device)
