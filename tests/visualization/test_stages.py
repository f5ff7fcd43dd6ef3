import dataclasses
import re

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from promerge_d2.labeler import (
    LABELERS,
    GridMasks,
    MaskCutConfig,
    MaskCutLabeler,
    RegionsConfig,
    RegionsLabeler,
)
from promerge_d2.labeler.refine import REFINERS
from promerge_d2.labeler.regions.scoring import CUES
from promerge_d2.labeler.similarity import l2_normalize
from promerge_d2.visualization.figures import save_figure
from promerge_d2.visualization.stages import DPI, PANELS, View, draw_sheet, view_stages
from promerge_d2.visualization.stages.promerge import differing
from promerge_d2.visualization.stages.view import COMMON, SIDE, pca_colors
from tests.helpers import square
from tests.labeler.helpers import StubExtractor, blob_features, squares, stub

ONE = squares(12, 12, (3, 8, 2, 7))  # a pixel a patch: nothing is mixed along the edges


def view_of(pixels, labeler=None, name="a.png", **settings):
    labeler = labeler or stub(**settings)
    labeler.extractor.facet, labeler.extractor.center = "key", False
    return view_stages(labeler, "release", pixels, name)


def regions():
    return RegionsLabeler(StubExtractor(), RegionsConfig(grid=12, refine="none"))


def panels_for(view):
    return PANELS.get(view.labeler.name, COMMON)


def panels_of(view):
    """Captions by title, None where not reached."""
    return {title: drawn(view, title)[0] for title, _ in panels_for(view)}


def drawn(view, title):
    """A panel's caption, and the axes that it drew on."""
    axes = Figure(figsize=(4, 4)).add_axes((0, 0, 1, 1))
    return dict(panels_for(view))[title](view, axes), axes


def written(view):
    """All that a sheet says, in order; lines are joined."""
    texts = [text.get_text() for text in draw_sheet(view).findobj(Text)]
    return " ".join(text.replace("\u00a0", " ") for text in texts if text)


def pixels_of(view):
    """A sheet as a browser shows it: (height, width, 4) uint8."""
    canvas = FigureCanvasAgg(draw_sheet(view))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def test_captions_of_a_square_counted_by_hand():
    """36 prompts, of which those in rows 4, 6 and columns 2, 4, 6 lie on the square of 25."""
    found = {title: panel.found for title, panel in panels_of(view_of(ONE)).items()}
    assert found == {
        "Photograph": "grid = 12x12, apply_exif = True: 12x12 pixels",
        "Features": "backbone = stub, facet = key, center = off: 3 channels",
        "Prompts": "stride = 2, tau_b = 0.2, side_rule = more_than_half: 36 prompts, "
        "30 red, 6 green",
        "Affinity of some prompts": "tau_b = 0.2: 4 of 36 prompts drawn, unlike one another",
        "Foreground masks": "tau_b = 0.2, component_share = 0.5: 6 foreground masks, "
        "30 background candidates",
        "Background vote": "background_vote = 0.5, min_background = 0.1: "
        "30 background candidates, 83% of the grid is background",
        "Pruned": "background_filter = cascade, tau_f = 0.4, tau_ioa = 0.8: 1 of 6 masks kept; "
        "5 add nothing to smaller ones",
        "Merged": "tau_merge_ioa = 0.5, tau_merge_gate = 0.1, tau_merge_f = 0.1: 1 became 1 mask",
        "Refined": "refine = none, refine_min_iou = 0.5: 1 of 1 mask kept, "
        "each scores 1.00: none ranks above another",
    }


def test_captions_of_maskcut():
    labeler = MaskCutLabeler(StubExtractor(), MaskCutConfig(grid=12, refine="none"))
    panels = panels_of(view_of(ONE, labeler))
    assert list(panels) == ["Photograph", "Features", "Masks", "Refined"]
    assert panels["Masks"].found == (
        "tau = 0.15, masks = 3, void_iou = 0.5, min_area = 0.01: 1 mask"
    )
    assert "1 of 1 mask kept" in panels["Refined"].found


def test_the_sheet_says_what_the_panels_found():
    view = view_of(ONE, name="red $quare$.png")  # no formula
    text = written(view)
    assert "red $quare$.png" in text
    assert "ProMerge, preset release: 1 mask" in text
    for number, (title, caption) in enumerate(panels_of(view).items(), start=1):
        assert f"{number}  {title} " in text
        assert caption.found in text
        assert caption.shows in text
    assert "not reached" not in text


def test_a_mask_left_out_of_the_vote_is_said_to_be():
    panels = panels_of(view_of(ONE, background_filter="none"))
    assert panels["Background vote"].found.endswith("not used (background_filter = none)")
    assert "6 of 6 masks kept" in panels["Pruned"].found


# No masks


