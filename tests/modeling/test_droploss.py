import math

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

from promerge_d2 import add_promerge_config
from promerge_d2.data.mapper import LEFT_OUT
from promerge_d2.data.mapper import TARGET as TRAINED
from promerge_d2.modeling import (
    DropLossCascadeROIHeads,
    DropLossOutputLayers,
    DropLossStandardROIHeads,
)
from promerge_d2.modeling.droploss import (
    ContextPooler,
    add_loss_fields,
    share_masks,
    weighted_mask_loss,
)
from promerge_d2.modeling.ignoring import split_ignored
from promerge_d2.utils.errors import UserError
from tests.helpers import ROOT, square

SIZE = (100, 100)
LN2 = math.log(2)  # cross-entropy of equal scores for two classes


@pytest.fixture(autouse=True)
def storage():
    with EventStorage(0) as events:
        yield events


def predictor(threshold):
    return DropLossOutputLayers(
        ShapeSpec(channels=4),
        iou_threshold=threshold,
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        num_classes=1,
        cls_agnostic_bbox_reg=True,
    )


TARGET = [0, 0, 20, 20]


def proposals_of(boxes, classes, targets=(TARGET,)):
    """Proposals of one image with its targets; class 0 is the object, 1 the background."""
    proposals = Instances(SIZE)
    proposals.proposal_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    proposals.gt_boxes = proposals.proposal_boxes.clone()
    proposals.gt_classes = torch.tensor(classes, dtype=torch.int64)
    proposals.targets = targets_of(*targets).tensor.expand(len(proposals), -1, -1)
    return proposals


def targets_of(*boxes):
    return Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))


def still(count):
    """Equal scores, and deltas that leave the proposals where they are."""
    return torch.zeros(count, 2), torch.zeros(count, 4)


@pytest.mark.parametrize(
    ("box", "iou", "weight"),
    [
        ([50, 50, 60, 60], 0, 0),  # apart
        ([20, 0, 40, 20], 0, 0),  # touching: no common pixel
        ([0, 0, 10, 10], 0.25, 0),  # exactly the threshold: dropped
        ([0, 0, 10, 11], 0.275, 1),
        ([0, 0, 20, 20], 1, 1),
        ([0, 0, 10, 9], 0.225, 0),
    ],
)
def test_a_proposal_is_dropped_up_to_the_threshold(box, iou, weight):
    x = max(0, min(box[2], 20) - box[0]) * max(0, min(box[3], 20) - box[1])
    assert x / (400 + (box[2] - box[0]) * (box[3] - box[1]) - x) == iou
    layer = predictor(0.25)
    assert layer.weights(still(1), [proposals_of([box], [1])]).tolist() == [weight]


def test_the_published_threshold():
    # 400 of 40,000 pixels: IoU 0.01, dropped; one column more: 0.01005, kept.
    layer = predictor(0.01)
    boxes = [[0, 0, 20, 20], [0, 0, 20.1, 20]]
    proposals = proposals_of(boxes, [1, 1], targets=[[0, 0, 400, 100]])
    assert layer.weights(still(2), [proposals]).tolist() == [0, 1]


def test_the_predicted_box_counts_not_the_proposal():
    # dx moves a box by its own width times dx: the first leaves the target, the second enters.
    layer = predictor(0.01)
    proposals = proposals_of([[0, 0, 20, 20], [60, 0, 80, 20]], [0, 1])
    scores, _ = still(2)
    deltas = torch.tensor([[3.0, 0, 0, 0], [-3.0, 0, 0, 0]])
    assert layer.weights((scores, deltas), [proposals]).tolist() == [0, 1]
    assert layer.weights(still(2), [proposals]).tolist() == [1, 0]


def test_the_box_of_any_class_counts():
    layer = predictor(0.01)
    there, away = [0.0, 0, 0, 0], [3.0, 0, 0, 0]
    deltas = torch.tensor([[*there, *away], [*away, *there], [*away, *away]])
    images = [proposals_of([TARGET] * 3, [0, 1, 2])]
    assert layer.weights((torch.zeros(3, 3), deltas), images).tolist() == [1, 1, 0]


