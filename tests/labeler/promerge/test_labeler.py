"""The labeler from an image to records."""

import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pycocotools import mask as mask_utils

from promerge_d2.coco.records import mask_record
from promerge_d2.features import BACKBONES, Backbone, FeatureExtractor
from promerge_d2.labeler import ProMergeConfig, ProMergeLabeler
from promerge_d2.labeler.refine import refinement
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.image import ImageError

GRID = 12


@pytest.mark.parametrize(
    ("mask", "area", "bbox", "counts"),
    [
        ([[0, 1], [0, 1]], 2, [1.0, 0.0, 1.0, 2.0], [2, 2]),
        ([[1]], 1, [0.0, 0.0, 1.0, 1.0], [0, 1]),
        (
            [
                [0, 0, 0, 0, 0, 0],
                [0, 0, 1, 1, 0, 0],
                [0, 0, 1, 0, 0, 0],
                [0, 0, 0, 0, 0, 0],
                [0, 0, 0, 0, 1, 0],
                [0, 0, 0, 0, 0, 0],
            ],
            4,
            [2.0, 1.0, 3.0, 4.0],
            [13, 2, 4, 1, 8, 1, 7],  # column by column: runs of 0 and 1 in turns
        ),
    ],
)
def test_mask_record(mask, area, bbox, counts):
    mask = np.array(mask, bool)
    record = mask_record(mask)
    assert record["area"] == area
    assert type(record["area"]) is int
    assert record["bbox"] == bbox
    assert {type(side) for side in record["bbox"]} == {float}
    assert record["score"] == 1.0
    size = list(mask.shape)
    assert record["segmentation"]["size"] == size
    assert isinstance(record["segmentation"]["counts"], str)
    by_hand = mask_utils.frPyObjects({"size": size, "counts": counts}, *size)
    assert record["segmentation"]["counts"] == by_hand["counts"].decode()


def test_mask_record_takes_a_score():
    assert mask_record(np.ones((2, 2), bool), 0.25)["score"] == 0.25


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A registered ViT-Ti/16 with random weights in a file."""
    name = "test_random_vit"
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)
    file = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(vit.state_dict(), file)
    with pytest.MonkeyPatch.context() as patch:
        entry = Backbone(
            name=name,
            architecture="vit_tiny_patch16_224",
            patch=16,
            width=192,
            center=True,
            training="none: random",
            licence="none",
            commercial_use=True,
        )
        patch.setitem(BACKBONES, name, entry)
        yield name, file


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


def test_batch_equals_single_calls_and_is_lazy(tiny):
    labeler = make(tiny)
    images = [picture(), picture(64, 64), picture()[::-1].copy()]
    taken = []

    def source():
        for index, image in enumerate(images):
            taken.append(index)
            yield image

    batch = labeler.label_batch(source())
    first = next(batch)
    assert taken == [0]
    results = [first, *batch]
    for image, result in zip(images, results, strict=True):
        single = labeler.label(image)
        assert (single.height, single.width) == (result.height, result.width)
        assert (single.records, single.reason) == (result.records, result.reason)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_batches_of_any_size_change_nothing(tiny, batch_size):
    labeler = make(tiny)
    images = [picture(), picture(64, 64), picture()[::-1].copy(), picture(70, 50)]
    found = [result.records for result in labeler.label_batch(images, batch_size)]
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
    assert prepared[1].features.shape == (192, 10, 12)
    assert prepared[0].seconds["features"] == prepared[1].seconds["features"] > 0
    result = ProMergeLabeler.postprocess(prepared[1], labeler.config)
    assert (result.height, result.width) == (64, 64)
    assert result.records == labeler(picture(64, 64))


def test_the_refiner_sees_the_networks_image_where_their_patches_agree(tiny):
    decoded = make(tiny, pixels_per_patch=16).processor.preprocess(picture())
    assert decoded.working_image is decoded.views[0]


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
    with pytest.raises(UserError, match="did you mean tau_b"):
        make(tiny, tau_bb=0.2)
    with pytest.raises(UserError, match=r"the weights file .*no\.pth does not exist"):
        ProMergeLabeler.from_preset(backbone=tiny[0], weights=tmp_path / "no.pth", refine="none")
    with pytest.raises(UserError, match=r"no backbone is named 'dino_vitb9'.*did you mean"):
        ProMergeLabeler.from_preset(backbone="dino_vitb9", refine="none")
    with pytest.raises(UserError, match="no precision is named 'half'"):
        ProMergeLabeler.from_preset(
            backbone=tiny[0], weights=tiny[1], precision="half", refine="none"
        )
    with pytest.raises(UserError, match="no facet is named 'keys'"):
        ProMergeLabeler.from_preset(backbone=tiny[0], weights=tiny[1], facet="keys", refine="none")


def test_missing_refiner_is_told_before_weights_are_looked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.delitem(sys.modules, "pydensecrf.densecrf", raising=False)
    with pytest.raises(UserError, match=r"pip install pydensecrf2.*--refine none"):
        ProMergeLabeler.from_preset(weights="/does/not/exist", refine="dense_crf")
    with pytest.raises(UserError, match="pip install pydensecrf2"):
        ProMergeLabeler(StubExtractor(), ProMergeConfig(refine="dense_crf"))


class StubExtractor(FeatureExtractor):
    """Colours as features: red, green, blue of the squashed image, one pixel a patch."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.backbone = Backbone("stub", "none", 1, 3, False, "none", "none", True)
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1), False)
        self.register_buffer("pixel_std", torch.ones(3, 1, 1), False)

    def forward(self, images):
        return images - 20.0