@pytest.mark.parametrize(
    ("settings", "pixels", "reason", "last"),
    [
        ({}, squares(12, 12), "no_foreground", "Foreground masks"),
        ({"stride": 12}, squares(12, 12, (0, 3, 0, 3)), "no_background", "Background vote"),
        ({"min_background": 1.0}, ONE, "small_background", "Background vote"),
        ({"tau_f": -1.0}, ONE, "all_pruned", "Pruned"),
        ({"refine": "mean_field"}, ONE, "all_rejected_by_refinement", "Refined"),
    ],
)
def test_without_masks_the_last_panel_says_why(monkeypatch, settings, pixels, reason, last):
    monkeypatch.setitem(REFINERS, "mean_field", lambda image, masks: ~masks)
    view = view_of(pixels, **settings)
    titles = [title for title, _ in PANELS["promerge"]]
    after = titles.index(last) + 1
    panels = panels_of(view)
    assert [title for title, caption in panels.items() if caption is None] == titles[after:]
    text = written(view)
    for why in (view.labeler.reasons[reason], reason):
        assert text.count(why) == 2  # in the heading too
    assert f"{panels[last].found} no masks" in text
    assert text.count("not reached") == len(titles) - after


def test_maskcut_without_a_cut():
    labeler = MaskCutLabeler(StubExtractor(), MaskCutConfig(grid=4, refine="none"))
    text = written(view_of(squares(12, 12), labeler))
    assert text.count("no_cut") == 2
    assert text.count("not reached") == 1


# Pictures


def test_pca_of_a_square_is_bright_on_a_dark_border():
    features = np.zeros((1, 5, 6), np.float32)
    features[0, 1:4, 2:4] = -1  # of either sign
    for signed in (features, -features):
        red, green, blue = pca_colors(signed).transpose(2, 0, 1)
        assert (red == 255 * (features[0] < 0)).all()
        assert (green == 128).all()  # there is but one channel
        assert (blue == 128).all()


def test_pca_depends_on_neither_signs_nor_order_of_channels():
    features = l2_normalize(
        torch.from_numpy(blob_features(np.random.default_rng(0), 9, 12))
    ).numpy()
    picture = pca_colors(features)
    assert picture.tobytes() == pca_colors(features).tobytes()
    border = np.ones((9, 12), bool)
    border[1:-1, 1:-1] = False
    assert (picture[border].mean(axis=0) < picture[~border].mean(axis=0)).all()
    turned = features[[3, 1, 0, 2, 7, 6, 5, 4]] * np.array([1, -1] * 4, np.float32)[:, None, None]
    for other in (-features, turned):
        assert np.abs(pca_colors(other).astype(int) - picture).max() <= 1
    assert picture.std(axis=(0, 1)).min() > 20


def test_pca_of_even_features_is_grey():
    assert (pca_colors(np.full((8, 4, 4), 0.3, np.float32)) == 128).all()


def test_differing_prompts():
    between = np.array([[1, 0.9, 0], [0.9, 1, 0.1], [0, 0.1, 1]])
    assert differing(between, 0, 2) == [0, 2]
    assert differing(between, 1, 4) == [1, 2, 0]


@pytest.mark.parametrize(
    ("size", "sides"),
    [((90, 120), (6, 12)), ((120, 90), (12, 6)), ((1, 1), (12, 12)), ((3, 4000), (2, 3))],
)
def test_all_sizes_and_grids(size, sides):
    view = view_of(squares(*size, (3, 8, 2, 7)), grid=sides)
    assert max(view.photo.shape[:2]) == SIDE
    height, width, _ = pixels_of(view).shape
    assert width > 5 * SIDE
    assert height > 2 * view.photo.shape[0]


def test_a_panel_shows_the_photograph_pixel_by_pixel():
    view = view_of(ONE)
    sheet = pixels_of(view)[..., :3]
    corner = np.argwhere((sheet == view.photo[0, 0]).all(axis=2))[0]
    rows, columns = (
        slice(start, start + side) for start, side in zip(corner, view.photo.shape[:2], strict=True)
    )
    assert np.array_equal(sheet[rows, columns], view.photo)


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for name in "ab":
        save_figure(draw_sheet(view_of(ONE)), tmp_path / name, DPI)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("labeler", [None, regions()], ids=["promerge", "regions"])
def test_everything_that_the_stages_hold_is_drawn(labeler):
    """Who adds a field adds a panel."""
    view = view_of(ONE, labeler)
    sheet = pixels_of(view)
    for field in dataclasses.fields(view.stages):
        value = getattr(view.stages, field.name)
        if field.name == "reason" or value is None:
            continue
        if isinstance(value, dict):
            changed = {name: count + 1 for name, count in value.items()}
        else:
            changed = ~value if value.dtype == bool else 1 - value
        other = dataclasses.replace(
            view, stages=dataclasses.replace(view.stages, **{field.name: changed})
        )
        assert not np.array_equal(pixels_of(other), sheet), field.name


