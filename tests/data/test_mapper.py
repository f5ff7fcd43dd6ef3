import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, transforms

from promerge_d2 import add_promerge_config
from promerge_d2.coco.records import mask_record
from promerge_d2.data.mapper import CROWD, LEFT_OUT, TARGET, LabelChoice, LabelMapper
from promerge_d2.utils.errors import UserError
from tests.helpers import photo, save_image, square


def labels(*scores):
    """Annotations of these scores; None: a crowd."""
    return [{"iscrowd": 1} if score is None else {"score": score} for score in scores]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [TARGET, TARGET, None, TARGET, TARGET]),
        ({"min_score": 0.2}, [None, TARGET, None, TARGET, None]),  # 0.2 itself is enough
        ({"max_per_image": 1}, [None, None, None, TARGET, None]),
        ({"max_per_image": 3}, [TARGET, TARGET, None, TARGET, None]),  # a tie: the first
        ({"max_per_image": 9}, [TARGET, TARGET, None, TARGET, TARGET]),
        ({"min_score": 0.2, "max_per_image": 1}, [None, None, None, TARGET, None]),
        ({"ignore_rest": True}, [TARGET, TARGET, CROWD, TARGET, TARGET]),
        (
            {"ignore_rest": True, "max_per_image": 1},
            [LEFT_OUT, LEFT_OUT, CROWD, TARGET, LEFT_OUT],
        ),
        (
            {"ignore_rest": True, "min_score": 0.3},
            [LEFT_OUT, LEFT_OUT, CROWD, TARGET, LEFT_OUT],
        ),
    ],
)
def test_which_labels_are_trained_on(options, wanted):
    assert LabelChoice(**options)(labels(0.1, 0.2, None, 0.3, 0.1)) == wanted


def test_labels_without_a_score_are_sure():
    choice = LabelChoice(max_per_image=1)
    assert choice([{"score": 0.9}, {}]) == [None, TARGET]


@pytest.mark.parametrize(
    ("scores", "wanted"), [((0.1, 0.2), True), ((0.1, None), False), ((), False)]
)
def test_images_without_anything_to_train_on(scores, wanted):
    choice = LabelChoice(min_score=0.2, ignore_rest=True)
    assert choice.has_target({"annotations": labels(*scores)}) is wanted


@pytest.mark.parametrize("name", ["max_per_image", "weight_power", "soft_power"])
def test_negative_options_are_refused(name):
    with pytest.raises(UserError, match=rf"PSEUDO_LABELS\.{name.upper()} .*-1"):
        LabelChoice(**{name: -1})


# The mapper

BOXES = [(84, 16, 120, 48), (12, 40, 48, 80), (24, 8, 72, 40), (0, 0, 10, 10)]
SCORES = [0.2, 0.4, 0.1, None]


@pytest.fixture
def record(tmp_path):
    """A dict of a photo with three labels and a crowd."""
    annotations = []
    for box, score in zip(BOXES, SCORES, strict=True):
        thing = {**mask_record(square(96, 144, *box)), "category_id": 0, "bbox_mode": 1}
        annotations.append({**thing, **labels(score)[0]})
    file = save_image(tmp_path / "photo.png", photo())
    return {"file_name": str(file), "height": 96, "width": 144, "annotations": annotations}


def mapped(record, flip=False, **options):
    cfg = get_cfg()
    add_promerge_config(cfg)
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN = (96,)
    cfg.INPUT.RANDOM_FLIP = "none"
    for name, value in options.items():
        cfg.INPUT.PSEUDO_LABELS[name] = value
    kinds = []
    for kind in (LabelMapper, DatasetMapper):
        mapper = kind(cfg, True)
        if flip:
            mapper.augmentations = transforms.AugmentationList(
                [transforms.RandomFlip(prob=1.0, horizontal=True)]
            )
        kinds.append(mapper(record))
    return kinds


def boxes(example):
    return example["instances"].gt_boxes.tensor.tolist()


def test_without_options_examples_are_detectron2s(record):
    ours, theirs = mapped(record)
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["image"], theirs["image"])
    assert ours["instances"].get_fields().keys() == theirs["instances"].get_fields().keys()
    assert boxes(ours) == boxes(theirs) == [list(map(float, box)) for box in BOXES[:3]]
    assert torch.equal(ours["instances"].gt_masks.tensor, theirs["instances"].gt_masks.tensor)
    assert len(record["annotations"]) == 4


def test_fields_stay_with_their_labels(record):
    options = {"MAX_PER_IMAGE": 2, "IGNORE_REST": True, "WEIGHT_POWER": 1.0, "SOFT_POWER": 0.5}
    example, _ = mapped(record, flip=True, **options)
    assert boxes(example) == [[144.0 - x1, y0, 144.0 - x0, y1] for x0, y0, x1, y1 in BOXES]
    instances = example["instances"]
    assert instances.gt_ignore.tolist() == [TARGET, TARGET, LEFT_OUT, CROWD]
    # over 0.4, the best
    assert instances.gt_weights[:3].tolist() == pytest.approx([0.5, 1.0, 0.25])
    assert instances.gt_soft[:3].tolist() == pytest.approx([0.5**0.5, 1.0, 0.5])
    masks = instances.gt_masks.tensor.numpy()
    for mask, box in zip(masks, BOXES, strict=True):
        assert np.array_equal(mask[:, ::-1], square(96, 144, *box))


def test_a_label_that_vanishes_takes_its_fields_along(record):
    record["annotations"][0]["segmentation"] = mask_record(np.zeros((96, 144), bool))[
        "segmentation"
    ]
    example, _ = mapped(record, MAX_PER_IMAGE=2, IGNORE_REST=True, WEIGHT_POWER=2.0)
    assert example["instances"].gt_ignore.tolist() == [TARGET, LEFT_OUT, CROWD]
    assert example["instances"].gt_weights[:2].tolist() == pytest.approx([1.0, 1 / 16])


def test_a_box_outside_the_image_is_the_masks(record):
    record["annotations"][1]["bbox"] = [200.0, 10.0, 5.0, 5.0]
    example, _ = mapped(record)
    assert boxes(example) == [list(map(float, box)) for box in BOXES[:3]]


def test_an_image_without_labels(record):
    record["annotations"] = []
    example, _ = mapped(record, IGNORE_REST=True, WEIGHT_POWER=1.0, SOFT_POWER=1.0)
    assert len(example["instances"]) == 0
    assert example["instances"].gt_weights.shape == (0,)


def test_scores_of_zero_weigh_alike(record):
    for annotation in record["annotations"]:
        annotation["score"] = 0.0
    example, _ = mapped(record, WEIGHT_POWER=1.0)
    assert example["instances"].gt_weights.tolist() == [1.0, 1.0, 1.0]
