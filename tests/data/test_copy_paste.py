import collections
import copy

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.structures import BitMasks, Boxes, Instances

from promerge_d2 import add_promerge_config
from promerge_d2.coco.records import mask_record
from promerge_d2.data import CopyPasteMapper, copy_paste
from promerge_d2.utils.errors import UserError
from tests.helpers import photo, save_image, square


def example(color, boxes, height=8, width=12, classes=None):
    """A mapped dict of one colour with objects ``boxes`` (x0, y0, x1, y1)."""
    masks = [square(height, width, *box) for box in boxes]
    instances = Instances((height, width))
    instances.gt_masks = BitMasks(
        torch.from_numpy(np.array(masks)) if masks else torch.zeros(0, height, width)
    )
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes or [0] * len(boxes))
    image = torch.full((3, height, width), color, dtype=torch.uint8)
    return {"file_name": f"{color}.png", "image": image, "instances": instances}


def paste(receiver, donor, seed=0, ratio=1.0):
    return copy_paste(receiver, donor, np.random.default_rng(seed), ratio, ratio)


def boxes_of(mapped):
    return mapped["instances"].gt_boxes.tensor.tolist()


def masks_of(mapped):
    return mapped["instances"].gt_masks.tensor


def test_one_object_at_full_size():
    # At ratio 1 the donor fills the receiver, so an object stays where it was.
    receiver = example(10, [[0, 0, 4, 4]])
    receiver["instances"].gt_classes[0] = 3
    donor = example(200, [[3, 2, 7, 6]], classes=[5])
    result = paste(receiver, donor)
    pasted = square(8, 12, 3, 2, 7, 6)
    wanted = np.where(pasted, 200, 10)
    assert (result["image"].numpy() == wanted).all()  # in all three channels
    assert result["image"].dtype == torch.uint8
    left = square(8, 12, 0, 0, 4, 4) & ~pasted  # loses 1 x 2 pixels
    assert left.sum() == 14
    assert (masks_of(result)[0].numpy() == left).all()
    assert (masks_of(result)[1].numpy() == pasted).all()
    assert masks_of(result).shape == (2, 8, 12)
    assert boxes_of(result) == [[0, 0, 4, 4], [3, 2, 7, 6]]
    assert result["instances"].gt_classes.tolist() == [3, 5]
    assert result["file_name"] == "10.png"


def test_boxes_shrink_to_what_stays_visible():
    receiver = example(10, [[0, 0, 4, 4]])
    result = paste(receiver, example(200, [[3, 0, 12, 8]]))  # hides the last of four columns
    assert boxes_of(result) == [[0, 0, 3, 4], [3, 0, 12, 8]]


@pytest.mark.parametrize(
    ("hidden", "refused"),
    [([2, 0, 12, 8], True), ([3, 0, 12, 8], False), ([0, 0, 12, 8], True)],
)
def test_half_cover_is_refused(hidden, refused):
    receiver = example(10, [[0, 0, 4, 4]])  # columns 2 and 3 are half of it
    result = paste(receiver, example(200, [hidden]))
    assert len(result["instances"]) == (1 if refused else 2)
    assert (result["image"] == 10).all() == refused


def test_any_covered_object_refuses():
    receiver = example(10, [[8, 0, 12, 8], [0, 0, 2, 2]])
    result = paste(receiver, example(200, [[0, 0, 9, 2]]))  # 2 of 32 pixels, and 4 of 4
    assert boxes_of(result) == [[8, 0, 12, 8], [0, 0, 2, 2]]


def test_pasted_objects_do_not_hide_each_other_either():
    # Two of three identical objects are pasted at times; the second one would hide the first.
    donor = example(200, [[2, 2, 6, 6]] * 3)
    for seed in range(10):
        assert boxes_of(paste(example(10, []), donor, seed)) == [[2, 2, 6, 6]]


