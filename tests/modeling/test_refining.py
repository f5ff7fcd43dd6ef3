import numpy as np
import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

from promerge_d2.labeler.refine import refine_masks, refiners
from promerge_d2.modeling.refining import RefiningRCNN, refine_detections

HEIGHT, WIDTH = 120, 160


def disc(scale=1):
    y, x = np.mgrid[: HEIGHT * scale, : WIDTH * scale] / scale
    return (y - 60) ** 2 + (x - 80) ** 2 < 40**2


def picture():
    pixels = np.where(disc()[..., None], (220, 180, 40), (30, 60, 90)).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def detections():
    """The disc's box with a square mask, and a mask that is nowhere sure."""
    found = Instances((HEIGHT, WIDTH))
    found.pred_boxes = Boxes(torch.tensor([[40.0, 20, 120, 100], [0, 0, 20, 20]]))
    found.scores = torch.tensor([0.9, 0.3])
    masks = torch.zeros(2, 1, 28, 28)
    masks[0, 0, 3:25, 3:25] = 0.9
    found.pred_masks = masks
    return found


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("scale", [1, 3])
def test_masks_follow_the_images_edges_at_any_size(scale):
    size = HEIGHT * scale, WIDTH * scale
    before = detector_postprocess(detections(), *size)
    after = refine_detections(detections(), picture(), *size)
    assert iou(before.pred_masks[0].numpy(), disc(scale)) < 0.9
    assert iou(after.pred_masks[0].numpy(), disc(scale)) > 0.93
    assert not after.pred_masks[1].any()
    assert torch.equal(after.pred_boxes.tensor, before.pred_boxes.tensor)
    assert torch.equal(after.scores, before.scores)
    assert after.image_size == size


def test_it_is_the_labelers_refinement():
    size = HEIGHT, WIDTH
    before = detector_postprocess(detections(), *size).pred_masks[:1].numpy()
    guide = np.ascontiguousarray(picture().numpy().transpose(1, 2, 0))
    wanted, _ = refine_masks(guide, before, "guided", 0.5)
    found = refine_detections(detections(), picture(), *size).pred_masks[:1].numpy()
    np.testing.assert_array_equal(found, wanted)


def test_a_mask_that_the_edges_do_not_confirm_stays(monkeypatch):
    def none(image, masks, refiner, min_iou, device):
        return np.zeros_like(masks), np.zeros(len(masks), bool)

    monkeypatch.setattr(refiners, "refine_masks", none)
    before = detector_postprocess(detections(), HEIGHT, WIDTH).pred_masks
    after = refine_detections(detections(), picture(), HEIGHT, WIDTH).pred_masks
    assert torch.equal(after, before)


def test_nothing_found_and_no_masks():
    found = detections()[[]]
    assert refine_detections(found, picture(), 240, 320).pred_masks.shape == (0, 240, 320)
    found = detections()
    found.remove("pred_masks")
    after = refine_detections(found, picture(), 240, 320)
    assert torch.equal(after.pred_boxes.tensor, 2 * detections().pred_boxes.tensor)


def test_the_detector_refines_only_what_it_brings_to_full_size(monkeypatch):
    assert META_ARCH_REGISTRY.get("RefiningRCNN") is RefiningRCNN
    asked = []

    def inference(self, inputs, detected, do_postprocess):
        asked.append(do_postprocess)
        return [detections()]

    monkeypatch.setattr(GeneralizedRCNN, "inference", inference)
    model = RefiningRCNN.__new__(RefiningRCNN)
    inputs = [{"image": picture(), "height": 240, "width": 320}]
    (raw,) = model.inference(inputs, do_postprocess=False)
    assert torch.equal(raw.pred_masks, detections().pred_masks)
    (full,) = model.inference(inputs)
    wanted = refine_detections(detections(), picture(), 240, 320)
    assert torch.equal(full["instances"].pred_masks, wanted.pred_masks)
    (own_size,) = model.inference([{"image": picture()}])
    assert own_size["instances"].pred_masks.shape == (2, HEIGHT, WIDTH)
    assert asked == [False] * 3
