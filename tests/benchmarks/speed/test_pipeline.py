import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.speed import pipeline
from benchmarks.speed.harness import Plan
from promerge_d2.labeler import ProMergeConfig, ProMergeLabeler
from promerge_d2.utils.errors import UserError
from tests.benchmarks.speed.helpers import QUICK, check_numbers


@pytest.fixture
def plan(workload, images):
    changed = dataclasses.replace(workload, settings={**workload.settings, "keep_aspect": False})
    return Plan(changed, images, **{**QUICK, "stream": 6})


def test_figures_of_all_presets(plan):
    results = pipeline.measure_pipeline(plan)
    figures = results.figures
    check_numbers(figures)
    for preset in ("release", "best", "fast"):
        cost = figures[f"pipeline.{preset}.cpu_s"]
        assert figures[f"pipeline.{preset}.images_per_s_per_core"] == pytest.approx(1 / cost)
        assert figures[f"pipeline.{preset}.images_per_s_of_16_cores"] == pytest.approx(16 / cost)
        for stage in ("decoding", "resizing", "candidates", "suppression", "writing"):
            assert figures[f"pipeline.{preset}.{stage}_s"] > 0, stage
        assert figures[f"pipeline.{preset}.memory_mb_at_the_end"] > 10
        peak = figures[f"pipeline.{preset}.peak_mb_after_a_fifth"]
        assert 10 < peak <= figures[f"pipeline.{preset}.peak_mb_at_the_end"]
        twins = [figures[f"pipeline.{preset}.{twin}_in_torch_s"] for twin in ("masks", "refiner")]
        assert min(twins) > 0
        rate = figures[f"pipeline.{preset}.device_images_per_s_per_core"]
        assert rate == pytest.approx(1 / max(cost - sum(twins), 1e-9))  # of few ticks
    assert figures["pipeline.best.scores_s"] > 0 == figures["pipeline.release.scores_s"]
    assert "network_waits" not in "".join(figures)  # no rate, so it never has to wait
    assert "| `fast` |" in results.markdown()


def test_stored_features_are_the_photographs_own_at_its_grid(plan, tmp_path, monkeypatch):
    for number, file in enumerate(plan.images):
        np.savez(tmp_path / f"{file.stem}.npz", key=np.full((4, 12, 12), number, np.float16))
    seen = []

    def find(features, config):
        seen.append(features.flatten()[0].item())
        return original(features, config)

    original = ProMergeLabeler.grid_masks
    monkeypatch.setattr(ProMergeLabeler, "grid_masks", staticmethod(find))
    figures = pipeline.measure_pipeline(plan, tmp_path, rate=1e6).figures
    assert seen[:6] == [0, 1, 2, 0, 1, 2]  # the stages, twice
    assert pipeline.read_features(tmp_path / f"{file.stem}.npz", (5, 7)).shape == (1, 4, 5, 7)
    assert 0 <= figures["pipeline.release.network_waits"] < 1


@pytest.mark.parametrize("arrays", [{"token": np.zeros(3)}, None])
def test_features_that_are_not_there_are_named(tmp_path, arrays):
    file = tmp_path / "a.npz"
    if arrays:
        np.savez(file, **arrays)
    with pytest.raises(UserError, match=r"a\.npz"):
        pipeline.read_features(file, (3, 3))


def test_the_stand_in_takes_as_long_as_its_rate_says(plan, monkeypatch):
    clock, slept = [100.0], []
    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(pipeline.time, "sleep", slept.append)
    monkeypatch.setattr(pipeline, "read_features", lambda *_: torch.zeros(1, 4, 12, 12))
    config = ProMergeConfig.from_preset("release", grid=12)
    file = plan.images[0].resolve()
    stand_in = pipeline.StandIn(ProMergeLabeler, config, 8, {file: file}, rate=10)
    picture = stand_in.processor.preprocess(file)
    first, second = (stand_in.start_forward([picture] * 4) for _ in range(2))
    assert len(first()) == 4
    clock[0] = 100.5
    second()
    assert slept == [pytest.approx(0.4), pytest.approx(0.3)]  # one batch after the other
