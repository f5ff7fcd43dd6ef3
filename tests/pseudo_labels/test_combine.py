"""Self-training's merge rules on masks that can be counted by hand."""

import json

import numpy as np
import pytest

from promerge_d2.coco.records import mask_record
from promerge_d2.pseudo_labels import combine as combining
from promerge_d2.pseudo_labels.combine import (
    NOTHING,
    Calibration,
    Rules,
    agreed,
    check_labels,
    combine_labels,
    count_masks,
    new_and_old,
)
from promerge_d2.pseudo_labels.inputs import ImageFile, ImageList
from promerge_d2.utils.errors import UserError
from tests.helpers import coco_json, square


def row(first, last):
    """A mask of pixels ``first`` to ``last`` (not included) of one row of 20."""
    return square(1, 20, first, 0, last, 1)


def scored(mask, score, **more):
    return {"mask": mask, "score": score, **more}


# An image


@pytest.mark.parametrize(
    ("end", "stays"),
    [
        (10, False),  # the same mask
        (6, False),  # 6 of 10 pixels: IoU 0.6
        (5, False),  # IoU 0.5 is not below 0.5
        (4, True),  # IoU 0.4
    ],
)
def test_an_old_mask_goes_where_a_prediction_repeats_it(end, stays):
    old = [mask_record(row(0, 10))]
    new = [mask_record(row(0, end), 0.9)]
    assert new_and_old(new, old, Rules()) == (new, old if stays else [])


def test_iou_is_of_masks_not_of_boxes():
    left, right = square(10, 10, 0, 0, 10, 10), square(10, 10, 0, 0, 10, 10)
    left[np.triu_indices(10)] = False  # below the diagonal
    right[np.tril_indices(10)] = False  # above it: boxes overlap, masks do not
    old, new = [mask_record(left)], [mask_record(right, 0.9)]
    assert new_and_old(new, old, Rules()) == (new, old)


def test_the_best_of_all_predictions_counts():
    old = [mask_record(row(0, 10)), mask_record(row(12, 18))]
    new = [mask_record(row(0, 3), 0.8), mask_record(row(0, 9), 0.9)]
    kept, rest = new_and_old(new, old, Rules())
    assert kept == new[::-1]  # the highest score first
    assert rest == old[1:]


def test_the_limit_can_be_moved():
    old, new = [mask_record(row(0, 10))], [mask_record(row(0, 4), 0.9)]
    assert new_and_old(new, old, Rules(max_iou=0.4))[1] == []
    assert new_and_old(new, old, Rules(max_iou=0.41))[1] == old


def test_only_so_many_an_image_and_those_left_out_replace_nothing():
    old = [mask_record(row(0, 10)), mask_record(row(10, 20))]
    new = [mask_record(row(10, 20), 0.6), mask_record(row(0, 10), 0.9)]
    assert new_and_old(new, old, Rules(per_image=1)) == ([new[1]], [old[1]])


def test_crowds_stay():
    old = [{**mask_record(row(0, 10)), "iscrowd": 1}, {**mask_record(row(0, 10)), "iscrowd": 0}]
    assert new_and_old([mask_record(row(0, 10), 0.9)], old, Rules())[1] == old[:1]


def test_one_side_alone():
    old, new = [mask_record(row(0, 10))], [mask_record(row(0, 10), 0.9)]
    assert new_and_old([], old, Rules()) == ([], old)
    assert new_and_old(new, [], Rules()) == (new, [])
    assert new_and_old([], [], Rules()) == ([], [])


# Agreement


def test_what_both_sides_found_counts_more_and_the_old_mask_stays():
    old = [mask_record(row(0, 10), 0.4), mask_record(row(12, 18), 0.2)]
    new = [mask_record(row(0, 8), 0.9), mask_record(row(18, 20), 0.5)]
    scale = Calibration(np.array([0.9, 0.5]), np.array([0.4, 0.2]))
    alone, rest = agreed(new, old, Rules(agree=True), scale)
    assert alone == [{**new[1], "score": 0.1}]  # second best: worth 0.2, and one side did not see
    assert rest == [{**old[0], "score": pytest.approx(0.4)}, {**old[1], "score": 0.1}]


