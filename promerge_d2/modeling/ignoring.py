"""Regions of which nobody knows whether they are objects: no punishment there (our own).

A label that was left out may well be an object. Whatever would be matched to it, had it been
trained on, is not taken for background. A crowd is a region of many objects: whatever lies in it
for the most part is not either. What is matched to a target stays an object.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances, pairwise_ioa, pairwise_iou

from promerge_d2.data.mapper import CROWD, LEFT_OUT, TARGET

IN_CROWD = 0.5  # a box is in a crowd with at least this share of its area


def split_ignored(targets: list[Instances]) -> tuple[list[Instances], list[Instances]]:
    """Tell targets from what is ignored.

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


def in_ignored(boxes: Boxes, ignored: Instances, matcher: Matcher) -> torch.Tensor:
    """Which boxes are no background, for all that is known.

    Args:
        boxes: R of them.
        ignored: what is ignored in their image.
        matcher: what would match boxes to targets.

    Returns:
        (R,) bool.
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

    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """See ``RPN``; an ignored anchor has label -1 and takes no place in the sample."""
        trained, ignored = split_ignored(gt_instances)
        every = Boxes.cat(anchors)
        self._ignored = (in_ignored(every, image, self.anchor_matcher) for image in ignored)
        return super().label_and_sample_anchors(anchors, trained)

    _ignored: Iterator[torch.Tensor]  # of each image, in the order in which they are sampled

    def _subsample_labels(self, label: torch.Tensor) -> torch.Tensor:
        label[(label == 0) & next(self._ignored)] = -1
        return super()._subsample_labels(label)
