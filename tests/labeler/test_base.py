"""The way of an image through a labeler, as far as it is the same for all."""

import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from promerge_d2.labeler import ProMergeConfig, ProMergeLabeler, labeler_of_preset
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.image import ImageError
from tests.labeler.helpers import label_batch


def make(tiny, **settings):
    settings = {"grid": 10, "stride": 2, "refine": "none", "tau_b": 0.3, **settings}
    return ProMergeLabeler.from_preset("release", backbone=tiny[0], weights=tiny[1], **settings)


def picture(height=90, width=120):
    """A bright and a dark thing on a shaded ground."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 1] = np.linspace(60, 120, width, dtype=np.uint8)
    pixels[20:60, 20:50] = (230, 40, 40)
    pixels[50:80, 80:110] = (20, 20, 60)
    return np.clip(pixels + rng.integers(-4, 5, pixels.shape), 0, 255).astype(np.uint8)


def decode(records):
    return np.array([mask_utils.decode(r["segmentation"]) for r in records], bool)


def test_records_of_a_random_network_are_well_formed(tiny):
    result = make(tiny).label(picture())
    assert (result.height, result.width) == (90, 120)
    assert result.reason is None
    assert len(result.records) >= 1
    for record in result.records:
        assert set(record) == {"segmentation", "area", "bbox", "score"}
        mask = mask_utils.decode(record["segmentation"])
        assert mask.shape == (90, 120)
        assert record["area"] == mask.sum() > 0
        rows, columns = np.nonzero(mask)
        x, y = columns.min(), rows.min()
        assert record["bbox"] == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]
        assert record["score"] == 1.0
    assert tuple(result.seconds) == ("decoding", "features", "masks", "refinement", "encoding")
    assert all(value >= 0 for value in result.seconds.values())


def test_path_pil_array_and_call_agree(tiny, tmp_path):
    labeler = make(tiny)
    pixels = picture()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = labeler.label(pixels).records
    assert expected
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels)):
        assert labeler.label(image).records == expected
    assert labeler(pixels) == expected
    assert make(tiny)(pixels) == expected  # another instance too


@pytest.mark.parametrize(("orientation", "quarter_turns"), [(6, -1), (8, 1), (3, 2)])
def test_exif_rotated_file_equals_the_rotated_array(tiny, tmp_path, orientation, quarter_turns):
    stored = picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    upright = np.ascontiguousarray(np.rot90(stored, quarter_turns))
    result = make(tiny).label(tmp_path / "a.png")
    assert (result.height, result.width) == upright.shape[:2]
    assert result.records == make(tiny)(upright)
    release = make(tiny, apply_exif=False).label(tmp_path / "a.png")
    assert (release.height, release.width) == (90, 120)
    assert release.records == make(tiny)(stored)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_batches_of_any_size_change_nothing(tiny, batch_size):
    labeler = make(tiny)
    images = [picture(), picture(64, 64), picture()[::-1].copy(), picture(70, 50)]
    found = [result.records for result in label_batch(labeler, images, batch_size)]
    assert found == [labeler(image) for image in images]


def test_the_three_parts_of_the_work(tiny):
    labeler = make(tiny, grid="10x12", pixels_per_patch=8)
    decoded = [
        labeler.processor.preprocess(picture()),
        labeler.processor.preprocess(picture(64, 64)),
    ]
    assert (decoded[0].height, decoded[0].width) == (90, 120)
    assert decoded[0].views[0].shape == (160, 192, 3)
    assert decoded[0].working_image.shape == (80, 96, 3)
    squashed = Image.fromarray(picture()).resize((192, 160), Image.Resampling.LANCZOS)
    assert np.array_equal(decoded[0].views[0], np.asarray(squashed))
    assert list(decoded[0].seconds) == ["decoding"]
    prepared = labeler.forward(decoded)
    assert prepared[1].features.shape == (1, 192, 10, 12)
    assert prepared[0].seconds["features"] == prepared[1].seconds["features"] > 0
    result = ProMergeLabeler.postprocess(prepared[1], labeler.config)
    assert (result.height, result.width) == (64, 64)
    assert result.records == labeler(picture(64, 64))


def test_the_refiner_sees_the_networks_image_where_their_patches_agree(tiny):
    decoded = make(tiny, pixels_per_patch=16).processor.preprocess(picture())
    assert decoded.working_image is decoded.views[0]


@pytest.mark.parametrize("preset", ["release", "best", "maskcut"])
@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (60, 4800), (4800, 60), (1, 1), (2, 1)])
@pytest.mark.parametrize("keep_aspect", [True, False])
def test_extreme_shapes(tiny, preset, shape, keep_aspect):
    """Strips, lines and single pixels have masks or a reason, with every labeler."""
    labeler = labeler_of_preset(preset).from_preset(
        preset, *map(str, tiny), grid=8, keep_aspect=keep_aspect
    )
    pixels = np.random.default_rng(0).integers(0, 60, (*shape, 3)).astype(np.uint8)
    pixels[: shape[0] // 2 + 1, : shape[1] // 2] = (250, 230, 200)
    result = labeler.label(pixels)
    assert (result.height, result.width) == shape
    assert (result.reason is None) == bool(result.records)
    assert result.reason is None or result.reason in labeler.reasons
    for record in result.records:
        assert mask_utils.decode(record["segmentation"]).shape == shape


def test_one_pixel(tiny):
    result = make(tiny).label(np.full((1, 1, 3), 99, np.uint8))
    assert (result.height, result.width) == (1, 1)
    assert (result.reason is None) == bool(result.records)
    assert result.reason is None or result.reason in ProMergeLabeler.reasons
    for record in result.records:
        assert (record["area"], record["bbox"]) == (1, [0.0, 0.0, 1.0, 1.0])


def test_errors(tiny, tmp_path):
    with pytest.raises(ImageError, match=r"gone\.jpg"):
        make(tiny)(tmp_path / "gone.jpg")
    with pytest.raises(UserError, match="tau_b"):
        make(tiny, tau_bb=0.2)
    with pytest.raises(UserError, match=r"no\.pth"):
        ProMergeLabeler.from_preset(backbone=tiny[0], weights=tmp_path / "no.pth", refine="none")
    with pytest.raises(UserError, match=r"'dino_vitb9'.*dino_vitb8"):
        ProMergeLabeler.from_preset(backbone="dino_vitb9", refine="none")
    with pytest.raises(UserError, match="'half'"):
        ProMergeLabeler.from_preset(
            backbone=tiny[0], weights=tiny[1], precision="half", refine="none"
        )
    with pytest.raises(UserError, match="'keys'"):
        ProMergeLabeler.from_preset(backbone=tiny[0], weights=tiny[1], facet="keys", refine="none")


def test_missing_refiner_is_told_before_weights_are_looked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.delitem(sys.modules, "pydensecrf.densecrf", raising=False)
    with pytest.raises(UserError, match=r"pip install pydensecrf2.*--refine none"):
        ProMergeLabeler.from_preset(weights="/does/not/exist", refine="dense_crf")
    with pytest.raises(UserError, match="pip install pydensecrf2"):
        ProMergeLabeler(None, ProMergeConfig(refine="dense_crf"))


def test_constant_image(tiny):
    """Whatever position embeddings make of it, the answer is well formed and the same twice."""
    flat = np.full((50, 70, 3), 127, np.uint8)
    first, second = make(tiny).label(flat), make(tiny).label(flat)
    assert (first.reason is None) == bool(first.records)
    assert (first.records, first.reason) == (second.records, second.reason)