def test_the_predicted_box_is_not_clipped_to_the_image():
    # At 90..110 of an image of 100, half of the box is outside: IoU 200/400 clipped would be 1.
    layer = predictor(0.6)
    proposals = proposals_of([[70, 0, 90, 20]], [1], targets=[[90, 0, 100, 20]])
    scores, _ = still(1)
    moved = torch.tensor([[1.0, 0, 0, 0]])  # 70..90 to 90..110
    assert layer.weights((scores, moved), [proposals]).tolist() == [0]


def test_the_loss_is_divided_by_all_proposals():
    layer = predictor(0.01)
    boxes = [TARGET, [50, 50, 60, 60], [60, 60, 70, 70], [10, 10, 40, 40]]
    proposals = proposals_of(boxes, [0, 1, 1, 1])
    # Two of four are dropped; the kept ones each cost ln 2.
    losses = layer.losses(still(4), [proposals])
    assert losses["loss_cls"].item() == pytest.approx(2 * LN2 / 4)
    scores = torch.tensor([[2.0, 0.0], [9.0, 0.0], [9.0, 0.0], [0.0, 1.0]])
    loss = layer.losses((scores, torch.zeros(4, 4)), [proposals])["loss_cls"]
    wanted = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 4
    assert loss.item() == pytest.approx(wanted)


def test_foreground_can_be_dropped_like_background():
    # A proposal on an object whose predicted box went astray: both kinds alike, docs/recipe.md.
    layer = predictor(0.01)
    scores, _ = still(1)
    astray = torch.tensor([[4.0, 0, 0, 0]])
    losses = layer.losses((scores, astray), [proposals_of([TARGET], [0])])
    assert losses["loss_cls"].item() == 0
    assert losses["loss_box_reg"].item() > 0


def test_box_regression_is_not_dropped():
    proposals = proposals_of([TARGET, [50, 50, 60, 60]], [0, 1])
    proposals.gt_boxes = Boxes(torch.tensor([[0, 0, 20, 30], TARGET], dtype=torch.float32))
    layer = predictor(0.01)
    # centre 5 lower of 20, height times 1.5: |5/20| + ln 1.5, over two proposals
    wanted = (0.25 + math.log(1.5)) / 2
    assert layer.losses(still(2), [proposals])["loss_box_reg"].item() == pytest.approx(wanted)


def test_the_gradient_goes_through_scores_of_kept_proposals_only():
    layer = predictor(0.01)
    proposals = proposals_of([TARGET, [50, 50, 60, 60]], [1, 1])  # no regression on background
    scores = torch.zeros(2, 2, requires_grad=True)
    deltas = torch.zeros(2, 4, requires_grad=True)
    assert not layer.weights((scores, deltas), [proposals]).requires_grad
    layer.losses((scores, deltas), [proposals])["loss_cls"].backward()
    # d CE / d scores = softmax - one-hot = (0.5, -0.5), over two proposals
    assert scores.grad.tolist() == [[0.25, -0.25], [0.0, 0.0]]
    assert deltas.grad is None


def test_an_image_without_targets_keeps_the_ordinary_loss():
    layer = predictor(0.01)
    empty = proposals_of([[0, 0, 5, 5], [50, 50, 60, 60]], [1, 1], targets=[])
    other = proposals_of([TARGET, [50, 50, 60, 60]], [0, 1])
    assert layer.weights(still(4), [empty, other]).tolist() == [1, 1, 1, 0]
    assert layer.losses(still(4), [empty, other])["loss_cls"].item() == pytest.approx(3 * LN2 / 4)


def test_targets_of_one_image_do_not_count_for_another():
    layer = predictor(0.01)
    boxes = [TARGET, [80, 80, 90, 90]]
    images = [proposals_of(boxes, [1, 1], targets=[target]) for target in boxes[::-1]]
    assert layer.weights(still(4), images).tolist() == [0, 1, 1, 0]