def test_a_match_is_used_once_and_crowds_match_nothing():
    old = [{**mask_record(row(0, 10), 0.4), "iscrowd": 1}, mask_record(row(0, 9), 0.4)]
    new = [mask_record(row(0, 9), 0.8), mask_record(row(0, 8), 0.9)]
    scale = Calibration(np.array([0.9, 0.8]), np.array([0.4, 0.4]))
    alone, rest = agreed(new, old, Rules(agree=True), scale)
    assert [record["score"] for record in alone] == [0.2]
    assert alone[0]["segmentation"] == new[0]["segmentation"]  # the better one came first
    assert rest == [old[0], {**old[1], "score": pytest.approx(0.4)}]


def test_agreement_of_one_side_alone():
    old, new = [mask_record(row(0, 10), 0.4)], [mask_record(row(0, 10), 0.9)]
    scale = Calibration(np.array([0.9]), np.array([0.4]))
    assert agreed([], old, Rules(), scale) == ([], [{**old[0], "score": 0.2}])
    assert agreed(new, [], Rules(), scale) == ([{**new[0], "score": 0.2}], [])


def test_scores_are_calibrated_by_rank():
    scale = Calibration(np.array([0.5, 0.9, 0.9, 0.1]), np.array([0.2, 0.6]))
    assert [scale(score) for score in (0.9, 0.5, 0.1)] == [0.6, 0.1, 0.1]  # ranks 0, 2 and 3
    assert Calibration(np.array([0.5]), np.zeros(0))(0.5) == 0


# Files


@pytest.fixture
def combine(tmp_path):
    """``combine(old, predictions, **rules)``: the written file; both sides by image name."""

    def run(old, predictions, names=("a", "b", "c", "d"), number=1, **rules):
        sides = []
        for side, images in (("old", old), ("new", predictions)):
            listed = [(f"{name}.png", 1, 20, masks) for name, masks in images.items()]
            sides.append(coco_json(tmp_path / f"{side}.json", listed))
        files = tuple(ImageFile(7 + place, f"{n}.png", 1) for place, n in enumerate(names))
        output = tmp_path / "labels.json"
        images = ImageList(tmp_path, files)
        combine_labels(images, *sides, output, Rules(**rules), number, {"name": "x"})
        return json.loads(output.read_text())

    return run


def of(content, name):
    (image,) = (i for i in content["images"] if i["file_name"] == f"{name}.png")
    return image, [a for a in content["annotations"] if a["image_id"] == image["id"]]


def test_each_image_is_combined_once(combine, monkeypatch):
    calls = []
    whole = combining.new_and_old
    monkeypatch.setattr(combining, "new_and_old", lambda *a: calls.append(a) or whole(*a))
    combine({"a": [row(0, 10)], "b": [row(0, 5)]}, {"a": [scored(row(0, 9), 0.7)]})
    assert len(calls) == 2


def test_every_kind_of_image(combine, tmp_path):
    content = combine(
        {"a": [row(0, 10), row(12, 18)], "b": [row(0, 5)], "d": []},
        {
            "a": [scored(row(0, 9), 0.7), scored(row(12, 18), 0.69)],
            "b": [scored(row(0, 5), 0.3)],
            "c": [scored(row(2, 6), 0.8)],
            "d": [],
        },
    )
    image, records = of(content, "a")
    assert image == {"id": 7, "file_name": "a.png", "width": 20, "height": 1}  # not exchanged
    assert [(r["score"], r["round"], r["area"]) for r in records] == [(0.7, 1, 9), (1.0, 0, 6)]
    assert records[0]["bbox"] == [0, 0, 9, 1]
    assert records[0]["segmentation"] == mask_record(row(0, 9))["segmentation"]
    assert records[0]["iscrowd"] == 0
    _, records = of(content, "b")  # without kept predictions: as it was
    assert [(r["score"], r["round"]) for r in records] == [(1.0, 0)]
    image, records = of(content, "c")  # with predictions only: added
    assert (image["id"], [(r["score"], r["round"]) for r in records]) == (9, [(0.8, 1)])
    image, records = of(content, "d")
    assert (image["reason"], records) == (NOTHING, [])
    assert [a["id"] for a in content["annotations"]] == [1, 2, 3, 4]
    assert {a["category_id"] for a in content["annotations"]} == {1}
    assert content["categories"] == [{"id": 1, "name": "object"}]
    assert count_masks(tmp_path / "labels.json", 1) == {
        "images": 4,
        "with_masks": 3,
        "masks": 4,
        "new": 2,
    }


