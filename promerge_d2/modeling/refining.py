"""A detector whose masks follow the image's edges, as a labeler's do (our own).

A mask head draws 28 x 28 cells: on an object of 300 pixels a border is known to 10.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances


@META_ARCH_REGISTRY.register()
class RefiningRCNN(GeneralizedRCNN):
    """``GeneralizedRCNN`` with refined masks; training, boxes, scores and weights are the same."""

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list:
        """Do as ``GeneralizedRCNN`` does, and refine the masks where it would only resize them."""
        results = super().inference(batched_inputs, detected_instances, do_postprocess=False)
        if not do_postprocess:
            return results
        return [
            {
                "instances": refine_detections(
                    found,
                    image["image"],
                    image.get("height", found.image_size[0]),
                    image.get("width", found.image_size[1]),
                )
            }
            for found, image in zip(results, batched_inputs, strict=True)
        ]


def refine_detections(found: Instances, pixels: torch.Tensor, height: int, width: int) -> Instances:
    """Bring an image's detections to its full size, their masks along its edges.

    Masks are refined as those of preset ``best``, at the size that the network sees, whatever the
    photograph's is.

    Args:
        found: detections in pixels of the network's image, with ``pred_masks`` (N, 1, m, m) or
            without.
        pixels: (3, h, w) uint8, the network's image, not padded.
        height: of the photograph, in pixels.
        width: of the photograph, in pixels.

    Returns:
        As ``detector_postprocess`` does: boxes in pixels of the photograph, ``pred_masks``
        (N, height, width) bool.
    """
    # the labeler's room loads timm and compiled code: not for the import of a registry
    from promerge_d2.labeler import RegionsConfig
    from promerge_d2.labeler.refine import refine_or_keep

    if not found.has("pred_masks"):
        return detector_postprocess(found, height, width)
    pasted = detector_postprocess(found, *found.image_size)
    fields = {name: value for name, value in found.get_fields().items() if name != "pred_masks"}
    result = detector_postprocess(Instances(found.image_size, **fields), height, width)
    masks = pasted.pred_masks.cpu().numpy()
    drawn = np.flatnonzero(masks.any(axis=(1, 2)))
    if len(drawn):
        guide = np.ascontiguousarray(pixels.cpu().numpy().transpose(1, 2, 0))
        best = RegionsConfig()
        masks[drawn] = refine_or_keep(
            guide, masks[drawn], best.refine, best.refine_min_iou, best.min_fragment
        )
    full = np.empty((len(masks), height, width), bool)
    for mask, out in zip(masks.view(np.uint8), full, strict=True):
        out[:] = cv2.resize(255 * mask, (width, height), interpolation=cv2.INTER_LINEAR) > 127
    result.pred_masks = torch.from_numpy(full).to(pasted.pred_masks.device)
    return result