def test_all_targets_count_even_those_that_no_proposal_was_matched_to():
    # Every proposal was matched to the first target; the released code would not see the second.
    layer = predictor(0.01)
    boxes = [TARGET, [65, 65, 85, 85], [30, 30, 50, 50]]
    proposals = proposals_of(boxes, [0, 1, 1], targets=[TARGET, [60, 60, 80, 80]])
    proposals.gt_boxes = Boxes(torch.tensor([TARGET] * 3, dtype=torch.float32))
    assert layer.weights(still(3), [proposals]).tolist() == [1, 1, 0]


def test_an_image_without_proposals():
    layer = predictor(0.01)
    images = [proposals_of([], []), proposals_of([TARGET], [0])]
    assert layer.weights(still(1), images).tolist() == [1]
    losses = layer.losses(still(0), [proposals_of([], [])])
    assert losses["loss_cls"].item() == 0


def test_a_negative_threshold_is_the_ordinary_loss():
    layer = predictor(-1.0)
    proposals = proposals_of([TARGET, [50, 50, 60, 60], [30, 0, 45, 20]], [0, 1, 1])
    torch.manual_seed(0)
    predictions = torch.randn(3, 2), torch.randn(3, 4)
    plain = FastRCNNOutputLayers(
        ShapeSpec(channels=4),
        box2box_transform=layer.box2box_transform,
        num_classes=1,
        cls_agnostic_bbox_reg=True,
    )
    ours, theirs = layer.losses(predictions, [proposals]), plain.losses(predictions, [proposals])
    assert ours.keys() == theirs.keys() == {"loss_cls", "loss_box_reg"}
    for name in ours:
        assert ours[name].item() == pytest.approx(theirs[name].item(), rel=1e-6)


def test_what_is_logged(storage):
    layer = predictor(0.01)
    boxes = [TARGET, [50, 50, 60, 60], [60, 60, 70, 70], [10, 10, 40, 40]]
    images = [proposals_of(boxes, [0, 1, 1, 1]), proposals_of([], [], targets=[])]
    layer.losses(still(4), images)
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest["droploss/kept_foreground"] == 1
    assert latest["droploss/kept_background"] == pytest.approx(1 / 3)
    assert latest["droploss/images_without_targets"] == 1
    assert "ignored_background" not in latest


# Ignored, weighted and soft labels


def test_background_at_an_ignored_label_is_not_punished(storage):
    layer = predictor(-1.0)
    boxes = [TARGET, [50, 50, 70, 70], [50, 50, 70, 59], [80, 0, 90, 10]]
    images = [proposals_of(boxes, [0, 1, 1, 1]), proposals_of(boxes, [0, 1, 1, 1])]
    for image, rest in zip(images, ([False, True, False, False], [False] * 4), strict=True):
        image.ignored = torch.tensor(rest)
    loss = layer.losses(still(8), images)["loss_cls"].item()
    assert loss == pytest.approx(7 * LN2 / 8)
    assert storage.latest()["ignored_background"][0] == pytest.approx(1 / 6)


def test_an_object_near_an_ignored_label_stays_an_object():
    image = proposals_of([TARGET], [0])
    image.ignored = torch.tensor([True])
    loss = predictor(-1.0).losses(still(1), [image])["loss_cls"].item()
    assert loss == pytest.approx(LN2)


def labels_of(boxes, kinds):
    """Labels of one image: TRAINED or LEFT_OUT each."""
    labels = Instances(SIZE)
    labels.gt_boxes = targets_of(*boxes)
    labels.gt_ignore = torch.tensor(kinds, dtype=torch.int64)
    return labels


