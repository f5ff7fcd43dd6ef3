import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import ImageDraw

from promerge_d2.labeler import (
    LABELERS,
    MaskCutConfig,
    MaskCutLabeler,
    ProMergeConfig,
    RegionsConfig,
    RegionsLabeler,
    grid_masks,
)
from promerge_d2.labeler.promerge.filtering import FILTERS, mean_feature
from promerge_d2.labeler.refine import REFINERS
from promerge_d2.labeler.similarity import l2_normalize
from promerge_d2.visualization.stages import (
    PANELS,
    SIDE,
    View,
    differing,
    draw_contour,
    draw_sheet,
    heat,
    inner_point,
    one_by_one,
    patch_center,
    pca_colors,
    view_stages,
    why_pruned,
)
from tests.helpers import square
from tests.labeler.helpers import StubExtractor, blob_features, grid, squares, stub

ONE = squares(12, 12, (3, 8, 2, 7))  # a pixel a patch: nothing is mixed along the edges


def view_of(pixels, labeler=None, name="a.png", **settings):
    labeler = labeler or stub(**settings)
    labeler.extractor.facet, labeler.extractor.center = "key", False
    return view_stages(labeler, "release", pixels, name)


def panels_of(view):
    """Panels by title, None where not reached."""
    return {title: function(view) for title, function in view.panels}


def written(view, monkeypatch):
    """All that a sheet says, in order."""
    texts, draw_text = [], ImageDraw.ImageDraw.text

    def note(self, place, text, *more, **options):
        texts.append(text)
        draw_text(self, place, text, *more, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "text", note)
        draw_sheet(view)
    return " ".join(texts)


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
        "Refined": "refine = none, refine_min_iou = 0.5: 1 of 1 mask kept",
        "Scores": "1 mask: each scores 1.00",
    }


def test_captions_of_maskcut():
    labeler = MaskCutLabeler(StubExtractor(), MaskCutConfig(grid=12, refine="none"))
    panels = panels_of(view_of(ONE, labeler))
    assert list(panels) == ["Photograph", "Features", "Cuts", "Refined", "Scores"]
    assert panels["Cuts"].found == (
        "tau = 0.15, masks = 3, void_iou = 0.5, min_area = 0.01: 1 mask"
    )
    assert panels["Refined"].found.endswith("1 of 1 mask kept")


def test_the_sheet_says_what_the_panels_found(monkeypatch):
    view = view_of(ONE, name="red square.png")
    text = written(view, monkeypatch)
    assert "red square.png ProMerge, preset release: 1 mask" in text
    for number, (title, panel) in enumerate(panels_of(view).items(), start=1):
        assert f"{number} {title} " in text
        assert panel.found in text
        assert panel.shows in text
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
    assert [t for t, panel in panels_of(view).items() if panel is None] == titles[after:]
    text = written(view, monkeypatch)
    why = f"no masks, since {view.labeler.reasons[reason]} ({reason})"
    assert text.count(why) == 2  # in the heading too
    assert f"{panels_of(view)[last].found} {why}" in text
    assert text.count("not reached") == len(titles) - after
    end = " ".join(f"{number} {titles[number - 1]} not reached" for number in range(after + 1, 11))
    assert end in text


def test_maskcut_without_a_cut(monkeypatch):
    labeler = MaskCutLabeler(StubExtractor(), MaskCutConfig(grid=4, refine="none"))
    text = written(view_of(squares(12, 12), labeler), monkeypatch)
    assert "0 masks no masks, since the patches are all alike" in text
    assert "4 Refined not reached 5 Scores not reached" in text


# Why masks were pruned


def made_view(features, config, stages):
    labeler = SimpleNamespace(config=config, name="promerge")
    return View("a", np.zeros((8, 8, 3), np.uint8), labeler, "release", features, stages, None)


