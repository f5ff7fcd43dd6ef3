import dataclasses

import pytest

from promerge_d2.cli.labeler_arguments import add_labeler_arguments, labeler_from, settings_help
from promerge_d2.cli.parser import ArgumentParser
from promerge_d2.labeler import LABELERS, GridConfig
from promerge_d2.utils.errors import UserError
from tests.helpers import TINY, use_tiny


def sections():
    """The help by labeler: the text below each heading, without what presets are."""
    parts = settings_help().split("settings of ")[1:]
    return {part.split()[0]: part.partition("  --preset ")[0] for part in parts}


def test_the_help_lists_settings_by_labeler():
    found = sections()
    shared = {field.name for field in dataclasses.fields(GridConfig)}
    for name in shared:
        assert f"    {name}: " in found["every"]
    own = {
        name: {field.name for field in dataclasses.fields(labeler.config_class)} - shared
        for name, labeler in LABELERS.items()
    }
    assert all(own.values())
    for setting in set().union(*own.values()):
        holders = {place for place, text in found.items() if f"    {setting}: " in text}
        assert holders == {name for name, settings in own.items() if setting in settings}


def test_the_help_says_what_a_preset_is():
    text = settings_help()
    paper = text.partition("--preset paper")[2].partition("--preset")[0].split()
    assert "grid=60x60" in paper
    assert "stride=6" in paper
    assert "side_rule=at_least_half" in paper


def parse(*arguments):
    parser = ArgumentParser()
    add_labeler_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("release", "promerge"),
        ("paper", "promerge"),
        ("best", "regions"),
        ("fast", "regions"),
        ("maskcut", "maskcut"),
    ],
)
def test_the_preset_alone_picks_the_labeler(monkeypatch, tmp_path, preset, name):
    weights = use_tiny(monkeypatch, tmp_path)
    options = ("--backbone", TINY.name, "--weights", str(weights), "--set", "pixels_per_patch=4")
    labeler = labeler_from(parse("--preset", preset, *options, "--grid", "5x7", "--refine", "none"))
    assert labeler.name == name
    assert labeler.describe(preset)["labeler"] == name
    config = labeler.config
    assert (config.grid, config.refine, config.pixels_per_patch) == ((5, 7), "none", 4)


def test_an_option_prints_the_settings(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help-settings")
    assert caught.value.code == 0
    assert capsys.readouterr().out == settings_help() + "\n"


def test_a_setting_without_a_value_is_named():
    with pytest.raises(UserError, match="'tau_b'"):
        labeler_from(parse("--set", "tau_b"))