def test_what_the_losses_need_is_put_on_the_proposals():
    left_out = [50, 50, 70, 70]
    labels = [labels_of([TARGET, left_out], [TRAINED, LEFT_OUT]), labels_of([TARGET], [TRAINED])]
    # an object, IoU 1 with the ignored, IoU 0.45 with it, far away
    boxes = [TARGET, left_out, [50, 50, 70, 59], [80, 0, 90, 10]]
    images = [proposals_of(boxes, [0, 1, 1, 1]), proposals_of(boxes, [0, 1, 1, 1])]
    add_loss_fields(images, *split_ignored(labels), Matcher([0.5], [0, 1]))
    assert [image.ignored.tolist() for image in images] == [
        [False, True, False, False],
        [False] * 4,
    ]
    assert images[0].targets.tolist() == [[TARGET]] * 4
    for image in labels:
        image.remove("gt_ignore")
    bare = [proposals_of(boxes, [0, 1, 1, 1], targets=[]) for _ in images]
    add_loss_fields(bare, *split_ignored(labels), Matcher([0.5], [0, 1]))
    assert not any(image.has("ignored") for image in bare)
    assert bare[0].targets[2].tolist() == [TARGET, left_out]


def weighted(boxes, classes, **fields):
    proposals = proposals_of(boxes, classes)
    for name, values in fields.items():
        proposals.set(name, torch.tensor(values))
    return proposals


def test_losses_by_a_labels_weight():
    layer = predictor(-1.0)
    far = [50, 50, 60, 60]
    # the background's weight is that of a target it was not matched to: it does not count
    image = weighted([TARGET, TARGET, far], [0, 0, 1], gt_weights=[0.25, 1.0, 0.25])
    image.gt_boxes = targets_of([0, 0, 20, 30], [0, 0, 20, 30], TARGET)
    losses = layer.losses(still(4), [image, proposals_of([far], [1], targets=[])])
    assert losses["loss_cls"].item() == pytest.approx((0.25 + 1 + 1 + 1) * LN2 / 4)
    one = 0.25 + math.log(1.5)  # see test_box_regression_is_not_dropped
    assert losses["loss_box_reg"].item() == pytest.approx((0.25 + 1) * one / 4)


@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou", "ciou"])
@pytest.mark.parametrize("agnostic", [True, False])
def test_a_weight_of_one_changes_nothing(kind, agnostic):
    torch.manual_seed(0)
    layer = DropLossOutputLayers(
        ShapeSpec(channels=4),
        iou_threshold=-1.0,
        box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
        num_classes=2,
        cls_agnostic_bbox_reg=agnostic,
        box_reg_loss_type=kind,
        smooth_l1_beta=0.1,
        loss_weight={"loss_cls": 2.0, "loss_box_reg": 3.0},
    )
    predictions = torch.randn(3, 3), torch.randn(3, 4 if agnostic else 8)
    boxes, classes = [[0, 0, 20, 24], [2, 0, 25, 20], [50, 50, 60, 60]], [1, 0, 2]
    plain, same = (
        proposals_of(boxes, classes),
        weighted(boxes, classes, gt_weights=[1.0] * 3, gt_soft=[1.0] * 3),
    )
    for image in (plain, same):
        image.gt_boxes = targets_of(*[TARGET] * 3)
    wanted, found = layer.losses(predictions, [plain]), layer.losses(predictions, [same])
    for name in wanted:
        assert found[name].item() == pytest.approx(wanted[name].item(), rel=1e-6)


def test_a_losss_weight_multiplies_it():
    proposals = proposals_of([TARGET, [50, 50, 60, 60], [10, 10, 40, 40]], [0, 1, 1])
    proposals.gt_boxes = targets_of([0, 0, 20, 30], TARGET, TARGET)
    plain, heavy = predictor(0.01), predictor(0.01)
    heavy.loss_weight = {"loss_cls": 2.0, "loss_box_reg": 3.0}
    wanted, found = (layer.losses(still(3), [proposals]) for layer in (plain, heavy))
    assert wanted["loss_cls"].item() == pytest.approx(2 * LN2 / 3)  # one of three is dropped
    assert found["loss_cls"].item() == pytest.approx(2 * wanted["loss_cls"].item())
    assert found["loss_box_reg"].item() == pytest.approx(3 * wanted["loss_box_reg"].item())