def test_a_pasted_object_hinders_the_next():
    # The second would hide 16 of the first one's 24 pixels, whichever of the two comes first;
    # neither hides anything of the receiver's.
    donor = example(200, [[4, 0, 8, 6], [4, 2, 8, 8], [0, 7, 1, 8]])
    counts = collections.Counter()
    for seed in range(60):
        result = paste(example(10, [[10, 0, 12, 8]]), donor, seed)
        boxes = boxes_of(result)
        assert boxes[0] == [10, 0, 12, 8]
        assert not ([4, 0, 8, 6] in boxes and [4, 2, 8, 8] in boxes)
        assert {tuple(box) for box in boxes[1:]} <= {(4, 0, 8, 6), (4, 2, 8, 8), (0, 7, 1, 8)}
        counts[len(boxes) - 1] += 1
    assert set(counts) == {1, 2}


def test_an_object_that_vanishes_is_dropped():
    # At ratio 0.25 columns 2, 6, 10 of twelve survive; the object is column 3 alone.
    donor = example(200, [[3, 0, 4, 8]])
    for seed in range(5):
        result = paste(example(10, [[0, 0, 4, 4]]), donor, seed, ratio=0.25)
        assert boxes_of(result) == [[0, 0, 4, 4]]
        assert (result["image"] == 10).all()


def test_a_receivers_object_without_a_pixel_is_removed_and_hinders_nothing():
    receiver = example(10, [[0, 0, 4, 4], [0, 0, 0, 0]])
    result = paste(receiver, example(200, [[6, 2, 8, 6]]))
    assert boxes_of(result) == [[0, 0, 4, 4], [6, 2, 8, 6]]
    assert len(result["instances"].gt_classes) == 2


def test_an_object_that_hides_nothing_is_pasted_beside_what_is_there():
    # Side by side, with common borders: not a pixel is hidden, of the small objects either.
    receiver = example(10, [[0, 0, 4, 8], [4, 0, 5, 1], [11, 7, 12, 8]])
    result = paste(receiver, example(200, [[4, 1, 11, 8]]))
    assert boxes_of(result) == [[0, 0, 4, 8], [4, 0, 5, 1], [11, 7, 12, 8], [4, 1, 11, 8]]


def test_a_donor_without_objects_changes_nothing():
    receiver = example(10, [[0, 0, 4, 4]])
    result = paste(receiver, example(200, []))
    assert boxes_of(result) == [[0, 0, 4, 4]]
    assert (result["image"] == 10).all()


def test_half_size_at_a_random_place():
    # The donor's object covers columns 4..8 and rows 2..6 of 8 x 12; halved, 2 x 2 pixels at
    # column 2, row 1 of a 4 x 6 window, which lies at any offset in 0..4 rows and 0..6 columns.
    donor = example(200, [[4, 2, 8, 6]])
    seen = collections.Counter()
    for seed in range(400):
        result = paste(example(10, []), donor, seed, ratio=0.5)
        ((x0, y0, x1, y1),) = boxes_of(result)
        assert (x1 - x0, y1 - y0) == (2, 2)
        seen[(x0 - 2, y0 - 1)] += 1
        mask = square(8, 12, int(x0), int(y0), int(x1), int(y1))
        assert (masks_of(result)[0].numpy() == mask).all()
        assert (result["image"].numpy() == np.where(mask, 200, 10)).all()
    assert {left for left, _ in seen} == set(range(7))
    assert {top for _, top in seen} == set(range(5))
    assert max(seen.values()) < 400 / 35 * 3  # none of the 35 places is preferred


def test_the_donor_is_stretched_to_the_receivers_shape():
    # 8 x 12 onto 16 x 12: rows double; the object's rows 2..6 become 4..12.
    donor = example(200, [[3, 2, 7, 6]])
    result = paste(example(10, [], height=16), donor)
    assert boxes_of(result) == [[3, 4, 7, 12]]


