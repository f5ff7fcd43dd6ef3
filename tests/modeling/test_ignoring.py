import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

from promerge_d2 import add_promerge_config
from promerge_d2.data.mapper import CROWD, LEFT_OUT, TARGET
from promerge_d2.modeling import IgnoringRPN
from promerge_d2.modeling.ignoring import in_ignored, split_ignored

RPN_MATCHER = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)
ROI_MATCHER = Matcher([0.5], [0, 1], allow_low_quality_matches=False)


def instances_of(boxes, kinds=None):
    instances = Instances((100, 100))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    if kinds is not None:
        instances.gt_ignore = torch.tensor(kinds, dtype=torch.int64)
    return instances


def ignored(boxes, kinds, candidates, matcher=ROI_MATCHER):
    found = in_ignored(
        Boxes(torch.tensor(candidates, dtype=torch.float32)), instances_of(boxes, kinds), matcher
    )
    return found.tolist()


def test_targets_and_the_rest():
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]
    trained, rest = split_ignored(
        [instances_of(boxes, [LEFT_OUT, TARGET, CROWD]), instances_of(boxes)]
    )
    assert trained[0].gt_boxes.tensor.tolist() == [boxes[1]]
    assert rest[0].gt_boxes.tensor.tolist() == [boxes[0], boxes[2]]
    assert len(trained[1]) == 3
    assert len(rest[1]) == 0


def test_a_box_that_would_be_matched_to_a_label_that_was_left_out():
    # of a label of 10 x 10: 10 x 4 has IoU 0.4, 10 x 5 has 0.5
    candidates = [[0, 0, 10, 4], [0, 0, 10, 5], [50, 50, 60, 60]]
    label = [[0, 0, 10, 10]]
    assert ignored(label, [LEFT_OUT], candidates) == [False, True, False]
    # the RPN takes for background what is below 0.3, and its best box is a match all the same
    assert ignored(label, [LEFT_OUT], [[0, 0, 10, 2], *candidates], RPN_MATCHER) == [
        *(False, True, True, False)
    ]
    assert ignored(label, [LEFT_OUT], [[0, 0, 10, 2]], RPN_MATCHER) == [True]


def test_a_large_label_does_not_hide_small_boxes_but_a_crowd_does():
    region, small = [[0, 0, 100, 100]], [[10, 10, 20, 20]]
    assert ignored(region, [LEFT_OUT], small) == [False]
    assert ignored(region, [CROWD], small) == [True]


def test_half_of_a_box_in_a_crowd():
    candidates = [[5, 0, 15, 10], [6, 0, 16, 10]]
    assert ignored([[0, 0, 10, 10]], [CROWD], candidates) == [True, False]


def test_nothing_is_ignored():
    assert ignored([], [], [[0, 0, 10, 10]]) == [False]


# The RPN


@pytest.fixture
def rpn_parts():
    """An RPN with anchors of 20 x 20 at every 10 pixels of 40 x 40, and its anchors."""
    cfg = get_cfg()
    add_promerge_config(cfg)
    cfg.MODEL.RPN.IN_FEATURES = ["p"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[20]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.5
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 16
    shape = {"p": ShapeSpec(channels=4, stride=10)}
    torch.manual_seed(0)
    plain = RPN(cfg, shape)
    ours = IgnoringRPN(cfg, shape)
    ours.load_state_dict(plain.state_dict())
    anchors = plain.anchor_generator([torch.zeros(1, 4, 4, 4)])
    return plain, ours, anchors


def test_ignored_anchors_are_neither_sampled_nor_punished(rpn_parts):
    _, ours, anchors = rpn_parts
    # Anchors are centred at 5, 15, 25, 35. The target is that at (15, 15); left out is (25, 25).
    boxes = [[5.0, 5.0, 25.0, 25.0], [15.0, 15.0, 35.0, 35.0]]
    labels, matched = ours.label_and_sample_anchors(
        anchors,
        [instances_of(boxes, [TARGET, LEFT_OUT]), instances_of(boxes[:1])],
    )
    grid = labels[0].reshape(4, 4).tolist()
    # IoU with a neighbour is 1/3: in between, thus not sampled for the target either.
    # Around the target: its four neighbours; around the left-out: its own and its neighbours'.
    assert grid == [
        [0, -1, 0, 0],
        [-1, 1, -1, 0],
        [0, -1, -1, -1],
        [0, 0, -1, 0],
    ]
    assert matched[0][5].tolist() == boxes[0]
    alone = labels[1].reshape(4, 4).tolist()
    assert alone == [[0, -1, 0, 0], [-1, 1, -1, 0], [0, -1, 0, 0], [0, 0, 0, 0]]


def test_an_image_with_nothing_but_ignored_labels(rpn_parts):
    _, ours, anchors = rpn_parts
    labels, _ = ours.label_and_sample_anchors(
        anchors, [instances_of([[15.0, 15.0, 35.0, 35.0]], [LEFT_OUT])]
    )
    assert (labels[0] == -1).sum() == 5
    assert (labels[0] == 0).sum() == 11


@pytest.mark.parametrize("kinds", [None, [TARGET]])
@pytest.mark.parametrize("boundary", [-1, 0])
def test_without_ignored_labels_it_is_detectron2s(rpn_parts, kinds, boundary):
    plain, ours, _ = rpn_parts
    plain.anchor_boundary_thresh = ours.anchor_boundary_thresh = boundary
    torch.manual_seed(1)
    features = {"p": torch.randn(2, 4, 4, 4)}
    images = ImageList(torch.zeros(2, 3, 40, 40), [(40, 40)] * 2)
    truth = [instances_of([[5.0, 5.0, 25.0, 25.0]], kinds), instances_of([], kinds and [])]
    found = []
    for rpn in (plain, ours):
        torch.manual_seed(2)
        with EventStorage(0):
            proposals, losses = rpn.train()(images, features, truth)
        found.append((proposals, losses))
    assert found[0][1] == found[1][1]
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert torch.equal(one.proposal_boxes.tensor, other.proposal_boxes.tensor)