def test_soft_labels():
    layer = predictor(-1.0)
    image = weighted([TARGET, [50, 50, 60, 60]], [0, 1], gt_soft=[0.25, 0.25])
    scores = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    loss = layer.losses((scores, torch.zeros(2, 4)), [image])["loss_cls"]
    sure, unsure = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    assert loss.item() == pytest.approx((0.25 * sure + 0.75 * unsure + unsure) / 2)
    loss.backward()
    p = 1 / (1 + math.exp(-1))
    assert scores.grad[0].tolist() == pytest.approx([(p - 0.25) / 2, (0.25 - p) / 2])


def test_mask_losses_by_a_labels_weight():
    # Two masks that fill their boxes; logits 0 cost ln 2 a pixel, logits 2 ln(1 + e^-2).
    instances = weighted([TARGET, TARGET], [0, 0], gt_weights=[0.5, 1.0])
    instances.gt_masks = BitMasks(torch.from_numpy(np.stack([square(100, 100, *TARGET)] * 2)))
    logits = torch.stack([torch.zeros(1, 4, 4), torch.full((1, 4, 4), 2.0)])
    nothing = weighted([], [], gt_weights=[])
    wanted = (0.5 * LN2 + math.log(1 + math.exp(-2))) / 2
    assert weighted_mask_loss(logits, [instances, nothing]).item() == pytest.approx(wanted)
    assert weighted_mask_loss(logits[:0], [nothing]).item() == 0


def test_masks_of_regions_are_shared_not_copied():
    truth = Instances(SIZE, gt_classes=torch.zeros(2, dtype=torch.int64))
    truth.gt_masks = masks = BitMasks(
        torch.from_numpy(np.stack([square(100, 100, *TARGET), square(100, 100, 50, 40, 90, 80)]))
    )
    (shared,) = share_masks([truth])
    assert truth.gt_masks is masks  # the caller's stay
    rows = torch.tensor([1, 0, 1, 1])
    chosen = torch.tensor([True, True, False, True])
    found = shared.gt_masks[rows][chosen]
    assert len(found) == 3
    assert found.masks is masks
    boxes = torch.tensor([[45.0, 38.5, 71.25, 60], [3, 2, 33, 27], [60, 50, 120, 101]])
    wanted = masks[rows][chosen].crop_and_resize(boxes, 14)
    assert 0 < wanted.float().mean() < 1
    assert torch.equal(found.crop_and_resize(boxes, 14), wanted)
    assert found[:0].crop_and_resize(boxes[:0], 14).shape == (0, 14, 14)


def test_the_box_head_sees_what_is_around_a_region():
    features = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    pooler = ROIPooler(4, (1 / 8,), 1, "ROIAlignV2")
    regions = [targets_of([40, 60, 80, 80]), targets_of([16, 24, 56, 104], [0, 0, 20, 20])]
    wider = [targets_of([30, 55, 90, 85]), targets_of([6, 4, 66, 124], [-5, -5, 25, 25])]
    found = ContextPooler(pooler, 1.5)([features], regions)
    assert torch.allclose(found, pooler([features], wider), atol=1e-6)
    assert regions[0].tensor.tolist() == [[40, 60, 80, 80]]
    with pytest.raises(UserError, match=r"ROI_BOX_HEAD\.CONTEXT is 0\.9"):
        ContextPooler(pooler, 0.9)


# The heads


def heads_config(threshold=0.01):
    cfg = get_cfg()
    add_promerge_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / "promerge_cascade.yaml"))
    cfg.MODEL.ROI_HEADS.DROPLOSS_IOU_THRESH = threshold
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p4"]
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 3
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 4
    return cfg


def scene():
    """Features, proposals and targets of two images; the second has no target."""
    torch.manual_seed(1)
    features = {"p4": torch.randn(2, 8, 7, 7)}
    images = ImageList(torch.zeros(2, 3, 112, 112), [(112, 112)] * 2)
    proposals, targets = [], []
    for boxes in ([[10, 10, 50, 50], [70, 70, 100, 100]], []):
        corner = torch.rand(30, 2) * 70
        candidates = Instances((112, 112))
        candidates.proposal_boxes = Boxes(
            torch.cat([corner, corner + 10 + 30 * torch.rand(30, 2)], 1)
        )
        candidates.objectness_logits = torch.zeros(30)
        proposals.append(candidates)
        truth = Instances((112, 112))
        truth.gt_boxes = targets_of(*boxes)
        truth.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
        masks = [torch.from_numpy(square(112, 112, *box)) for box in boxes]
        truth.gt_masks = BitMasks(torch.stack(masks) if masks else torch.zeros(0, 112, 112))
        targets.append(truth)
    return images, features, proposals, targets


