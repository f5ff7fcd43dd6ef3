import dataclasses

import pytest

from promerge_d2.labeler import LABELERS, MaskCutConfig, ProMergeConfig
from promerge_d2.utils.errors import UserError


def test_release_preset():
    """promerge.md A3, the column of the released code."""
    config = ProMergeConfig.from_preset("release")
    assert dataclasses.asdict(config) == {
        "grid": (60, 60),
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
        "refine": "mean_field",
        "refine_min_iou": 0.5,
        "pixels_per_patch": 8,
        "apply_exif": True,
        "keep_aspect": False,
        "upsampling": "nearest",
        "unconfirmed": "drop",
        "min_fragment": 0.0,
        "max_iou": 1.0,
        "proposals": "prompts",
        "min_patches": 4,
        "max_share": 0.95,
        "background_quantile": 0.7,
        "max_masks": 100,
        "tiles": 1,
    }
    assert config == ProMergeConfig()


def test_paper_preset_differs_in_prompts_and_side_rule():
    paper = dataclasses.asdict(ProMergeConfig.from_preset("paper"))
    release = dataclasses.asdict(ProMergeConfig.from_preset("release"))
    changed = {name: paper[name] for name in paper if paper[name] != release[name]}
    assert changed == {"stride": 6, "side_rule": "at_least_half"}


def test_maskcuts_release_preset():
    """promerge.md B7, under what both labelers share."""
    config = MaskCutConfig.from_preset("release")
    assert dataclasses.asdict(config) == {
        "grid": (60, 60),
        "refine": "mean_field",
        "refine_min_iou": 0.5,
        "pixels_per_patch": 8,
        "apply_exif": True,
        "keep_aspect": False,
        "upsampling": "nearest",
        "unconfirmed": "drop",
        "min_fragment": 0.0,
        "max_iou": 1.0,
        "tau": 0.15,
        "masks": 3,
        "void_iou": 0.5,
        "min_area": 0.01,
        "solver": "lanczos",
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tau", "1.5", "labeler setting tau is 1.5, not between -1 and 1"),
        ("masks", "0", "labeler setting masks is 0, not 1 or more"),
        ("void_iou", 2.0, "labeler setting void_iou is 2.0, not between 0 and 1"),
        ("min_area", -1.0, "labeler setting min_area is -1.0, not between 0 and 1"),
        ("solver", "eigsh", "labeler setting solver is 'eigsh', not lanczos or dense"),
        ("grid", "1", "labeler setting grid is (1, 1), not two sides of 2 or more"),
        ("stride", "4", "no labeler setting is named 'stride'"),
    ],
)
def test_maskcuts_bad_values_are_named(name, text, message):
    with pytest.raises(UserError) as caught:
        MaskCutConfig.from_preset("release", **{name: text})
    assert message in str(caught.value)


def test_a_preset_of_another_labeler_is_unknown():
    with pytest.raises(UserError, match=r"named 'paper'; known: release$"):
        MaskCutConfig.from_preset("paper")


@pytest.mark.parametrize("name", LABELERS)
def test_every_labeler_has_release_defaults_and_documented_settings(name):
    config_class = LABELERS[name].config_class
    assert config_class.from_preset("release") == config_class()
    described = config_class.__doc__ + config_class.__mro__[1].__doc__
    for field in dataclasses.fields(config_class):
        assert f"        {field.name}: " in described