def test_one_ratio_serves_both_sides():
    donor = example(200, [[0, 0, 12, 8]])
    sizes = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        ((x0, y0, x1, y1),) = boxes_of(copy_paste(example(10, []), donor, rng, 0.25, 1.0))
        sizes.add((x1 - x0, y1 - y0))
        assert abs((x1 - x0) / 12 - (y1 - y0) / 8) <= 0.5 / 12 + 0.5 / 8
    assert min(width for width, _ in sizes) == 3
    assert max(width for width, _ in sizes) == 12


def test_how_many_are_pasted():
    def counts(objects):
        row = [[2 * i, 0, 2 * i + 1, 8] for i in range(objects)]
        donor = example(200, row)
        found = (len(paste(example(10, []), donor, seed)["instances"]) for seed in range(300))
        return collections.Counter(found)

    assert set(counts(1)) == {1}
    assert set(counts(2)) == {1}
    four = counts(4)
    assert set(four) == {1, 2, 3}
    assert min(four.values()) > 70  # uniform: 100 each, standard deviation 8


def test_every_object_of_the_donor_has_its_turn():
    donor = example(200, [[0, 0, 2, 8], [4, 0, 6, 8], [8, 0, 10, 8]])
    lefts = {boxes_of(paste(example(10, []), donor, seed))[0][0] for seed in range(50)}
    assert lefts == {0, 4, 8}


def test_textures_are_carried_over_pixel_by_pixel():
    rng = np.random.default_rng(0)
    receiver, donor = example(10, []), example(200, [[3, 2, 7, 6]])
    donor["image"] = torch.from_numpy(rng.integers(0, 256, (3, 8, 12)).astype(np.uint8))
    result = paste(receiver, donor)
    assert torch.equal(result["image"][:, 2:6, 3:7], donor["image"][:, 2:6, 3:7])


def test_stretched_pixels_are_rounded():
    # Rows of 0 and 255 alternate; twice as many rows mix them by quarters: 63.75 and 191.25.
    donor = example(0, [[0, 0, 12, 8]])
    donor["image"][:, 1::2] = 255
    result = paste(example(10, [], height=16), donor)
    inner = result["image"][0, 1:15, 0].tolist()
    assert inner == [64, 191, 191, 64, 64, 191, 191, 64, 64, 191, 191, 64, 64, 191]


@pytest.mark.parametrize(("object_", "wanted"), [([3, 3, 4, 4], 0), ([1, 1, 2, 2], 1)])
def test_a_small_mask_has_the_pixels_that_its_centres_fall_on(object_, wanted):
    # Thirds of 9 x 9: the centres of the 3 x 3 pixels fall on 1, 4 and 7; so 3 is seen by none.
    donor = example(200, [object_], height=9, width=9)
    result = paste(example(10, [], height=9, width=9), donor, ratio=1 / 3)
    assert masks_of(result).sum() == wanted