def losses_of(kind, cfg, state=None):
    heads = kind(cfg, {"p4": ShapeSpec(channels=8, stride=16)}).train()
    if state is not None:
        heads.load_state_dict(state)
    torch.manual_seed(2)  # proposals are sampled
    _, losses = heads(*scene())
    return heads, {name: loss.item() for name, loss in losses.items()}


def predictors_of(heads):
    layers = heads.box_predictor
    return layers if isinstance(layers, torch.nn.ModuleList) else [layers]


KINDS = {
    CascadeROIHeads: DropLossCascadeROIHeads,
    StandardROIHeads: DropLossStandardROIHeads,
}


@pytest.mark.parametrize("theirs", KINDS)
def test_only_boxes_are_seen_with_context(theirs):
    cfg = heads_config()
    first, plain = losses_of(KINDS[theirs], cfg)
    cfg.MODEL.ROI_BOX_HEAD.CONTEXT = 1.5
    heads, found = losses_of(KINDS[theirs], cfg, first.state_dict())
    assert heads.box_pooler.context == 1.5
    changed = {name for name in plain if plain[name] != found[name]}
    assert changed == plain.keys() - {"loss_mask"}


@pytest.mark.parametrize("theirs", KINDS)
def test_a_negative_threshold_is_a_plain_head(theirs):
    plain, wanted = losses_of(theirs, heads_config())
    ours, found = losses_of(KINDS[theirs], heads_config(-1.0), plain.state_dict())
    names = {"loss_mask", "loss_cls", "loss_box_reg"}
    if theirs is CascadeROIHeads:
        names = {"loss_mask"} | {
            f"loss_{kind}_stage{stage}" for kind in ("cls", "box_reg") for stage in range(3)
        }
    assert set(found) == names
    assert found == pytest.approx(wanted, rel=1e-6)
    for one, other in zip(predictors_of(plain), predictors_of(ours), strict=True):
        assert one.box2box_transform.weights == other.box2box_transform.weights
        assert one.test_topk_per_image == other.test_topk_per_image


@pytest.mark.parametrize("theirs", KINDS)
def test_only_classification_changes(theirs):
    plain, wanted = losses_of(theirs, heads_config())
    _, found = losses_of(KINDS[theirs], heads_config(0.01), plain.state_dict())
    for name, loss in found.items():
        if name.startswith("loss_cls"):
            assert loss < wanted[name]
        else:
            assert loss == pytest.approx(wanted[name], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS.values())
def test_weights_and_ignored_labels_reach_every_loss(kind, storage):
    cfg = heads_config(-1.0)
    images, features, proposals, targets = scene()
    heads = kind(cfg, {"p4": ShapeSpec(channels=8, stride=16)}).train()

    def losses(weight=None, ignore=None):
        for truth in targets:
            truth.gt_ignore = torch.full((len(truth),), TRAINED if ignore is None else ignore)
            if weight is not None:
                truth.gt_weights = torch.full((len(truth),), weight)
        torch.manual_seed(2)
        copies = [image[:] for image in proposals]
        return {
            name: loss.item() for name, loss in heads(images, features, copies, targets)[1].items()
        }

    plain, halved = losses(), losses(weight=0.5)
    for name, loss in plain.items():
        if name.startswith("loss_cls"):
            assert 0.5 * loss < halved[name] < loss  # background weighs as before
        else:
            assert halved[name] == pytest.approx(0.5 * loss, rel=1e-5)
    ignored = losses(ignore=LEFT_OUT)
    assert ignored["loss_mask"] == 0
    assert storage.latest()["roi_head/num_fg_samples"][0] == 0
    name = "stage2/ignored_background" if "loss_cls_stage2" in plain else "ignored_background"
    assert name in storage.latest()