def test_heat_is_of_the_values_with_its_scale():
    view = view_of(ONE)
    caption, axes = drawn(view, "Foreground masks")
    _, heat = axes.images
    assert np.array_equal(heat.get_array(), view.stages.foreground.sum(axis=0))
    assert caption.colors.get_clim() == (0, 6)
    assert caption.threshold is None


def test_the_line_around_the_background_follows_the_patches():
    view = view_of(ONE)
    caption, axes = drawn(view, "Background vote")
    assert caption.threshold == 0.5
    (line,) = axes.collections
    corners = np.concatenate([path.vertices for path in line.get_paths()])
    side = SIDE / 12
    inner = corners[(corners > 0.5).all(axis=1) & (corners < SIDE - 0.5).all(axis=1)]
    low, high = inner.min(axis=0), inner.max(axis=0)
    assert low == pytest.approx([2 * side, 3 * side], abs=1)  # x, y
    assert high == pytest.approx([7 * side, 8 * side], abs=1)


def test_prompts_are_marked_by_what_became_of_them():
    _, axes = drawn(view_of(ONE), "Prompts")
    (dots,) = axes.collections
    places = dots.get_offsets() / (SIDE / 12) - 0.5
    assert np.allclose(places, np.stack(np.mgrid[0:12:2, 0:12:2][::-1], -1).reshape(-1, 2))
    for (column, row), (red, green, *_) in zip(places.round(), dots.get_facecolors(), strict=True):
        on_square = row in (4, 6) and column in (2, 4, 6)
        assert (green > red) == on_square


def test_best_regions_say_what_cost_them_most():
    """Each of nine tiles has its region's score and the lowest of the region's cues."""
    view = view_of(ONE, regions())
    stages = view.stages
    assert "regions kept, scores from 0." in panels_of(view)["Best regions"].found
    said = re.findall(rf"(0\.\d\d)\n({'|'.join(CUES)}) (0\.\d\d)", written(view))
    assert len(said) == min(9, len(stages.merged)) > 3
    for (score, name, cue), expected, cues in zip(said, stages.scores, stages.cues, strict=False):
        assert score == f"{expected:.2f}"
        assert cue == f"{min(cues):.2f}" == f"{cues[CUES.index(name)]:.2f}"


def test_many_masks_are_not_all_drawn_over_each_other(monkeypatch):
    view = view_of(ONE, regions())
    count = len(view.result.records)
    assert count > 3
    pictures = {}
    for crowded in (count, 2):
        monkeypatch.setattr("promerge_d2.visualization.stages.view._CROWDED", crowded)
        caption, axes = drawn(view, "Refined")
        assert caption.shows.endswith("The first 1 are drawn.") == (crowded == 2)
        pictures[crowded] = axes.images[0].get_array()
    assert (pictures[count] != pictures[2]).any()


def test_masks_one_by_one_by_hand():
    """Of the second mask, the right half, the second tile shows the photograph's right half."""
    photo = np.full((90, 90, 3), (200, 0, 0), np.uint8)
    right = square(90, 90, 45, 0, 90, 90)
    view = View("a", photo, None, "best", None, None, None)
    figure = Figure(figsize=(3, 3))
    axes = figure.add_axes((0, 0, 1, 1))
    view.show_one_by_one(axes, [~right, right], ["0.75", "0.50"])
    first, second = axes.child_axes
    for tile, mask, text in ((first, ~right, "0.75"), (second, right, "0.50")):
        picture = tile.images[0].get_array().astype(int)
        assert np.array_equal(picture[..., 0] - picture[..., 1] > 150, mask)
        assert [words.get_text() for words in tile.texts] == [text]
    figure.canvas.draw()
    places = [tile.get_position().bounds for tile in (first, second)]
    assert places[0][:2] == pytest.approx((0, 2 / 3), abs=0.01)
    assert places[1][:2] == pytest.approx((1 / 3, 2 / 3), abs=0.01)


def test_every_labeler_has_panels():
    assert set(PANELS) == set(LABELERS) - {"maskcut"}


@pytest.mark.parametrize("found", [True, False])
def test_a_new_labeler_has_the_common_panels(found):
    class Mine(MaskCutLabeler):
        name, title = "mine", "Mine"

        @staticmethod
        def grid_masks(features, config):
            if not found:
                return GridMasks(reason="no_cut")
            return GridMasks(merged=np.ones((1, *features.shape[2:]), bool))

    labeler = Mine(StubExtractor(), MaskCutConfig(grid=12, refine="none"))
    text = written(view_of(squares(12, 12, (3, 8, 2, 7)), labeler))
    for title in ("1  Photograph", "2  Features", "3  Masks", "4  Refined"):
        assert title in text
    assert text.count("not reached") == (0 if found else 2)
    assert ("1 of 1 mask" in text) == found
