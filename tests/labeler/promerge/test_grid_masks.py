"""The grid stages together, against the slow reference, and what must hold for any input."""

import collections
import dataclasses

import numpy as np
import pytest
import torch

from promerge_d2.labeler import ProMergeConfig, grid_masks
from tests.labeler.helpers import as_bytes
from tests.labeler.promerge.helpers import FILTERS, STAGES, config_of, draw
from tests.labeler.reference import Settings, promerge_grid


@pytest.mark.parametrize("kind", FILTERS)
def test_every_stage_equals_the_reference(kind):
    seen = collections.Counter()
    for seed in range(80):
        features, settings, expected = draw(seed, kind)
        ours = grid_masks(torch.from_numpy(features), config_of(settings))
        where = (seed, settings)
        assert ours.reason == expected.stopped, where
        for stage in STAGES:
            mine, theirs = getattr(ours, stage), getattr(expected, stage)
            assert (mine is None) == (theirs is None), (stage, where)
            if mine is None:
                continue
            assert mine.dtype == bool
            assert mine.shape[-2:] == features.shape[1:]
            if stage == "background":
                assert np.array_equal(mine, theirs), where
            else:
                assert as_bytes(mine) == as_bytes(theirs), (stage, where)
        seen[ours.reason] += 1
        if expected.merged:
            distinct = {mask.tobytes() for mask in expected.foreground}
            seen["filtered"] += len(expected.pruned) < len(distinct)
            seen["united"] += len(expected.merged) < len(set(as_bytes(expected.pruned)))
    # the sweep must have put every stage to work
    assert seen[None] >= 10
    assert seen["united"] >= 5
    assert seen["no_foreground"] >= 1
    if kind == "none":
        assert not {"no_background", "small_background", "all_pruned"} & seen.keys()
    else:
        assert seen["filtered"] >= 10
        assert seen["no_background"] >= 1
    if kind in ("cascade", "feature"):
        assert seen["all_pruned"] >= 1


@pytest.mark.parametrize("rule", ["more_than_half", "at_least_half"])
def test_the_order_promised_is_the_order_given(rule):
    for seed in range(12):
        features, settings, _ = draw(seed)
        settings.side_rule = rule
        expected = promerge_grid(features, settings)
        ours = grid_masks(torch.from_numpy(features), config_of(settings))
        # by prompt, then by the component's first patch; then in order of acceptance
        assert [m.tobytes() for m in ours.foreground] == [m.tobytes() for m in expected.foreground]
        if expected.pruned is None:
            continue
        assert [m.tobytes() for m in ours.pruned] == [m.tobytes() for m in expected.pruned]
        keys = [(-int(m.sum()), int(m.ravel().argmax())) for m in ours.merged]
        assert keys == sorted(keys)


def test_the_release_preset_on_its_own_grid():
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(3):
        features = np.zeros((8, 30, 30), np.float32)
        features[0] = 1
        for channel in range(1, 5):
            r, c = rng.integers(1, 20, 2)
            features[:, r : r + 8, c : c + 7] = 0
            features[channel, r : r + 8, c : c + 7] = 1
        features += rng.normal(size=features.shape).astype(np.float32) * 0.15
        expected = promerge_grid(features, Settings())
        assert min(expected.margins) > 1e-7
        ours = grid_masks(torch.from_numpy(features), ProMergeConfig.from_preset("release"))
        assert as_bytes(ours.merged) == as_bytes(expected.merged)
        found += len(ours.merged)
    assert found >= 6


def test_same_input_same_bytes_in_the_same_order():
    for seed in range(6):
        features, settings, _ = draw(seed)
        runs = [grid_masks(torch.from_numpy(features.copy()), config_of(settings)) for _ in "ab"]
        for stage in STAGES:
            first, second = (getattr(run, stage) for run in runs)
            assert (first is None and second is None) or np.array_equal(first, second)


def check_on_a_device(features, config):
    """Torch's CPU device against the CPU without one; how many masks there are."""
    theirs = grid_masks(features, config)
    ours = grid_masks(features, dataclasses.replace(config, masks_device="cpu"))
    assert ours.reason == theirs.reason
    for stage in STAGES:
        mine, expected = getattr(ours, stage), getattr(theirs, stage)
        assert (mine is None and expected is None) or np.array_equal(mine, expected)
    return 0 if ours.merged is None else len(ours.merged)


def test_a_device_of_torch_finds_the_same_masks():
    drawn = [draw(seed) for seed in range(20)]
    found = (
        check_on_a_device(torch.from_numpy(f), config_of(settings)) for f, settings, _ in drawn
    )
    assert sum(found) > 20
    features, settings, _ = drawn[0]
    config = dataclasses.replace(config_of(settings), masks_device="meta")
    with pytest.raises(NotImplementedError, match="meta"):  # it is asked, and has no numbers
        grid_masks(torch.from_numpy(features), config)


