"""The released-style labeler gives what the fast one gives."""

import collections

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from benchmarks.speed.released import (
    ReleasedExtractor,
    ReleasedLabeler,
    ReleasedMaskCut,
    count_sides,
    refine_one_by_one,
    released_grid_masks,
)
from promerge_d2.features import FACETS, FeatureExtractor
from promerge_d2.features.extractor import build_vit
from promerge_d2.labeler import MaskCutConfig, ProMergeConfig, ProMergeLabeler, grid_masks
from promerge_d2.labeler.maskcut.labeler import MaskCutLabeler
from promerge_d2.labeler.refine import refine_masks
from promerge_d2.labeler.refine.resize import upsample
from tests.helpers import TINY, photo
from tests.labeler.helpers import as_bytes, grid
from tests.labeler.promerge.helpers import FILTERS, STAGES, config_of, draw


def assert_same_stages(ours, released, where):
    assert ours.reason == released.reason, where
    for stage in STAGES:
        mine, theirs = getattr(ours, stage), getattr(released, stage)
        assert (mine is None) == (theirs is None), (stage, where)
        if mine is not None:
            assert theirs.dtype == bool
            assert_array_equal(mine, theirs, f"{stage} {where}")  # the order, too


@pytest.mark.parametrize("kind", FILTERS)
def test_loops_equal_the_fast_stages(kind):
    seen = collections.Counter()
    for seed in range(40):
        features, settings, _ = draw(seed, kind)
        features, config = torch.from_numpy(features), config_of(settings)
        ours = grid_masks(features, config)
        assert_same_stages(ours, released_grid_masks(features, config), (seed, settings))
        seen[ours.reason] += 1
    assert seen[None] >= 5
    assert seen["no_foreground"] >= 1


def test_loops_equal_golden_files(shared_data):
    files = sorted((shared_data / "golden").glob("*.npz"))
    assert files
    for file in files:
        with np.load(file) as archive:
            golden = dict(archive)
        config = ProMergeConfig(
            grid=golden["features"].shape[1:],
            stride=int(golden["stride"]),
            tau_b=float(golden["bipartition_tau"]),
            tau_f=float(golden["foreground_include_tau"]),
        )
        stages = released_grid_masks(torch.from_numpy(golden["features"]).float(), config)
        assert len(stages.foreground) == golden["n_fg"], file.name
        assert len(stages.candidates) == golden["n_bg"], file.name
        for stage in ("foreground", "background", "pruned", "merged"):
            found = getattr(stages, stage)
            assert (found is None) == (stage not in golden), (stage, file.name)
            if found is not None:
                assert as_bytes(found) == as_bytes(golden[stage]), (stage, file.name)


def test_half_a_side_goes_to_even_in_the_release():
    mask = torch.from_numpy(grid("##..", "#...", "....", "...."))
    # of the top and of the left side one half is covered: by 2 of 4 and by 2 of 4
    assert count_sides(mask, "more_than_half") == 0
    assert count_sides(mask, "at_least_half") == 2


@pytest.fixture
def extractors():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vits = build_vit(TINY), build_vit(TINY)
    vits[1].load_state_dict(vits[0].state_dict())
    return FeatureExtractor(TINY, vits[0]), ReleasedExtractor(TINY, vits[1])


def test_written_out_attention_gives_the_same_features(extractors):
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 80, 112))).float()
    with torch.inference_mode():
        ours, released = (extractor.facets(images, FACETS) for extractor in extractors)
    assert list(released) == list(FACETS)
    for name in FACETS:
        assert released[name].shape == (2, TINY.width, 5, 7)
        assert (ours[name] - released[name]).abs().max() < 1e-4
    assert all(not block.attn.fused_attn for block in extractors[1].vit.blocks)
    assert not extractors[1].vit.blocks[-1].attn.qkv._forward_hooks  # none is left behind


@pytest.mark.parametrize(
    ("fast", "slow", "config"),
    [
        (ProMergeLabeler, ReleasedLabeler, ProMergeConfig(grid=12, stride=2, refine="dense_crf")),
        (MaskCutLabeler, ReleasedMaskCut, MaskCutConfig(grid=12, refine="dense_crf")),
    ],
)
def test_labelers_give_the_same_records(extractors, fast, slow, config):
    pytest.importorskip("pydensecrf")
    ours, released = fast(extractors[0], config), slow(extractors[1], config)
    pixels = photo()
    expected = ours.label(pixels)
    found = released.label(pixels)
    assert len(found.records) == 1 or fast is MaskCutLabeler
    assert found.records == expected.records
    assert (found.height, found.width) == (expected.height, expected.width)
    assert list(found.seconds) == list(expected.seconds)


def test_no_mask_has_a_reason(extractors):
    config = ProMergeConfig(grid=12, stride=2, refine="none")
    grey = np.full((96, 96, 3), 128, np.uint8)
    ours, released = ProMergeLabeler(extractors[0], config), ReleasedLabeler(extractors[1], config)
    assert released.label(grey).reason == ours.label(grey).reason is not None


def test_one_crf_object_a_mask_changes_nothing():
    pytest.importorskip("pydensecrf")
    image = photo(96, 96, box=(16, 24, 56, 64))
    masks = np.zeros((3, 12, 12), bool)
    masks[0, 3:8, 2:7] = masks[1, 3:5, 2:9] = masks[2, 10:, :3] = True
    together, confirmed = refine_masks(image, upsample(masks, 96, 96), "dense_crf", 0.5)
    assert 1 <= confirmed.sum() < 3
    found, kept = refine_one_by_one(image, masks, "dense_crf", 0.5)
    assert_array_equal(found, together[confirmed])
    assert_array_equal(kept, np.flatnonzero(confirmed))
