import dataclasses

import pytest

from promerge_d2.labeler import ProMergeConfig
from promerge_d2.utils.errors import UserError


def test_release_preset():
    """The released code's numbers, see docs/algorithm.md."""
    config = ProMergeConfig.from_preset("release")
    assert config == ProMergeConfig()
    own = {f.name for f in dataclasses.fields(ProMergeConfig)}
    own -= {f.name for f in dataclasses.fields(ProMergeConfig.__base__)}
    assert {name: getattr(config, name) for name in own} == {
        "stride": 4,
        "tau_b": 0.2,
        "side_rule": "more_than_half",
        "component_share": 0.5,
        "background_vote": 0.5,
        "min_background": 0.1,
        "background_filter": "cascade",
        "tau_ioa": 0.8,
        "tau_f": 0.1,
        "tau_merge_ioa": 0.5,
        "tau_merge_gate": 0.1,
        "tau_merge_f": 0.1,
        "masks_device": "numba",
    }


def test_paper_preset_differs_in_prompts_and_side_rule():
    paper = dataclasses.asdict(ProMergeConfig.from_preset("paper"))
    release = dataclasses.asdict(ProMergeConfig.from_preset("release"))
    changed = {name: paper[name] for name in paper if paper[name] != release[name]}
    assert changed == {"stride": 6, "side_rule": "at_least_half"}


def test_override_beats_preset():
    assert ProMergeConfig.from_preset("paper", stride=3).stride == 3
    assert ProMergeConfig.presets["paper"]["stride"] == 6


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("stride", "0", "0"),
        ("tau_b", "nan", "nan"),
        ("tau_b", 1.01, "1.01"),
        ("tau_merge_f", "-2", "-2.0"),
        ("tau_ioa", -0.1, "-0.1"),
        ("min_background", "10", "10.0"),
        ("side_rule", "half", "'half'"),
        ("side_rule", "half", "at_least_half"),
        ("background_filter", "IoA", "'IoA'"),
        ("background_filter", "IoA", "feature"),
    ],
)
def test_bad_values_are_named(name, value, said):
    with pytest.raises(UserError) as caught:
        ProMergeConfig.from_preset("release", **{name: value})
    assert name in str(caught.value)
    assert said in str(caught.value)
