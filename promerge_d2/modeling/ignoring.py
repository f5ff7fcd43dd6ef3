"""Regions of which nobody knows whether they are objects: no punishment there (our own).

A label that was left out may well be an object. Whatever would be matched to it, had it been
trained on, is not taken for background. A crowd is a region of many objects: whatever lies in it
for the most part is not either. What is matched to a target stays an object.
"""

from __future__ import annotations

import torch
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances, pairwise_ioa, pairwise_iou
from detectron2.utils.memory import retry_if_cuda_oom

from promerge_d2.data.mapper import CROWD, LEFT_OUT, TARGET

IN_CROWD = 0.5  # a box is in a crowd with at least this share of its area


def split_ignored(targets: list[Instances]) -> tuple[list[Instances], list[Instances]]:
    """Split an image's labels into targets and what is ignored.

    Args:
        targets: of each image, ``gt_ignore`` among their fields or not.

    Returns:
        Of each image, what is trained on and what is not.
    """
    trained, ignored = [], []
    for instances in targets:
        if not instances.has("gt_ignore"):
            trained.append(instances)
            ignored.append(instances[:0])
            continue
        trained.append(instances[instances.gt_ignore == TARGET])
        ignored.append(instances[instances.gt_ignore != TARGET])
    return trained, ignored


def without_masks(targets: list[Instances]) -> list[Instances]:
    """Return labels without ``gt_masks``, which are slow to index."""
    return [
        Instances(
            image.image_size,
            **{name: value for name, value in image.get_fields().items() if name != "gt_masks"},
        )
        for image in targets
    ]


def in_ignored(boxes: Boxes, ignored: Instances, matcher: Matcher) -> torch.Tensor:
    """Find the boxes that may lie on an object which nobody labelled.

    Args:
        boxes: R of them, XYXY in pixels.
        ignored: what is ignored in their image, in the same frame.
        matcher: what would match boxes to targets.

    Returns:
        (R,) bool: True for what must not be taken for background.
    """
    found = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    if not len(ignored):
        return found
    labels = ignored.gt_boxes[ignored.gt_ignore == LEFT_OUT]
    if len(labels):
        found |= matcher(pairwise_iou(labels, boxes))[1] != 0
    crowds = ignored.gt_boxes[ignored.gt_ignore == CROWD]
    if len(crowds):
        found |= (pairwise_ioa(crowds, boxes) >= IN_CROWD).any(dim=0)
    return found


@PROPOSAL_GENERATOR_REGISTRY.register()
class IgnoringRPN(RPN):
    """An RPN whose background anchors are none where something is ignored.

    Without ``gt_ignore`` it is detectron2's.
    """

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Label anchors as ``RPN`` does; an ignored one has label -1 and is never sampled."""
        if not any(image.has("gt_ignore") for image in gt_instances):
            return super().label_and_sample_anchors(anchors, gt_instances)
        every = Boxes.cat(anchors)
        labels, boxes = [], []
        for truth, rest in zip(*split_ignored(without_masks(gt_instances)), strict=True):
            quality = retry_if_cuda_oom(pairwise_iou)(truth.gt_boxes, every)
            matched, label = retry_if_cuda_oom(self.anchor_matcher)(quality)
            label = label.to(every.device)
            if self.anchor_boundary_thresh >= 0:
                inside = every.inside_box(truth.image_size, self.anchor_boundary_thresh)
                label[~inside] = -1
            label[(label == 0) & in_ignored(every, rest, self.anchor_matcher)] = -1
            labels.append(self._subsample_labels(label))
            if len(truth):
                boxes.append(truth.gt_boxes.tensor[matched.to(every.device)])
            else:  # no anchor is an object, and no box is looked at
                boxes.append(torch.zeros_like(every.tensor))
        return labels, boxes