def reference(receiver, donor, seed, low, high):
    """``copy_paste`` over whole frames, one mask at a time."""
    rng = np.random.default_rng(seed)
    mine, theirs = receiver["instances"], donor["instances"]
    objects = [i for i in range(len(theirs)) if theirs.gt_ignore[i] == 0]
    if not objects:
        return receiver["image"], mine.gt_masks.tensor, mine.gt_weights
    height, width = receiver["image"].shape[1:]
    ratio = rng.uniform(low, high)
    order = rng.permutation(len(objects))
    number = 1 if len(objects) == 1 else int(rng.integers(1, len(objects)))
    chosen = [objects[i] for i in order[:number]]
    rows, columns = max(1, round(ratio * height)), max(1, round(ratio * width))
    top = int(rng.integers(0, height - rows + 1))
    left = int(rng.integers(0, width - columns + 1))
    pixels = torch.nn.functional.interpolate(
        donor["image"][None].float(), (rows, columns), mode="bilinear", antialias=True
    )[0].round()
    picture = torch.zeros(3, height, width)
    picture[:, top : top + rows, left : left + columns] = pixels
    image = receiver["image"].clone()
    found = [
        (mask, weight, ignore == 0)
        for mask, weight, ignore in zip(
            mine.gt_masks.tensor, mine.gt_weights, mine.gt_ignore, strict=True
        )
    ]
    for index in chosen:
        source = theirs.gt_masks.tensor[index][None, None].float()
        small = torch.nn.functional.interpolate(source, (rows, columns), mode="nearest-exact")
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[top : top + rows, left : left + columns] = small[0, 0] > 0.5
        hides = [
            2 * int((other & mask).sum()) >= int(other.sum())
            for other, _, hinders in found
            if hinders and other.any()
        ]
        if any(hides) or not mask.any():
            continue
        image = torch.where(mask, picture, image).to(torch.uint8)
        found = [(other & ~mask, *rest) for other, *rest in found]
        found.append((mask, theirs.gt_weights[index], True))
    found = [entry for entry in found if entry[0].any()]
    masks = [mask for mask, _, _ in found] or [torch.zeros(0, height, width, dtype=torch.bool)]
    weights = torch.tensor([float(weight) for _, weight, _ in found])
    return image, torch.stack(masks) if found else masks[0], weights


def random_example(rng):
    height, width = rng.integers(1, 40, 2)
    count = int(rng.integers(0, 8))
    mapped = example(0, [[0, 0, 0, 0]] * count, height, width)
    rows, columns = np.mgrid[:height, :width]
    for index in range(count):
        centre, radii = rng.uniform(0, (height, width)), rng.uniform(0.5, 15, 2)
        inside = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 < 1
        if rng.random() < 0.2:
            inside = rng.random((height, width)) < 0.1
        mapped["instances"].gt_masks.tensor[index] = torch.from_numpy(inside)
    mapped["image"] = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    mapped["instances"].gt_weights = torch.from_numpy(rng.random(count).astype(np.float32))
    kinds = rng.choice([0, 0, 0, 1, 2], count)
    mapped["instances"].gt_ignore = torch.from_numpy(kinds)
    return mapped


def test_random_pairs_are_pasted_as_by_a_plain_reference():
    pasted = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        receiver, donor = random_example(rng), random_example(rng)
        low, high = sorted(rng.uniform(0.05, 1, 2))
        result = copy_paste(receiver, donor, np.random.default_rng(seed), low, high)
        image, masks, weights = reference(receiver, donor, seed, low, high)
        assert torch.equal(result["image"], image), seed
        assert torch.equal(masks_of(result), masks), seed
        assert torch.equal(result["instances"].gt_weights, weights), seed
        pasted += not torch.equal(result["image"], receiver["image"])
    assert pasted > 100


def test_inputs_stay_as_they_are():
    receiver, donor = example(10, [[0, 0, 4, 4]]), example(200, [[3, 2, 7, 6], [8, 0, 12, 3]])
    before = copy.deepcopy((receiver, donor))
    assert len(paste(receiver, donor)["instances"]) == 2
    for now, then in zip((receiver, donor), before, strict=True):
        assert torch.equal(now["image"], then["image"])
        assert torch.equal(masks_of(now), masks_of(then))
        assert boxes_of(now) == boxes_of(then)


def test_the_same_seed_gives_the_same_picture():
    donor = example(200, [[0, 0, 3, 3], [4, 4, 8, 8], [9, 1, 12, 5]])
    results = [
        copy_paste(example(10, []), donor, np.random.default_rng(7), 0.3, 1.0) for _ in range(2)
    ]
    assert torch.equal(results[0]["image"], results[1]["image"])
    assert torch.equal(masks_of(results[0]), masks_of(results[1]))


# Other fields


def scored(color, boxes, weights, ignore=None):
    """An example whose objects have weights, and are ignored or not."""
    mapped = example(color, boxes)
    mapped["instances"].gt_weights = torch.tensor(weights, dtype=torch.float32)
    if ignore is not None:
        mapped["instances"].gt_ignore = torch.tensor(ignore)
    return mapped


