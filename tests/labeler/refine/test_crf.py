import numpy as np
import pytest
from PIL import Image

from promerge_d2.labeler.refine.crf import dense_crf


def crf_of_one_mask(image, mask):
    """One CRF for one mask, with the released numbers."""
    from pydensecrf import densecrf, utils

    height, width = mask.shape
    model = densecrf.DenseCRF2D(width, height, 2)
    exponentials = np.exp(np.stack([~mask, mask]).astype(np.float64))
    model.setUnaryEnergy(utils.unary_from_softmax(exponentials / exponentials.sum(axis=0)))
    model.addPairwiseGaussian(sxy=3, compat=7)
    model.addPairwiseBilateral(sxy=50, srgb=5, rgbim=np.ascontiguousarray(image), compat=10)
    return np.array(model.inference(10)).reshape(2, height, width).argmax(axis=0) == 1


def test_one_lattice_for_all_masks_changes_no_bit():
    pytest.importorskip("pydensecrf")
    data = pytest.importorskip("skimage.data")
    photograph = Image.fromarray(data.astronaut()).resize((160, 120), Image.Resampling.LANCZOS)
    image = np.array(photograph)
    masks = np.zeros((4, 120, 160), bool)
    masks[0, 16:80, 48:96] = True  # head
    masks[1, 64:, 8:120] = True  # suit
    masks[2, :40, 120:] = True  # corner
    masks[3, 30:34, 70:74] = True  # a speck
    refined = dense_crf(image, masks)
    assert refined.dtype == bool
    for mask, ours in zip(masks, refined, strict=True):
        assert np.array_equal(ours, crf_of_one_mask(image, mask))
    assert (refined[0] != masks[0]).any()
    # and neither order nor company matters
    assert np.array_equal(dense_crf(image, masks[::-1])[::-1], refined)
    assert np.array_equal(dense_crf(image, masks[1:2]), refined[1:2])


def test_a_coloured_square_gets_its_edges():
    pytest.importorskip("pydensecrf")
    image = np.full((96, 96, 3), 40, np.uint8)
    image[30:66, 26:70] = (220, 30, 30)
    truth = image[..., 0] == 220
    rough = np.zeros((96, 96), bool)
    rough[24:64, 24:64] = True  # on a patch grid of 8 pixels
    refined = dense_crf(image, rough[None])[0]
    iou = (refined & truth).sum() / (refined | truth).sum()
    assert (rough & truth).sum() / (rough | truth).sum() < 0.81
    assert iou > 0.97
    assert dense_crf(image, np.zeros((0, 96, 96), bool)).shape == (0, 96, 96)