def stub(**settings):
    # tau_f leaves room for the colours that squashing mixes along the edges
    settings = {"grid": GRID, "stride": 2, "refine": "none", "tau_f": 0.4, **settings}
    return ProMergeLabeler(StubExtractor(), ProMergeConfig(**settings))


def squares(height, width, *boxes):
    """Red rectangles, given in twelfths of the image, on green."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:] = (20, 220, 20)
    for top, bottom, left, right in boxes:
        rows = slice(top * height // GRID, bottom * height // GRID)
        columns = slice(left * width // GRID, right * width // GRID)
        pixels[rows, columns] = (220, 20, 20)
    return pixels


def test_a_square_on_a_background():
    pixels = squares(96, 120, (3, 8, 2, 7))
    (record,) = stub()(pixels)
    assert record["bbox"] == [20.0, 24.0, 50.0, 40.0]
    assert record["area"] == 50 * 40
    assert np.array_equal(decode([record])[0], pixels[..., 0] == 220)


def test_two_objects_come_by_descending_area_on_the_grid():
    pixels = squares(96, 120, (2, 4, 2, 4), (6, 11, 4, 11))
    found = stub(component_share=0.1)(pixels)
    assert [r["area"] for r in found] == [5 * 8 * 7 * 10, 2 * 8 * 2 * 10]


@pytest.mark.parametrize("grid", [(12, 24), (24, 12)])
def test_grids_need_not_be_square(grid):
    pixels = squares(96, 120, (3, 8, 2, 7))
    (record,) = stub(grid=grid)(pixels)
    truth = pixels[..., 0] == 220
    mask = decode([record])[0]
    assert (mask & truth).sum() / (mask | truth).sum() > 0.8
    x, y, w, h = record["bbox"]
    assert abs(x + w / 2 - 45) <= 5
    assert abs(y + h / 2 - 44) <= 5


def test_dense_crf_finds_the_edges():
    pytest.importorskip("pydensecrf")
    pixels = squares(96, 120, (3, 8, 2, 7))
    pixels[20:24, 20:70] = (220, 20, 20)  # half a patch more at the top
    truth = pixels[..., 0] == 220
    rough = decode(stub()(pixels))[0]
    (record,) = stub(refine="dense_crf")(pixels)
    mask = decode([record])[0]
    iou = [(m & truth).sum() / (m | truth).sum() for m in (rough, mask)]
    assert iou[1] > 0.95
    assert iou[1] > iou[0]


@pytest.mark.parametrize(
    ("settings", "pixels", "reason"),
    [
        ({}, squares(60, 60), "no_foreground"),
        ({"tau_b": 0.9, "min_background": 1.0}, squares(60, 60, (3, 8, 2, 7)), "small_background"),
        ({"tau_f": -1.0}, squares(60, 60, (3, 8, 2, 7)), "all_pruned"),
        # only the prompt (0, 0), which is on the object
        ({"stride": 12}, squares(60, 60, (0, 3, 0, 3)), "no_background"),
    ],
)
def test_reasons(settings, pixels, reason):
    result = stub(**settings).label(pixels)
    assert result.reason == reason
    assert reason in ProMergeLabeler.reasons
    assert result.records == []
    assert set(result.seconds) == {"decoding", "features", "masks"}


def test_reason_when_refinement_rejects_all(monkeypatch):
    monkeypatch.setitem(refinement.REFINERS, "dense_crf", lambda image, masks: ~masks)
    monkeypatch.setattr(refinement, "_import_densecrf", lambda: None)
    result = stub(refine="dense_crf").label(squares(60, 60, (3, 8, 2, 7)))
    assert result.reason == "all_rejected_by_refinement"
    assert result.records == []


def test_constant_image(tiny):
    """Whatever position embeddings make of it, the answer is well formed and the same twice."""
    flat = np.full((50, 70, 3), 127, np.uint8)
    first, second = make(tiny).label(flat), make(tiny).label(flat)
    assert (first.reason is None) == bool(first.records)
    assert (first.records, first.reason) == (second.records, second.reason)
    assert stub().label(flat).reason == "no_foreground"


def test_best_preset_scores_and_ranks(tiny):
    """A bright square on a dark ground comes first, on a grid of the image's shape."""
    labeler = ProMergeLabeler.from_preset("best", *map(str, tiny), grid=GRID)
    image = np.full((60, 120, 3), 20, np.uint8)
    image[20:50, 60:90] = (240, 40, 40)
    result = labeler.label(image)
    scores = [record["score"] for record in result.records]
    assert scores == sorted(scores, reverse=True)
    assert 1 >= scores[0] > scores[-1] >= 0
    masks = [mask_utils.decode(record["segmentation"]).astype(bool) for record in result.records]
    assert {mask.shape for mask in masks} == {(60, 120)}
    overlaps = np.array([[(a & b).sum() / (a | b).sum() for b in masks] for a in masks])
    assert overlaps[~np.eye(len(masks), dtype=bool)].max(initial=0) <= 0.75
    prepared = labeler.processor.preprocess(image)
    assert prepared.views[0].shape[0] * 2 == pytest.approx(prepared.views[0].shape[1], rel=0.15)


def test_images_of_several_shapes_go_in_one_batch(tiny):
    labeler = ProMergeLabeler.from_preset("best", *map(str, tiny), grid=GRID)
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 255, (*shape, 3)).astype(np.uint8)
        for shape in ((40, 60), (60, 40), (40, 60), (50, 50))
    ]
    together = list(labeler.label_batch(images, batch_size=4))
    assert [result.records for result in together] == [labeler(image) for image in images]
