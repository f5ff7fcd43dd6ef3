import numpy as np
import pytest
from PIL import Image

from promerge_d2.labeler.refine.crf import (
    CRF_BILATERAL,
    CRF_GAUSSIAN,
    dense_crf,
    mean_field,
)
from promerge_d2.labeler.refine.lattice import PermutohedralLattice
from promerge_d2.labeler.refine.mean_field import infer_masks

GAUSSIAN = {"sxy": 1.5, "compat": 2}
BILATERAL = {"sxy": 6, "srgb": 20, "compat": 3}


def scene(height, width, seed):
    """Noisy coloured rectangles, and masks that are roughly theirs."""
    rng = np.random.default_rng(seed)
    image = rng.integers(60, 80, (height, width, 3))
    masks = np.zeros((5, height, width), bool)
    for mask in masks:
        y, x = rng.integers(0, height // 2), rng.integers(0, width // 2)
        h, w = rng.integers(height // 6, height // 2), rng.integers(width // 6, width // 2)
        image[y : y + h, x : x + w] = rng.integers(40, 220, 3)
        dy, dx = rng.integers(-2, 3, 2)
        mask[max(y + dy, 0) : y + h + dy, max(x + dx, 0) : x + w + dx] = True
    image = image + rng.normal(0, 3, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), masks


def matrix(features):
    """A lattice's filter: what pixel q (column) sends to pixel p."""
    lattice = PermutohedralLattice(features.T.astype(np.float32))
    return np.stack([lattice.filter(pixel) for pixel in np.eye(len(features), dtype=np.float32)], 1)


def written_out(image, masks, iterations):
    """Mean field of two labels with the kernels as matrices, as the dense CRF's paper has it."""
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width].reshape(2, -1)
    near = np.stack([columns, rows], axis=1) / GAUSSIAN["sxy"]
    alike = np.concatenate(
        [
            np.stack([columns, rows], axis=1) / BILATERAL["sxy"],
            image.reshape(-1, 3) / BILATERAL["srgb"],
        ],
        axis=1,
    )
    kernel = GAUSSIAN["compat"] * matrix(near) + BILATERAL["compat"] * matrix(alike)
    out = []
    for mask in masks:
        share = np.exp(1) / (1 + np.exp(1))
        probability = np.where(mask.ravel(), share, 1 - share)
        unary = -np.log(np.stack([1 - probability, probability]))
        q = np.exp(-unary)
        for _ in range(iterations):
            energy = unary - q @ kernel.T
            q = np.exp(-energy)
            q /= q.sum(axis=0)
        out.append(q.argmax(axis=0).reshape(height, width) == 1)
    return np.stack(out)


def iou(a, b):
    union = (a | b).sum(axis=(1, 2))
    return np.where(union == 0, 1, (a & b).sum(axis=(1, 2)) / np.maximum(union, 1))


@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
def test_against_mean_field_written_out(iterations):
    for seed in range(3):
        image, masks = scene(26, 31, seed)
        ours = infer_masks(image, masks, iterations, GAUSSIAN, BILATERAL)
        expected = written_out(image, masks, iterations)
        assert iou(ours, expected).min() > 0.999
        assert (expected != masks).any()  # something happened


def test_agrees_with_pydensecrf():
    pytest.importorskip("pydensecrf")
    scores = []
    for seed in range(4):
        image, masks = scene(120, 160, seed)
        exact = dense_crf(image, masks)
        assert (exact != masks).any()
        scores.extend(iou(mean_field(image, masks), exact))
    assert np.mean(scores) >= 0.98
    assert np.mean(np.array(scores) > 0.95) >= 0.99


def test_agrees_with_pydensecrf_on_photographs(shared_data):
    pytest.importorskip("pydensecrf")
    files = sorted((shared_data / "data/coco/val2017").glob("*.jpg"))[:3]
    assert files
    for file in files:
        image = np.array(Image.open(file).convert("RGB").resize((480, 480)))
        masks = np.kron(scene(60, 60, len(file.name))[1][:3], np.ones((1, 8, 8), bool)) > 0
        assert iou(mean_field(image, masks), dense_crf(image, masks)).min() > 0.98


def test_masks_do_not_see_each_other():
    image, masks = scene(60, 80, 7)
    together = mean_field(image, np.concatenate([masks, masks[:1]]))  # 6: more than fit at once
    for index, mask in enumerate([*masks, masks[0]]):
        assert np.array_equal(mean_field(image, mask[None])[0], together[index])


def test_no_masks_and_blank_images():
    blank = np.zeros((16, 24, 3), np.uint8)
    assert mean_field(blank, np.zeros((0, 16, 24), bool)).shape == (0, 16, 24)
    assert not mean_field(blank, np.zeros((1, 16, 24), bool)).any()
    assert mean_field(blank, np.ones((1, 16, 24), bool)).all()


def test_masks_are_left_alone_and_bytes_repeat():
    image, masks = scene(48, 64, 3)
    before = masks.copy()
    first, second = mean_field(image, masks), mean_field(image, masks)
    assert np.array_equal(masks, before)
    assert first.tobytes() == second.tobytes()


def test_weights_and_reach_are_used():
    """No weight: the unary decides. A narrow colour kernel: the edge of the colours is found."""
    image = np.full((40, 40, 3), 50, np.uint8)
    image[:, 20:] = 200
    mask = np.zeros((1, 40, 40), bool)
    mask[:, :, 17:] = True
    gaussian, bilateral = dict(CRF_GAUSSIAN, compat=0), dict(CRF_BILATERAL, compat=0)
    assert np.array_equal(infer_masks(image, mask, 10, gaussian, bilateral), mask)
    edge = infer_masks(image, mask, 10, gaussian, CRF_BILATERAL)
    assert np.array_equal(edge[0], image[:, :, 0] == 200)
