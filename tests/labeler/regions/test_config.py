import dataclasses

import pytest

from promerge_d2.labeler import RegionsConfig
from promerge_d2.utils.errors import UserError


def test_presets():
    assert RegionsConfig.from_preset("best") == RegionsConfig()
    fast = RegionsConfig.from_preset("fast")
    assert fast.grid < RegionsConfig().grid
    assert dataclasses.replace(fast, grid=RegionsConfig().grid) == RegionsConfig()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tiles", 0),
        ("min_patches", 1),
        ("max_share", 1.1),
        ("background_quantile", -0.1),
        ("max_masks", 0),
        ("max_iou", 2.0),
        ("min_fragment", -1.0),
    ],
)
def test_bad_values_are_named(name, value):
    with pytest.raises(UserError) as caught:
        RegionsConfig.from_preset("best", **{name: value})
    assert name in str(caught.value)
    assert str(value) in str(caught.value)


def test_grid_that_keeps_the_shape_of_the_image():
    """640 x 480 pixels in 3,600 patches: 9.24 pixels a patch."""
    best = RegionsConfig()
    assert best.grid_for(480, 640) == (52, 69)
    assert best.grid_for(640, 480) == (69, 52)
    assert best.grid_for(500, 500) == (60, 60)
    assert best.grid_for(3, 4000) == (2, 1800)  # no more patches than any other
    assert best.grid_for(9000, 1) == (1800, 2)