def test_fields_stay_with_their_objects():
    receiver = scored(10, [[0, 0, 4, 4], [0, 0, 0, 0], [9, 0, 12, 4]], [0.1, 0.2, 0.3])
    result = paste(receiver, scored(200, [[5, 5, 8, 8]], [0.4]))
    assert boxes_of(result) == [[0, 0, 4, 4], [9, 0, 12, 4], [5, 5, 8, 8]]
    assert result["instances"].gt_weights.tolist() == pytest.approx([0.1, 0.3, 0.4])


def test_fields_of_the_objects_that_were_drawn():
    donor = scored(200, [[0, 0, 2, 2], [3, 0, 5, 2], [6, 0, 8, 2], [9, 0, 11, 2]], [0, 3, 6, 9])
    for seed in range(10):
        result = paste(example(10, []), donor, seed)
        lefts = [box[0] for box in boxes_of(result)]
        assert result["instances"].gt_weights.tolist() == lefts
    empty = paste(scored(10, [], []), donor)
    assert len(empty["instances"].gt_weights) == len(empty["instances"]) > 0


def test_a_refused_object_leaves_no_fields():
    result = paste(scored(10, [[0, 0, 4, 4]], [0.5]), scored(200, [[0, 0, 4, 4]], [0.7]))
    assert result["instances"].gt_weights.tolist() == [0.5]


def test_what_is_ignored_is_not_pasted():
    donor = scored(200, [[0, 0, 4, 4], [6, 0, 9, 3], [5, 5, 8, 8]], [1, 2, 3], ignore=[1, 2, 0])
    for seed in range(5):
        result = paste(scored(10, [], [], ignore=[]), donor, seed)
        assert boxes_of(result) == [[5, 5, 8, 8]]
        assert result["instances"].gt_ignore.tolist() == [0]
    donor["instances"].gt_ignore[2] = 1
    assert len(paste(scored(10, [[0, 0, 2, 2]], [1], ignore=[0]), donor)["instances"]) == 1


def test_what_is_ignored_hinders_no_pasting_and_loses_what_is_covered():
    receiver = scored(10, [[0, 0, 4, 4], [4, 4, 10, 8], [5, 5, 7, 7]], [1, 2, 3], ignore=[0, 1, 1])
    result = paste(receiver, scored(200, [[4, 4, 8, 8]], [4], ignore=[0]))
    assert boxes_of(result) == [[0, 0, 4, 4], [8, 4, 10, 8], [4, 4, 8, 8]]
    assert result["instances"].gt_ignore.tolist() == [0, 1, 0]
    assert result["instances"].gt_weights.tolist() == [1, 2, 4]


# The mapper


def mapper_of(examples, rate=1.0, ratio=1.0):
    """A CopyPasteMapper over ready examples, and the file names that it mapped."""
    calls = []

    def ready(record):
        calls.append(record["file_name"])
        return copy.deepcopy(examples[record["file_name"]])

    dataset = [{"file_name": name} for name in examples]
    return CopyPasteMapper(ready, dataset, rate, ratio, ratio), dataset, calls


@pytest.fixture
def seeded():
    state = np.random.get_state()
    np.random.seed(0)
    yield
    np.random.set_state(state)


@pytest.mark.usefixtures("seeded")
def test_no_image_is_its_own_donor():
    examples = {f"{c}.png": example(c, [[c, 0, c + 1, 1]]) for c in range(3)}
    mapper, dataset, calls = mapper_of(examples)
    donors = collections.Counter()
    for _ in range(60):
        calls.clear()
        mapper(dict(dataset[1]))
        receiver, donor = calls
        assert receiver == "1.png"
        donors[donor] += 1
    assert set(donors) == {"0.png", "2.png"}


