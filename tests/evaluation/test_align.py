from __future__ import annotations

import logging

import pytest

from promerge_d2.evaluation import align_predictions
from promerge_d2.utils.errors import UserError
from tests.helpers import parse_ground_truth, parse_predictions


@pytest.fixture
def place(coco):
    """Match predictions with ids 11, 12, ... and the given names to a truth with ids 1, 2, ..."""

    def run(predicted, truth, match="auto", **changes):
        truth_ids = range(1, len(truth) + 1)
        ids = range(11, len(predicted) + 11)
        content = coco([(i, 0, 0, 9, 9) for i in ids], images=ids, names=predicted, **changes)
        ground_truth = parse_ground_truth(coco([], images=truth_ids, names=truth), "truth.json")
        return align_predictions(parse_predictions(content, "p.json"), ground_truth, match)

    return run


def _pairs(placed):
    return [(11 + item.where.index, item.image_id) for item in placed.instances]


@pytest.mark.parametrize(
    ("predicted", "truth", "pairs", "unknown"),
    [
        (["b.jpg", "a.jpg"], ["a.jpg", "b.jpg"], [(11, 2), (12, 1)], 0),
        (["x/a.jpg", "y/a.jpg"], ["y/a.jpg", "x/a.jpg"], [(11, 2), (12, 1)], 0),
        (["./x/a.jpg", "y\\b.jpg"], ["x/a.jpg", "y/b.jpg"], [(11, 1), (12, 2)], 0),
        (["val2017/a.jpg"], ["a.jpg", "b.jpg"], [(11, 1)], 0),
        (["a.jpg"], ["b.jpg", "val2017/a.jpg"], [(11, 2)], 0),
        (["0001.jpg"], ["COCO_val2014_0001.jpg"], [(11, 1)], 0),
        (["val/COCO_train2014_0001.jpg"], ["0001.jpg"], [(11, 1)], 0),
        (["a.jpg", "other.jpg"], ["a.jpg"], [(11, 1)], 1),
        # an exact path beats a basename, and a basename never takes an image twice
        (["y/a.jpg", "a.jpg"], ["a.jpg"], [(12, 1)], 1),
        # the paths agree, so another folder's frame of the same name is another image
        (["x/1.jpg", "z/1.jpg"], ["x/1.jpg", "y/1.jpg"], [(11, 1)], 1),
        (["0001.jpg", "COCO_val2014_0001.jpg"], ["0001.jpg"], [(11, 1)], 1),
    ],
)
def test_by_file_name(place, predicted, truth, pairs, unknown):
    placed = place(predicted, truth)
    assert _pairs(placed) == pairs
    assert len(placed.unknown) == unknown
    assert placed.listed == {image_id for _, image_id in pairs}


@pytest.mark.parametrize(
    ("predicted", "truth"),
    [(["x/a.jpg", "y/a.jpg"], ["a.jpg"]), (["a.jpg"], ["x/a.jpg", "y/a.jpg"])],
)
def test_ambiguous_names_are_refused(place, predicted, truth):
    with pytest.raises(UserError, match=r"x/a\.jpg \(id .*y/a\.jpg \(id"):
        place(predicted, truth)


def test_same_file_name_twice_is_refused(place):
    with pytest.raises(UserError, match=r"^p\.json: .*\b11\b.*\b12\b.*file_name a\.jpg"):
        place(["a.jpg", "a.jpg"], ["a.jpg"])


def test_by_id_names_do_not_matter(coco):
    truth = parse_ground_truth(coco([], images=(1, 2), names=["a.jpg", "b.jpg"]), "g")
    content = coco([(2, 0, 0, 9, 9)], images=(2, 3), names=["a.jpg", "c.jpg"])
    placed = align_predictions(parse_predictions(content, "p"), truth, "id")
    assert [item.image_id for item in placed.instances] == [2]
    assert placed.unknown == ["c.jpg (id 3)"]


def test_nothing_matches(place):
    with pytest.raises(UserError, match=r"q\.jpg \(id 11\).* a\.jpg \(id 1\)"):
        place(["q.jpg"], ["a.jpg"])
    with pytest.raises(UserError, match=r"q\.jpg \(id 11\).*--match file_name"):
        place(["q.jpg"], ["a.jpg"], match="id")


def test_nothing_matches_in_a_result_list(coco):
    truth = parse_ground_truth(coco([]), "g")
    file = parse_predictions([{"image_id": "1", "bbox": [0, 0, 1, 1]}], "p")
    with pytest.raises(UserError, match=r"id '1'.*0001\.jpg \(id 1\)"):
        align_predictions(file, truth)
    with pytest.raises(UserError, match="--match id"):
        align_predictions(file, truth, "file_name")


def test_unknown_mode(place):
    with pytest.raises(UserError, match=r"'name'.*auto, id, file_name"):
        place(["a.jpg"], ["a.jpg"], match="name")


def test_missing_file_name(coco):
    truth = coco([])
    del truth["images"][0]["file_name"]
    truth = parse_ground_truth(truth, "g")
    with pytest.raises(UserError, match=r"^g: .*id 1 .*file_name"):
        align_predictions(parse_predictions(coco([]), "p"), truth)


@pytest.mark.parametrize(
    ("size", "swapped"), [((100, 200), True), ((100, 100), False)], ids=["swapped", "other"]
)
def test_listed_size_disagrees(place, size, swapped):
    with pytest.raises(UserError) as caught:
        place(["a.jpg"], ["a.jpg"], size=size)
    text = str(caught.value)
    assert "a.jpg (id 11)" in text
    assert f"{size[0]} x {size[1]}" in text
    assert "200 x 100" in text
    assert ("swapped" in text) == swapped


def test_mask_size_disagrees(coco):
    truth = parse_ground_truth(coco([]), "g")
    rows = [{"image_id": 1, "segmentation": {"size": [200, 100], "counts": [20000]}}]
    message = r"record 0 on image 0001\.jpg \(id 1\): .*100 x 200.*swapped"
    with pytest.raises(UserError, match=message):
        align_predictions(parse_predictions(rows, "p"), truth)


def test_boxes_come_from_the_masks(coco):
    truth = parse_ground_truth(coco([]), "g")
    content = coco([(1, 10, 20, 30, 40)])
    del content["annotations"][0]["bbox"]
    (item,) = align_predictions(parse_predictions(content, "p"), truth).instances
    assert item.box == (10, 20, 30, 40)


def test_what_counts_unexpectedly_is_said(coco, caplog):
    truth = parse_ground_truth(coco([], images=range(1, 5)), "g")
    content = coco([(1, 0, 0, 9, 9, {"iscrowd": 1}), (1, 0, 0, 9, 9)], images=[1, *range(10, 17)])
    with caplog.at_level(logging.INFO):
        align_predictions(parse_predictions(content, "p"), truth)
    assert "list 1 of the 4 ground-truth images; the other 3 count" in caplog.text
    assert "7 predicted images are not in the ground truth" in caplog.text
    assert "0014.jpg (id 14), ..." in caplog.text
    assert "0015.jpg" not in caplog.text
    assert "1 crowd records" in caplog.text
    assert "1 of 1 predictions have no score" in caplog.text