def test_reasons_counted_by_hand():
    """Above, background (feature 0, 1) and below, an object (1, 0)."""
    features = torch.zeros(2, 4, 4)
    features[1, :2], features[0, 2:] = 1, 1
    masks = [
        grid("....", "....", "##..", "...."),  # kept
        grid("....", "....", "##..", "...."),  # the same again
        grid("##..", "....", "....", "...."),  # like the background
        grid("...#", "...#", "...#", "...#"),  # half on it
        grid("....", "....", "##.#", "..##"),  # kept
    ]
    config = ProMergeConfig(grid=4, tau_ioa=0.5, tau_f=0.6)
    stages = SimpleNamespace(
        foreground=np.array(masks),
        background=grid("####", "####", "....", "...."),
        pruned=np.array([masks[0], masks[4]]),
    )
    assert why_pruned(made_view(features, config, stages)) == {
        "resemble the background (tau_f)": 1,
        "add nothing to smaller ones": 1,
        "lie on the background (tau_ioa)": 1,
    }


@pytest.mark.parametrize("kind", FILTERS)
def test_reasons_and_kept_ones_make_all(kind):
    seen = np.zeros(3, int)
    for seed in range(12):
        features = torch.from_numpy(blob_features(np.random.default_rng(seed), 10, 12))
        config = ProMergeConfig(stride=2, background_filter=kind, tau_ioa=0.5)
        stages = grid_masks(features, config)
        if stages.pruned is None:
            continue
        counts = why_pruned(made_view(features, config, stages))
        assert sum(counts.values()) + len(stages.pruned) == len(stages.foreground)
        alike = 0
        if kind in ("cascade", "feature"):
            unit = l2_normalize(features)
            background = mean_feature(unit, stages.background)
            alike = sum(
                bool(mean_feature(unit, mask) @ background >= config.tau_f)
                for mask in stages.foreground
            )
        assert counts["resemble the background (tau_f)"] == alike
        seen += list(counts.values())
    assert (
        list(seen > 0)
        == {
            "cascade": [True, True, True],
            "ioa": [False, True, True],
            "feature": [True, True, False],
            "none": [False, False, False],
        }[kind]
    )


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


def test_heat_goes_from_dark_to_bright():
    black = np.zeros((2, 6, 3), np.uint8)
    picture = heat(np.array([[-1.0, 0.5, 2.0]]), black).astype(int)
    assert (picture[:, ::2] == picture[:, 1::2]).all()  # two pixels a patch
    dark, middle, bright = picture[0, ::2].sum(axis=1)
    assert dark < middle < bright
    assert (heat(np.array([[0.0, 0.5, 1.0]]), black) == picture).all()
    assert (heat(np.zeros((1, 1)), black + 255) > heat(np.zeros((1, 1)), black)).all()


def test_contours_follow_the_patches():
    picture = np.zeros((8, 12, 3), np.uint8)
    draw_contour(picture, grid("...", ".#.", "...", "..."), 1)
    wanted = square(8, 12, 4, 2, 8, 4)  # two by four pixels: all of them border
    assert ((picture == 255).all(axis=2) == wanted).all()


def test_points():
    assert patch_center((0, 2), (4, 3), (8, 12)) == (10, 1)
    assert inner_point(square(20, 30, 3, 5, 10, 12)) == (6, 8)
    assert inner_point(np.ones((5, 7), bool)) in [(2, 2), (3, 2), (4, 2)]
    ring = square(20, 30, 0, 0, 30, 20) & ~square(20, 30, 4, 4, 24, 16)
    x, y = inner_point(ring)
    assert ring[y, x]


@pytest.mark.parametrize(
    ("size", "sides"),
    [((90, 120), (6, 12)), ((120, 90), (12, 6)), ((1, 1), (12, 12)), ((3, 4000), (2, 3))],
)
def test_all_sizes_and_grids(size, sides):
    view = view_of(squares(*size, (3, 8, 2, 7)), grid=sides)
    height, width = view.photo.shape[:2]
    assert max(height, width) == SIDE
    for panel in panels_of(view).values():
        if panel is not None:
            assert panel.picture.shape == (height, width, 3)
            assert panel.picture.dtype == np.uint8
    sheet = draw_sheet(view)
    assert sheet.shape[2] == 3
    assert sheet.shape[1] > 5 * SIDE


