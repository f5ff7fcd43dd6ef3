"""Random settings and features of ProMerge, with what the slow reference makes of them."""

import numpy as np

from promerge_d2.labeler import ProMergeConfig
from tests.labeler.helpers import blob_features, lattice_features
from tests.labeler.reference import Settings, promerge_grid

STAGES = ("foreground", "candidates", "background", "pruned", "merged")
FILTERS = ("cascade", "ioa", "feature", "none")
SIZES = ((10, 10), (7, 12), (12, 7), (9, 9))
SAFE = 1e-5  # no float this near to its threshold, so float32 and float64 must decide alike


def config_of(settings: Settings) -> ProMergeConfig:
    return ProMergeConfig(
        stride=settings.stride,
        tau_b=settings.tau_b,
        side_rule=settings.side_rule,
        component_share=settings.component_ratio,
        background_vote=settings.vote,
        min_background=settings.min_background,
        background_filter=settings.background_filter,
        tau_ioa=settings.filter_ioa,
        tau_f=settings.filter_feature,
        tau_merge_ioa=settings.merge_ioa,
        tau_merge_gate=settings.merge_gate,
        tau_merge_f=settings.merge_feature,
    )


def draw_settings(rng: np.random.Generator, kind: str) -> Settings:
    return Settings(
        stride=int(rng.integers(1, 7)),
        tau_b=float(rng.uniform(0, 0.5)),
        side_rule=str(rng.choice(["more_than_half", "at_least_half"])),
        component_ratio=float(rng.choice([0.1, 0.5, 1.0])),
        vote=float(rng.choice([0.3, 0.5, 0.8])),
        min_background=float(rng.choice([0.0, 0.1, 0.3])),
        background_filter=kind,
        filter_ioa=float(rng.choice([0.5, 0.8, 1.0])),
        filter_feature=float(rng.uniform(-0.1, 0.6)),
        merge_ioa=float(rng.choice([0.3, 0.5, 0.8])),
        merge_gate=float(rng.choice([0.0, 0.1, 0.4])),
        merge_feature=float(rng.uniform(-0.1, 0.8)),
    )


def draw(seed: int, kind: str = "cascade"):
    """Features, settings and the reference's result; drawn anew while a float is on a cut."""
    rng = np.random.default_rng([seed, FILTERS.index(kind)])
    make = lattice_features if seed % 5 == 4 else blob_features
    while True:
        features = make(rng, *SIZES[seed % 4])
        settings = draw_settings(rng, kind)
        result = promerge_grid(features, settings)
        if min(result.margins) > SAFE:
            return features, settings, result