@pytest.mark.usefixtures("seeded")
def test_copies_of_the_image_in_the_data_set_are_no_donors():
    only, dataset, calls = mapper_of({"a.png": example(10, [[0, 0, 2, 2]])})
    repeated = CopyPasteMapper(only.mapper, dataset * 5, 1.0, 1.0, 1.0)
    result = repeated(dict(dataset[0]))
    assert calls == ["a.png"]
    assert len(result["instances"]) == 1


@pytest.mark.usefixtures("seeded")
def test_donors_have_the_images_orientation():
    shapes = {"wide.png": (8, 12), "wide2.png": (8, 12), "high.png": (12, 8), "even.png": (9, 9)}
    examples = {name: example(0, [[0, 0, 2, 2]], *shape) for name, shape in shapes.items()}
    plain, _, calls = mapper_of(examples)
    records = [{"file_name": n, "height": h, "width": w} for n, (h, w) in shapes.items()]
    portrait = np.array([h >= w for h, w in shapes.values()])
    grouped = CopyPasteMapper(plain.mapper, records, 1.0, 1.0, 1.0, portrait)
    partners = {"wide.png": "wide2.png", "high.png": "even.png", "even.png": "high.png"}
    for record in records:
        for _ in range(5):
            calls.clear()
            grouped(dict(record))
            if record["file_name"] in partners:
                assert calls == [record["file_name"], partners[record["file_name"]]]
    alone = CopyPasteMapper(plain.mapper, records[:3], 1.0, 1.0, 1.0, portrait[:3])
    calls.clear()
    assert len(alone(dict(records[2]))["instances"]) == 1  # no other of its orientation
    assert calls == ["high.png"]


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize(("rate", "low", "high"), [(0.0, 0, 0), (0.5, 70, 130), (1.0, 200, 200)])
def test_rate(rate, low, high):
    examples = {"a.png": example(10, []), "b.png": example(200, [[0, 0, 2, 2]])}
    mapper, dataset, _ = mapper_of(examples, rate)
    pasted = sum(len(mapper(dict(dataset[0]))["instances"]) for _ in range(200))
    assert low <= pasted <= high


@pytest.mark.parametrize(
    ("rate", "low", "high"), [(1.5, 0.3, 1.0), (-0.1, 0.3, 1.0), (1.0, 0.0, 1.0), (1.0, 0.9, 0.3)]
)
def test_impossible_settings_are_refused(rate, low, high):
    with pytest.raises(UserError, match=rf"INPUT\.COPY_PASTE.*{rate}.*{low}.*{high}"):
        CopyPasteMapper(dict, [{}], rate, low, high)


@pytest.mark.usefixtures("seeded")
def test_on_detectron2s_own_mapper(tmp_path):
    # From photo files: the receiver has no annotation at all, so its mapper gives no gt_masks.
    cfg = get_cfg()
    add_promerge_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN = (96,)
    cfg.INPUT.RANDOM_FLIP = "none"
    mask = square(96, 144, 84, 16, 120, 48)
    annotation = {**mask_record(mask), "category_id": 0, "bbox_mode": 1}
    empty = save_image(tmp_path / "empty.png", np.full((96, 144, 3), 20, np.uint8))
    full = save_image(tmp_path / "full.png", photo())
    dataset = [
        {"file_name": str(file), "height": 96, "width": 144, "annotations": annotations}
        for file, annotations in ((empty, []), (full, [annotation]))
    ]
    result = CopyPasteMapper(DatasetMapper(cfg, True), dataset, 1.0, 1.0, 1.0)(dataset[0])
    assert boxes_of(result) == [[84, 16, 120, 48]]
    assert (masks_of(result)[0].numpy() == mask).all()
    wanted = np.full((96, 144, 3), 20, np.uint8)
    wanted[mask] = (250, 230, 200)
    assert (result["image"].permute(1, 2, 0).numpy() == wanted).all()
    assert "instances" in result
    assert dataset[0]["annotations"] == []
