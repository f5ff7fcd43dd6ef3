"""Presets and settings, as far as they are the same for all labelers."""

import dataclasses

import pytest

from promerge_d2.labeler import LABELERS, PRESETS, GridConfig, ProMergeConfig, labeler_of_preset
from promerge_d2.utils.errors import UserError


def test_every_preset_picks_its_labeler():
    names = {preset: labeler.name for preset, labeler in PRESETS.items()}
    assert names.items() >= {
        ("paper", "promerge"),
        ("release", "promerge"),
        ("best", "regions"),
        ("maskcut", "maskcut"),
    }
    assert labeler_of_preset("best") is LABELERS["regions"]
    with pytest.raises(UserError, match=r"'bset'.*best"):
        labeler_of_preset("bset")


@pytest.mark.parametrize("name", LABELERS)
def test_every_setting_is_documented(name):
    config_class = LABELERS[name].config_class
    described = config_class.__doc__ + GridConfig.__doc__
    for field in dataclasses.fields(config_class):
        assert f"        {field.name}: " in described


@pytest.mark.parametrize("name", LABELERS)
def test_the_release_refines_alike_for_its_labelers(name):
    config = LABELERS[name].config_class()
    assert config.grid == (60, 60)
    assert config.pixels_per_patch == 8
    assert config.apply_exif
    if name != "regions":
        assert (config.refine, config.refine_min_iou) == ("mean_field", 0.5)
        assert config.grid_for(480, 640) == (60, 60)


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
    ("name", "text", "said"),
    [
        ("grid", "34by34", "'34by34'"),
        ("grid", "", "''"),
        ("grid", "3x4x5", "(3, 4, 5)"),
        ("grid", "1x60", "(1, 60)"),
        ("grid", 0, "(0, 0)"),
        ("stride", "2.5", "'2.5'"),
        ("pixels_per_patch", 0, "0"),
        ("tau_b", "high", "'high'"),
        ("apply_exif", "yes", "'yes'"),
        ("refine", "crf", "'crf'"),
        ("refine", "crf", "mean_field"),
    ],
)
def test_bad_values_are_named(name, text, said):
    with pytest.raises(UserError) as caught:
        ProMergeConfig.from_preset("release", **{name: text})
    assert name in str(caught.value)
    assert said in str(caught.value)


def test_the_constructor_checks_as_well():
    with pytest.raises(UserError, match=r"tau_f.* 3"):
        ProMergeConfig(tau_f=3)


@pytest.mark.parametrize(
    ("wrong", "near"), [("tau_merge_iou", "tau_merge_ioa"), ("strides", "stride"), ("gird", "grid")]
)
def test_misspelt_setting_names_the_near_one(wrong, near):
    with pytest.raises(UserError) as caught:
        ProMergeConfig.from_preset("release", **{wrong: 1})
    assert repr(wrong) in str(caught.value)
    assert f"did you mean {near}?" in str(caught.value)
    for field in dataclasses.fields(ProMergeConfig):
        assert field.name in str(caught.value)


def test_a_setting_like_no_other():
    with pytest.raises(UserError) as caught:
        ProMergeConfig.from_preset("release", zzz=1)
    assert "did you mean" not in str(caught.value)


def test_unknown_preset():
    with pytest.raises(UserError, match=r"'released'.*paper, release"):
        ProMergeConfig.from_preset("released")


def test_settings_cannot_change_later():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ProMergeConfig().stride = 2