def test_agreement_goes_by_ranks_over_all_images(combine):
    content = combine(
        {"a": [row(0, 10)], "b": [row(0, 5)]},
        {"a": [scored(row(0, 9), 0.7)], "b": [scored(row(8, 12), 0.9), scored(row(14, 16), 0.1)]},
        min_score=0.0,
        agree=True,
    )
    _, records = of(content, "a")  # the old mask; its prediction ranks second of two old ones
    assert [(r["score"], r["round"], r["area"]) for r in records] == [(1.0, 0, 10)]
    _, records = of(content, "b")
    assert [(r["score"], r["round"]) for r in records] == [(0.5, 1), (0.25, 1), (0.5, 0)]


def test_the_area_is_the_masks_not_the_boxs(combine):
    mask = row(0, 9)
    mask[0, 4] = False
    _, (record,) = of(combine({}, {"a": [scored(mask, 0.9)]}), "a")
    assert (record["area"], record["bbox"]) == (8, [0, 0, 9, 1])


def test_old_masks_keep_score_round_and_reason(combine):
    old = [scored(row(0, 4), 0.25, round=1), {"mask": row(5, 9)}]
    content = combine({"a": old, "b": []}, {"a": [scored(row(12, 16), 0.9)], "b": []}, number=2)
    _, records = of(content, "a")
    assert [(r["score"], r["round"]) for r in records] == [(0.9, 2), (0.25, 1), (1.0, 0)]


def test_what_follows_from_what_is_in_the_file(combine, tmp_path):
    info = combine({}, {"a": [scored(row(0, 4), 0.9)]}, min_score=0.6)["info"]
    assert info["rules"] == {
        "min_score": 0.6,
        "max_iou": 0.5,
        "share": None,
        "per_image": None,
        "agree": False,
    }
    assert (info["round"], info["score_threshold"], info["detector"]) == (1, 0.6, {"name": "x"})
    before = (tmp_path / "labels.json").read_bytes()
    combine({}, {"a": [scored(row(0, 4), 0.9)]}, min_score=0.6)
    assert (tmp_path / "labels.json").read_bytes() == before


@pytest.mark.parametrize(
    ("share", "min_score", "kept"),
    [
        (0.25, 0.0, [0.4]),  # 1 of 4
        (0.26, 0.0, [0.4, 0.3]),  # rounded up
        (0.75, 0.0, [0.4, 0.3, 0.2]),
        (1.0, 0.0, [0.4, 0.3, 0.2, 0.1]),
        (0.5, 0.15, [0.4, 0.3]),  # 2 of the 3 above
        (0.5, 0.9, []),
    ],
)
def test_a_share_of_all_predictions_by_rank(combine, share, min_score, kept):
    predictions = {
        "a": [scored(row(0, 4), 0.4), scored(row(5, 9), 0.1)],
        "b": [scored(row(0, 4), 0.2)],
        "c": [scored(row(0, 4), 0.3)],
    }
    content = combine({}, predictions, share=share, min_score=min_score)
    assert sorted((a["score"] for a in content["annotations"]), reverse=True) == kept


