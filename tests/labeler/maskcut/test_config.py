import dataclasses

import pytest

from promerge_d2.labeler import MaskCutConfig
from promerge_d2.utils.errors import UserError


def test_the_only_preset_has_the_released_numbers():
    """Those that no other labeler has; see docs/algorithm.md for where they come from."""
    config = MaskCutConfig.from_preset("maskcut")
    assert config == MaskCutConfig()
    own = {f.name for f in dataclasses.fields(MaskCutConfig)}
    own -= {f.name for f in dataclasses.fields(MaskCutConfig.__base__)}
    assert {name: getattr(config, name) for name in own} == {
        "tau": 0.15,
        "masks": 3,
        "void_iou": 0.5,
        "min_area": 0.01,
    }


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("tau", "1.5", "1.5"),
        ("masks", "0", "0"),
        ("void_iou", 2.0, "2.0"),
        ("min_area", -1.0, "-1.0"),
        ("grid", "1", "(1, 1)"),
    ],
)
def test_bad_values_are_named(name, value, said):
    with pytest.raises(UserError) as caught:
        MaskCutConfig.from_preset("maskcut", **{name: value})
    assert name in str(caught.value)
    assert said in str(caught.value)


def test_a_preset_and_a_setting_of_another_labeler_are_unknown():
    with pytest.raises(UserError, match=r"'paper'.*maskcut"):
        MaskCutConfig.from_preset("paper")
    with pytest.raises(UserError, match="'stride'"):
        MaskCutConfig.from_preset("maskcut", stride="4")
