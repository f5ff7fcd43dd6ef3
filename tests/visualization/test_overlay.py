import numpy as np
import pytest
from PIL import Image

from promerge_d2.coco.records import mask_record
from promerge_d2.visualization.overlay import (
    color_of,
    draw_boxes,
    draw_masks,
    draw_records,
    save_png,
)
from tests.helpers import square


def grey(height=40, width=60):
    return np.full((height, width, 3), 100, np.uint8)


def test_only_pixels_of_the_mask_change():
    image, mask = grey(), square(40, 60, 10, 5, 30, 25)
    picture = draw_masks(image, [mask])
    assert ((picture != 100).any(axis=2) == mask).all()
    assert (image == 100).all()  # the input stays
    assert picture.dtype == np.uint8
    assert picture.shape == (40, 60, 3)


def test_tint_inside_and_full_colour_on_the_outline():
    picture = draw_masks(grey(), [square(40, 60, 10, 5, 30, 25)])
    color = np.array(color_of(0))
    tint = np.round(0.55 * 100 + 0.45 * color)
    assert (picture[6:24, 11:29] == tint).all()  # inside, one pixel from the border
    for line in (picture[5, 10:30], picture[24, 10:30], picture[5:25, 10], picture[5:25, 29]):
        assert (line == color).all()


def test_a_small_mask_is_seen_over_a_larger_one():
    large, small = square(40, 60, 0, 0, 60, 40), square(40, 60, 20, 10, 30, 20)
    for masks, index in (([large, small], 1), ([small, large], 0)):
        picture = draw_masks(grey(), masks)
        under = 0.55 * 100 + 0.45 * np.array(color_of(1 - index))
        tint = np.round(0.55 * under + 0.45 * np.array(color_of(index)))
        assert (picture[15, 25] == tint).all()
        assert (picture[10, 20] == color_of(index)).all()


def test_holes_are_outlined_and_not_tinted():
    mask = square(40, 60, 5, 5, 45, 35)
    mask[15:25, 15:30] = False
    picture = draw_masks(grey(), [mask])
    assert (picture[15:25, 15:30] == 100).all()
    assert (picture[14, 16:29] == color_of(0)).all()


def test_neighbouring_colours_differ():
    colors = np.array([color_of(i) for i in range(12)]).astype(int)
    assert len(np.unique(colors, axis=0)) == 12
    assert np.abs(np.diff(colors, axis=0)).max(axis=1).min() > 100


def test_lines_are_thicker_on_large_pictures_but_stay_at_the_outline():
    image = grey(600, 900)  # lines of three pixels
    mask = square(600, 900, 100, 100, 400, 300)
    changed = (draw_masks(image, [mask]) != 100).any(axis=2)
    assert changed[mask].all()
    rows, columns = np.nonzero(changed & ~mask)
    assert len(rows) > 0
    assert 97 <= rows.min() <= rows.max() < 303
    assert 97 <= columns.min() <= columns.max() < 403


def test_no_mask_changes_nothing():
    assert (draw_masks(grey(), []) == 100).all()
    assert (draw_records(grey(), []) == 100).all()


def test_boxes_are_outlined():
    image = grey(600, 900)  # lines of three pixels
    picture = draw_boxes(image, [(100, 50.4, 200, 100)])
    changed = (picture != 100).any(axis=2)
    assert (picture[50, 100:300] == color_of(0)).all()
    assert (picture[50:150, 300] == color_of(0)).all()
    assert not changed[60:140, 110:290].any()
    assert (image == 100).all()  # the input stays


def test_records_are_drawn_like_their_masks():
    masks = [square(40, 60, 10, 5, 30, 25), square(40, 60, 35, 0, 60, 40)]
    drawn = draw_records(grey(), [mask_record(mask) for mask in masks])
    assert np.array_equal(drawn, draw_masks(grey(), masks))


@pytest.mark.parametrize("name", ["a.png", "deep/er/a.png"])
def test_pngs_come_back_as_they_were(tmp_path, name):
    picture = np.random.default_rng(0).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    save_png(tmp_path / name, picture)
    with Image.open(tmp_path / name) as opened:
        assert opened.format == "PNG"
        assert np.array_equal(np.asarray(opened), picture)
    assert [p.name for p in (tmp_path / name).parent.iterdir()] == ["a.png"]