def test_a_score_at_the_limit_counts_among_the_share(combine):
    """Of three at 0.5 or more half are two; without the one at 0.5 half would be one."""
    predictions = {"a": [scored(row(4 * n, 4 * n + 3), s) for n, s in enumerate((0.9, 0.8, 0.5))]}
    content = combine({}, predictions, share=0.5, min_score=0.5)
    assert [a["score"] for a in content["annotations"]] == [0.9, 0.8]


@pytest.mark.parametrize(("limit", "kept"), [(0.8, [0.9, 0.8]), (0.81, [0.9])])
def test_a_score_at_the_limit_is_kept(combine, limit, kept):
    predictions = {"a": [scored(row(4 * n, 4 * n + 3), s) for n, s in enumerate((0.9, 0.8))]}
    content = combine({}, predictions, min_score=limit)
    assert [a["score"] for a in content["annotations"]] == kept


def test_ties_at_the_rank_are_kept_all(combine):
    predictions = {name: [scored(row(0, 4), 0.5)] for name in "abc"}
    assert len(combine({}, predictions, share=0.1, min_score=0.0)["annotations"]) == 3


# Bad input


def test_sizes_that_differ_name_the_image(combine, tmp_path):
    def broken(change, message):
        path = tmp_path / "old.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        images = ImageList(tmp_path, (ImageFile(1, "a.png", 1),))
        with pytest.raises(UserError, match=message):
            combine_labels(images, path, tmp_path / "new.json", tmp_path / "x", Rules(), 1, {})
        assert not (tmp_path / "x").exists()

    def size_of_image(content):
        content["images"][0] |= {"width": 1, "height": 20}
        content["annotations"] = []

    combine({"a": [row(0, 4)]}, {"a": [scored(row(0, 4), 0.9)]})
    broken(size_of_image, r"the image a\.png is 1 x 20 pixels in the old labels .*, but 20 x 1 in")
    combine({"a": [row(0, 4)]}, {"a": [scored(row(0, 4), 0.9)]})
    broken(
        lambda c: c["images"][0].update(width=1, height=20),  # CutLER's
        r"old\.json: annotations\[0\] \(id 1, .*20 x 1.*swapped",
    )


def test_old_objects_without_a_mask_or_a_pixel_are_left_out(combine, caplog):
    maskless = {"mask": row(0, 4), "segmentation": []}
    with caplog.at_level("WARNING"):
        content = combine({"a": [row(0, 4), row(0, 0), maskless]}, {})
    assert [annotation["area"] for annotation in content["annotations"]] == [4]
    assert "old.json: 1 objects without a mask, the first" in caplog.text
    assert "old.json: 1 objects without a pixel, the first" in caplog.text


def test_an_image_that_is_not_among_the_images(combine):
    with pytest.raises(UserError, match=r"\be\.png"):
        combine({"e": [row(0, 4)]}, {})


def test_an_image_that_is_listed_twice(tmp_path):
    path = coco_json(tmp_path / "o.json", [("a.png", 1, 20, []), ("./a.png", 1, 20, [])])
    with pytest.raises(UserError, match=r"\ba\.png"):
        check_labels(path, ImageList(tmp_path, (ImageFile(1, "a.png", 1),)))


def test_labels_can_be_checked_before(tmp_path):
    images = ImageList(tmp_path, (ImageFile(1, "a.png", 1),))
    path = coco_json(tmp_path / "o.json", [("a.png", 1, 20, [row(0, 4)])])
    assert check_labels(path, images) is None
    path = coco_json(tmp_path / "o.json", [("a.png", 2, 20, [row(0, 4)])])
    with pytest.raises(UserError, match=r"annotations\[0\] \(id 1, .*20 x 1"):
        check_labels(path, images)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"min_score": 1.5}, r"1\.5"),
        ({"max_iou": -0.1}, r"-0\.1"),
        ({"share": 2}, r"share.* 2\b"),
        ({"share": 0}, r"share.* 0\b"),
        ({"per_image": 0}, r"\b0 predictions"),
    ],
)
def test_impossible_rules(rules, message):
    with pytest.raises(UserError, match=message):
        Rules(**rules)