def test_a_device_of_torch_finds_the_golden_masks(shared_data):
    files = sorted((shared_data / "golden").glob("*.npz"))
    assert files
    for file in files:
        golden = np.load(file)
        config = ProMergeConfig(
            stride=int(golden["stride"]),
            tau_b=float(golden["bipartition_tau"]),
            tau_f=float(golden["foreground_include_tau"]),
            masks_device="cpu",
        )
        stages = grid_masks(torch.from_numpy(golden["features"].astype(np.float32)), config)
        merged = stages.merged if stages.reason is None else []
        assert as_bytes(merged) == as_bytes(golden.get("merged", []))


def test_input_is_left_alone():
    features, settings, _ = draw(0)
    tensor = torch.from_numpy(features.copy())
    grid_masks(tensor, config_of(settings))
    assert np.array_equal(tensor.numpy(), features)


def test_scaling_the_features_changes_nothing():
    for seed in (0, 1, 2, 5):
        features, settings, expected = draw(seed)
        ours = grid_masks(torch.from_numpy(features * 64), config_of(settings))
        assert as_bytes(ours.foreground) == as_bytes(expected.foreground)
        assert ours.reason == expected.stopped


def distinct_areas(masks) -> bool:
    distinct = {mask.tobytes(): int(mask.sum()) for mask in masks}
    return len(set(distinct.values())) == len(distinct)


def test_transposing_the_image_transposes_the_masks():
    """Prompts lie on the transposed places; only ties of area may come in another order."""
    compared = collections.Counter()
    for seed in range(60):
        features, settings, expected = draw(seed)
        turned = np.ascontiguousarray(features.transpose(0, 2, 1))
        ours = grid_masks(torch.from_numpy(turned), config_of(settings))
        for stage in STAGES:
            mine, theirs = getattr(ours, stage), getattr(expected, stage)
            if stage == "pruned" and not distinct_areas(expected.foreground):
                break
            assert (mine is None) == (theirs is None)
            if mine is None:
                break
            if stage == "background":
                mine, theirs = mine[None], theirs[None]
            assert as_bytes(m.T for m in mine) == as_bytes(theirs), (seed, stage)
            compared[stage] += len(mine) > 0
    assert compared["foreground"] >= 30
    assert compared["merged"] >= 5


@pytest.mark.parametrize("kind", FILTERS)
def test_equal_features_everywhere_are_all_background(kind):
    stages = grid_masks(torch.ones(4, 6, 6), ProMergeConfig(stride=2, background_filter=kind))
    assert stages.reason == "no_foreground"
    assert stages.foreground.shape == (0, 6, 6)
    assert len(stages.candidates) == 9
    assert stages.pruned is None


def test_zero_features_make_no_mask():
    stages = grid_masks(torch.zeros(4, 6, 6), ProMergeConfig(stride=2))
    assert stages.reason == "no_foreground"
    assert len(stages.foreground) == len(stages.candidates) == 0


def square_features(height=6, width=6):
    """Scenery along axis 0 and an object of rows 2, 3 and columns 2 to 4 along axis 1."""
    features = torch.zeros(3, height, width)
    features[0] = 1
    features[:, 2:4, 2:5] = torch.tensor([0.0, 1.0, 0.0])[:, None, None]
    return features


def test_a_square_on_scenery_is_found():
    stages = grid_masks(square_features(), ProMergeConfig(stride=2))
    expected = np.zeros((6, 6), bool)
    expected[2:4, 2:5] = True
    assert stages.reason is None
    assert np.array_equal(stages.merged, expected[None])
    assert np.array_equal(stages.background, ~expected)


def test_reasons_by_hand():
    features = square_features()
    features[:, 0, 0] = torch.tensor([0.0, 0.0, 1.0])
    stages = grid_masks(features, ProMergeConfig(stride=3, tau_b=0.5))  # prompts (0|3, 0|3)
    # (0,0) is alone, (3,3) the object; (0,3) and (3,0) are scenery
    assert len(stages.foreground) == 2
    assert stages.reason is None
    stages = grid_masks(features, ProMergeConfig(stride=6, tau_b=0.5))  # prompt (0, 0) only
    assert stages.reason == "no_background"
    assert stages.background is None

    stages = grid_masks(square_features(), ProMergeConfig(stride=2, min_background=0.9))
    assert stages.reason == "small_background"
    assert stages.background.sum() == 30
    assert stages.pruned is None

    # 30 of 36 patches are not below their own share
    share = 30 / 36
    stages = grid_masks(square_features(), ProMergeConfig(stride=2, min_background=share))
    assert stages.reason is None

    stages = grid_masks(square_features(), ProMergeConfig(stride=2, tau_f=-0.5))
    assert stages.reason == "all_pruned"
    assert stages.pruned.shape == stages.merged.shape == (0, 6, 6)


def test_a_vote_that_no_patch_wins_is_a_small_background():
    stages = grid_masks(
        square_features(), ProMergeConfig(stride=2, background_vote=1.0, min_background=0.0)
    )
    assert not stages.background.any()
    assert stages.reason == "small_background"