def test_override_beats_preset():
    assert ProMergeConfig.from_preset("paper", stride=3).stride == 3
    assert ProMergeConfig.presets["paper"]["stride"] == 6


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("grid", "34", (34, 34)),
        ("grid", "40x60", (40, 60)),
        ("grid", "40X60", (40, 60)),
        ("grid", 34, (34, 34)),
        ("grid", (40, 60), (40, 60)),
        ("grid", [40, 60], (40, 60)),
        ("stride", "6", 6),
        ("tau_b", "0.25", 0.25),
        ("tau_b", "-1", -1.0),
        ("apply_exif", "true", True),
        ("apply_exif", "False", False),
        ("side_rule", "at_least_half", "at_least_half"),
        ("background_filter", "ioa", "ioa"),
        ("refine", "none", "none"),
    ],
)
def test_values_are_read(name, text, value):
    config = ProMergeConfig.from_preset("release", **{name: text})
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("grid", "34by34", "labeler setting grid: '34by34' is no HxW"),
        ("grid", "", "labeler setting grid: '' is no HxW"),
        ("grid", "3x4x5", "labeler setting grid is (3, 4, 5), not two sides of 2 or more"),
        ("grid", "1x60", "labeler setting grid is (1, 60), not two sides of 2 or more"),
        ("grid", 0, "labeler setting grid is (0, 0), not two sides of 2 or more"),
        ("stride", "2.5", "labeler setting stride: '2.5' is no int"),
        ("stride", "0", "labeler setting stride is 0, not 1 or more"),
        ("pixels_per_patch", 0, "labeler setting pixels_per_patch is 0, not 1 or more"),
        ("tau_b", "high", "labeler setting tau_b: 'high' is no float"),
        ("tau_b", "nan", "labeler setting tau_b is nan, not between -1 and 1"),
        ("tau_b", 1.01, "labeler setting tau_b is 1.01, not between -1 and 1"),
        ("tau_merge_f", "-2", "labeler setting tau_merge_f is -2.0, not between -1 and 1"),
        ("tau_ioa", -0.1, "labeler setting tau_ioa is -0.1, not between 0 and 1"),
        ("min_background", "10", "labeler setting min_background is 10.0, not between 0 and 1"),
        ("apply_exif", "yes", "labeler setting apply_exif: 'yes' is no bool"),
        ("side_rule", "half", "side_rule is 'half', not more_than_half or at_least_half"),
        (
            "background_filter",
            "IoA",
            "background_filter is 'IoA', not cascade or ioa or feature or none",
        ),
        ("refine", "crf", "labeler setting refine is 'crf', not mean_field or mean_field_near"),
    ],
)
def test_bad_values_are_named(name, text, message):
    with pytest.raises(UserError) as caught:
        ProMergeConfig.from_preset("release", **{name: text})
    assert message in str(caught.value)


def test_the_constructor_checks_as_well():
    with pytest.raises(UserError, match="tau_f is 3, not between -1 and 1"):
        ProMergeConfig(tau_f=3)


@pytest.mark.parametrize(
    ("wrong", "near"), [("tau_merge_iou", "tau_merge_ioa"), ("strides", "stride"), ("gird", "grid")]
)
def test_misspelt_setting_names_the_near_one(wrong, near):
    with pytest.raises(UserError) as caught:
        ProMergeConfig.from_preset("release", **{wrong: 1})
    assert f"no labeler setting is named {wrong!r} (did you mean {near}?)" in str(caught.value)
    assert "known: grid, keep_aspect, " in str(caught.value)
    assert ", stride, tau_b, " in str(caught.value)


def test_a_setting_like_no_other():
    with pytest.raises(UserError) as caught:
        ProMergeConfig.from_preset("release", zzz=1)
    assert "did you mean" not in str(caught.value)


def test_unknown_preset():
    with pytest.raises(UserError, match="no preset is named 'released'; known: paper, release"):
        ProMergeConfig.from_preset("released")


def test_settings_cannot_change_later():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ProMergeConfig().stride = 2


def test_grid_that_keeps_the_shape_of_the_image():
    """640 x 480 pixels in 3,600 patches: 9.24 pixels a patch."""
    best = ProMergeConfig.from_preset("best")
    assert best.grid_for(480, 640) == (52, 69)
    assert best.grid_for(640, 480) == (69, 52)
    assert best.grid_for(500, 500) == (60, 60)
    assert best.grid_for(3, 4000) == (2, 2191)
    assert ProMergeConfig.from_preset("release").grid_for(480, 640) == (60, 60)
