import cv2
import numpy as np
from hypothesis import given, settings
from pycocotools import mask as mask_api

from promerge_d2.pseudo_labels.formats.outlines import (
    draw_indices,
    edge_rings,
    index_rings,
    join_rings,
)
from tests.pseudo_labels.formats.helpers import masks

MANY = settings(max_examples=100, deadline=None, derandomize=True)


@MANY
@given(masks(high=20))
def test_indices_drawn_by_opencv_are_the_mask(mask):
    rings = index_rings(mask)
    assert np.array_equal(draw_indices(rings, *mask.shape), mask)
    assert len(rings) == cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1


@MANY
@given(masks(high=20))
def test_edges_drawn_by_pycocotools_are_the_mask(mask):
    polygons = [ring.ravel().astype(float).tolist() for ring in edge_rings(mask)]
    drawn = mask_api.decode(mask_api.merge(mask_api.frPyObjects(polygons, *mask.shape)))
    assert np.array_equal(drawn, mask)


@MANY
@given(masks(high=20))
def test_joined_parts_differ_by_their_bridges(mask):
    rings = index_rings(mask)
    drawn = draw_indices([join_rings(rings)], *mask.shape).astype(bool)
    assert (drawn >= mask).all()
    assert cv2.connectedComponents(drawn.astype(np.uint8), connectivity=8)[0] == 2
    assert len(rings) > 1 or np.array_equal(drawn, mask)


def test_a_ring_has_its_corners_only():
    mask = np.zeros((8, 8), bool)
    mask[1:7, 1:7] = True
    assert sorted(map(tuple, index_rings(mask)[0])) == [(1, 1), (1, 6), (6, 1), (6, 6)]
    assert sorted(map(tuple, edge_rings(mask)[0])) == [(1, 1), (1, 7), (7, 1), (7, 7)]


def test_a_bridge_is_as_short_as_it_can_be():
    """Three parts in a row: the last is joined to the middle one, not to the first."""
    mask = np.zeros((3, 20), bool)
    mask[:, 0:3] = mask[:, 6:9] = mask[:, 14:17] = True
    drawn = draw_indices([join_rings(index_rings(mask))], 3, 20)
    assert drawn.sum() - mask.sum() == 3 + 5
