import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.ablations.cache import Cache, key_of
from promerge_d2.labeler import ImageFeatures
from promerge_d2.labeler.refine import REFINERS, refine_masks
from promerge_d2.labeler.refine.resize import upsample
from tests.helpers import photo

KEY = "ab" * 32


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def prepared():
    features = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    return ImageFeatures(7, 9, photo(24, 40, (8, 8, 16, 16)), {"decoding": 1.0}, features)


def test_comes_back_bit_by_bit(cache, prepared):
    assert cache.load(KEY) is None
    cache.store(KEY, prepared)
    again = cache.load(KEY)
    assert (again.height, again.width) == (7, 9)
    assert again.features.dtype == torch.float32
    assert torch.equal(again.features, prepared.features)
    assert (again.working_image == prepared.working_image).all()
    assert [path.name for path in cache.folder.iterdir()] == [f"{KEY}.npz"]  # nothing half done


@pytest.mark.parametrize("how", ["cut", "flipped", "text", "empty", "other"])
def test_a_damaged_file_counts_as_none(cache, prepared, caplog, how):
    cache.store(KEY, prepared)
    file = cache.features_file(KEY)
    content = bytearray(file.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    damaged = {"cut": content[: len(content) // 2], "text": b"hello", "empty": b""}
    file.write_bytes(damaged.get(how, content))
    if how == "other":
        np.savez(file, features=np.zeros(3))
    assert cache.load(KEY) is None
    assert how == "other" or "is damaged" in caplog.text


def test_the_folder_follows_from_the_network(tmp_path, tiny_labeler):
    def folder(**options):
        return Cache.of(tiny_labeler(**options).extractor, tmp_path).folder

    one = folder()
    assert one.name.startswith("tiny-key-")
    assert folder(tau_b=0.5) == one
    others = {folder(facet="query"), folder(center=False), folder(seed=1), folder(precision="bf16")}
    assert len(others | {one}) == 5


def test_the_key_follows_from_what_is_seen_of_an_image(tiny_labeler):
    def key(pixels, **settings):
        return key_of(tiny_labeler(**settings).processor.preprocess(pixels))

    pixels = photo()
    one = key(pixels)
    assert {key(pixels.copy()), key(pixels, tau_b=0.5), key(pixels, refine="none")} == {one}
    changed = pixels.copy()
    changed[5, 5] = 255
    others = {key(changed), key(pixels, grid=10), key(pixels, pixels_per_patch=4)}
    wide = key(pixels, keep_aspect=True)  # a grid of another shape
    assert len(others | {wide, one}) == 5


# Refinement


@pytest.fixture
def counted(monkeypatch):
    """A refiner that moves masks down by a pixel, and the masks that it was given."""
    given = []

    def shift(image, masks):
        given.append(len(masks))
        return np.roll(masks, 1, axis=1)

    monkeypatch.setitem(REFINERS, "mean_field", shift)
    return given


def test_equal_masks_are_refined_once(cache, counted):
    image = photo(48, 48)
    masks = np.zeros((3, 6, 6), bool)
    masks[0, 1:5, 1:3] = masks[1, 1:5, 3:5] = masks[2, 2:5, 2:5] = True
    masks = upsample(masks, 48, 48)

    def refine(chosen):
        with cache.refined_once(KEY, "mean_field") as refiner:
            return refine_masks(image, masks[chosen], refiner, 0)[0]

    plain = refine_masks(image, masks, "mean_field", 0)[0]
    del counted[:]
    assert (refine([0, 1]) == plain[:2]).all()
    assert (refine([1, 2, 0]) == plain[[1, 2, 0]]).all()
    assert (refine([0, 2]) == plain[[0, 2]]).all()
    assert counted == [2, 1]

    image = photo(48, 48, seed=1)  # the same masks on another image
    refine([0])
    assert counted == [2, 1, 1]

    (cache.folder / f"{KEY}.masks.npz").write_bytes(b"hello")
    assert (refine([0, 2]) == plain[[0, 2]]).all()
    assert counted == [2, 1, 1, 2]


def test_an_error_keeps_nothing(cache, counted):
    def fail():
        with cache.refined_once(KEY, "mean_field") as refiner:
            refine_masks(photo(48, 48), np.ones((1, 48, 48), bool), refiner, 0)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not cache.folder.exists()


def test_without_a_refiner_there_is_nothing_to_keep(cache):
    with cache.refined_once(KEY, "none") as refiner:
        assert refiner is None
    assert not cache.folder.exists()


def test_a_real_refiner_gives_the_same_from_the_cache(cache):
    image = photo(96, 96)
    masks = np.zeros((1, 12, 12), bool)
    masks[0, 2:6, 6:11] = True
    masks = upsample(masks, 96, 96)
    plain = refine_masks(image, masks, "mean_field", 0)[0]
    for _ in range(2):
        with cache.refined_once(KEY, "mean_field") as refiner:
            assert (refine_masks(image, masks, refiner, 0)[0] == plain).all()


def test_prepared_has_no_field_that_the_cache_forgets():
    names = {field.name for field in dataclasses.fields(ImageFeatures)}
    assert names == {"height", "width", "working_image", "seconds", "features"}