def test_the_same_input_gives_the_same_sheet():
    first, second = (draw_sheet(view_of(ONE)) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def regions():
    return RegionsLabeler(StubExtractor(), RegionsConfig(grid=12, refine="none"))


@pytest.mark.parametrize("labeler", [None, regions()], ids=["promerge", "regions"])
def test_everything_that_the_stages_hold_is_drawn(labeler):
    """Who adds a field adds a panel."""
    view = view_of(ONE, labeler)
    sheet = draw_sheet(view)
    for field in dataclasses.fields(view.stages):
        value = getattr(view.stages, field.name)
        if field.name == "reason" or value is None:
            continue
        changed = ~value if value.dtype == bool else -value
        other = dataclasses.replace(
            view, stages=dataclasses.replace(view.stages, **{field.name: changed})
        )
        assert not np.array_equal(draw_sheet(other), sheet), field.name


def test_prompts_are_marked_by_what_became_of_them():
    view = view_of(ONE)
    picture = panels_of(view)["Prompts"].picture
    for prompt in view.prompts:
        x, y = patch_center(prompt, (12, 12), picture.shape)
        red, green, _ = picture[y, x].astype(int)
        on_square = prompt[0] in (4, 6) and prompt[1] in (2, 4, 6)
        assert (green > red) == on_square


def test_scores_are_written_best_first(monkeypatch):
    view = view_of(squares(96, 120, (2, 4, 2, 4), (6, 11, 4, 11)), component_share=0.1)
    assert len(view.result.records) == 2
    view.result.records[0]["score"] = 0.25
    view.result.records[1]["score"] = 0.75
    text = written(view, monkeypatch)
    assert text.index("0.75") < text.index("0.25")
    assert "2 masks: scores from 0.75 to 0.25" in text
    monkeypatch.setattr("promerge_d2.visualization.stages.LISTED", 1)
    assert written(view, monkeypatch).count("0.25") == 1  # in the caption only


def test_best_regions_say_what_cost_them_most(monkeypatch):
    """Each of nine tiles has its score and a cue whose value is no less than the score."""
    view = view_of(ONE, regions())
    panels = panels_of(view)
    assert list(panels) == [title for title, _ in PANELS["regions"]]
    assert "regions kept, scores from 0." in panels["Best regions"].found
    said = re.findall(
        r"(0\.\d\d) (contrast|agreement|background|border|size) (0\.\d\d)",
        written(view, monkeypatch),
    )
    assert len(said) == min(9, len(view.stages.merged)) > 3
    for (score, _, cue), expected in zip(said, view.stages.scores, strict=False):
        assert score == f"{expected:.2f}" <= cue


def test_many_masks_are_not_all_drawn_over_each_other(monkeypatch):
    view = view_of(ONE, regions())
    count = len(view.result.records)
    assert count > 3
    monkeypatch.setattr("promerge_d2.visualization.stages.LISTED", count)
    all_drawn = panels_of(view)["Refined"]
    assert "are drawn" not in all_drawn.shows
    monkeypatch.setattr("promerge_d2.visualization.stages.LISTED", 2)
    some_drawn = panels_of(view)["Refined"]
    assert some_drawn.shows.endswith("The first 1 are drawn.")
    assert (some_drawn.picture != all_drawn.picture).any()


def test_masks_one_by_one_by_hand():
    """Of the second mask, the right half, the second tile shows the photograph's right half."""
    photo = np.full((90, 90, 3), (200, 0, 0), np.uint8)
    right = np.zeros((90, 90), bool)
    right[:, 45:] = True
    picture = one_by_one(photo, [~right, right], ["", ""]).astype(int)
    red = (picture[..., 0] - picture[..., 1]) > 150
    assert red[10, 5]
    assert not red[10, 25]
    assert not red[10, 35]
    assert red[10, 55]
    assert (picture[31:] == 255).all()  # no more masks
    labelled = one_by_one(photo, [right], ["0.50"])
    assert (labelled[:30, :30] != picture[:30, 31:60][:, :1]).any()


def test_every_labeler_has_panels():
    assert set(PANELS) == set(LABELERS)