def test_a_later_stage_knows_the_weight_of_the_label_that_it_matches():
    heads = DropLossCascadeROIHeads(heads_config(), {"p4": ShapeSpec(channels=8, stride=16)})
    truth = Instances(SIZE)
    truth.gt_boxes = targets_of(TARGET, [60, 60, 80, 80])
    truth.gt_classes = torch.zeros(2, dtype=torch.int64)
    truth.gt_weights, truth.gt_soft = torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4])
    proposals = [Instances(SIZE), Instances(SIZE)]
    for image in proposals:
        image.proposal_boxes = targets_of([60, 60, 80, 79], [0, 0, 20, 19], [0, 0, 10, 19])
    matched, bare = heads._match_and_label_boxes(proposals, 1, [truth, truth[:0]])
    assert matched.gt_classes.tolist() == [0, 0, 1]
    assert matched.gt_weights.tolist() == pytest.approx([0.2, 0.1, 0.1])
    assert matched.gt_soft.tolist() == pytest.approx([0.4, 0.3, 0.3])
    assert not bare.has("gt_weights")


def test_a_later_stage_ignores_what_its_own_matcher_matches():
    heads = DropLossCascadeROIHeads(heads_config(), {"p4": ShapeSpec(channels=8, stride=16)})
    truth = labels_of([TARGET, [60, 60, 80, 80]], [TRAINED, LEFT_OUT])
    truth.gt_classes = torch.zeros(2, dtype=torch.int64)
    proposals = [Instances(SIZE)]
    # IoU with what is left out: 0.95, 0.55 (a match of the first stage only), 0
    proposals[0].proposal_boxes = targets_of([60, 60, 80, 79], [60, 60, 80, 71], TARGET)
    (second,) = heads._match_and_label_boxes(proposals, 1, [truth])
    assert second.ignored.tolist() == [True, False, False]
    assert second.targets.tolist() == [[TARGET]] * 3
    (first,) = heads._match_and_label_boxes(proposals, 0, [truth])
    assert first.ignored.tolist() == [True, True, False]


def test_every_stage_drops_by_its_own_predictions(storage, monkeypatch):
    calls = []
    real = DropLossOutputLayers.weights

    def spy(self, predictions, proposals):
        weights = real(self, predictions, proposals)
        calls.append((self, [image.targets[0].tolist() for image in proposals], weights))
        return weights

    monkeypatch.setattr(DropLossOutputLayers, "weights", spy)
    heads, _ = losses_of(DropLossCascadeROIHeads, heads_config())
    assert [layer for layer, _, _ in calls] == list(heads.box_predictor)
    assert [layer.iou_threshold for layer in heads.box_predictor] == [0.01] * 3
    full = [[[10, 10, 50, 50], [70, 70, 100, 100]], []]
    for _, targets, weights in calls:
        assert targets == full
        assert len(weights) == 32  # 16 an image
        assert (weights[16:] == 1).all()  # the image without targets
        assert 0 < weights[:16].sum() < 16
    names = set(storage.latest())
    for stage in range(3):
        assert f"stage{stage}/droploss/kept_background" in names
        assert f"stage{stage}/droploss/images_without_targets" in names


@pytest.mark.parametrize("theirs", KINDS)
def test_inference_is_the_plain_heads(theirs):
    plain, _ = losses_of(theirs, heads_config())
    ours, _ = losses_of(KINDS[theirs], heads_config(), plain.state_dict())
    images, features, proposals, _ = scene()
    with torch.no_grad():
        wanted, _ = plain.eval()(images, features, proposals)
        found, _ = ours.eval()(images, features, proposals)
    for one, other in zip(found, wanted, strict=True):
        assert len(one) > 0
        assert torch.equal(one.pred_boxes.tensor, other.pred_boxes.tensor)
        assert torch.equal(one.scores, other.scores)
