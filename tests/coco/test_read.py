from __future__ import annotations

import copy

import pytest

from promerge_d2.coco.ground_truth import read_ground_truth
from promerge_d2.evaluation import align_predictions
from promerge_d2.utils.errors import UserError
from tests.helpers import parse_ground_truth, parse_predictions

NAN, INF = float("nan"), float("inf")


def test_missing_fields_get_their_defaults(coco):
    content = coco([(1, 10, 20, 30, 40)])
    for key in ("iscrowd", "area", "bbox", "category_id"):
        del content["annotations"][0][key]
    del content["categories"]
    (obj,) = parse_ground_truth(content, "g").objects
    assert (obj.box, obj.area, obj.crowd) == ((10, 20, 30, 40), 1200, False)


def test_the_area_of_the_file_is_kept(coco):
    (obj,) = parse_ground_truth(coco([(1, 10, 20, 30, 40, {"area": 7.5})]), "g").objects
    assert obj.area == 7.5


def test_box_only_ground_truth(coco):
    content = coco([(1, 10, 20, 30, 40)], masks=False)
    del content["annotations"][0]["area"]
    truth = parse_ground_truth(content, "g")
    assert truth.box_only
    assert truth.objects[0].area == 1200
    assert not parse_ground_truth(coco([(1, 10, 20, 30, 40)]), "g").box_only


@pytest.mark.parametrize("empty", [None, [], {}])
def test_an_empty_segmentation_is_none(coco, empty):
    content = coco([(1, 10, 20, 30, 40, {"segmentation": empty})])
    assert parse_ground_truth(content, "g").box_only


def test_images_are_in_ascending_order_of_ids(coco):
    content = coco([], images=(30, 4, 200))
    content["images"].append({"id": "a", "width": 1, "height": 1})
    assert list(parse_ground_truth(content, "g").images) == [4, 30, 200, "a"]


def test_lvis_v1_has_its_file_name_in_the_url(coco):
    content = coco([])
    del content["images"][0]["file_name"]
    content["images"][0]["coco_url"] = "http://images.cocodataset.org/val2017/000000000139.jpg"
    assert parse_ground_truth(content, "g").images[1].file_name == "val2017/000000000139.jpg"


def test_result_list_with_float_ids_as_released():
    rows = [{"image_id": 139.0, "category_id": 1.0, "bbox": [1, 2, 3, 4], "score": 1.0}]
    file = parse_predictions(rows, "p")
    assert file.images is None
    assert file.records[0].image_id == 139
    assert isinstance(file.records[0].image_id, int)


def test_crowds_are_dropped_and_missing_scores_are_one(coco):
    content = coco([(1, 0, 0, 9, 9, {"iscrowd": 1}), (1, 0, 0, 8, 8), (1, 0, 0, 7, 7)])
    content["annotations"][2]["score"] = 0.25
    file = parse_predictions(content, "p")
    assert [record.score for record in file.records] == [1.0, 0.25]
    assert (file.crowds_dropped, file.without_score) == (1, 1)


def _set(section, index, **values):
    def change(content):
        content[section][index].update(values)

    return change


def _drop(section, index, *keys):
    def change(content):
        for key in keys:
            del content[section][index][key]

    return change


BOTH = [
    (_drop("annotations", 1, "image_id"), r"annotations\[1\] \(id 2\).* 'image_id'"),
    (_drop("annotations", 1, "bbox", "segmentation"), r"annotations\[1\] .*neither a 'bbox' nor"),
    (_set("annotations", 1, image_id=77), r"annotations\[1\] \(id 2, image_id 77\)"),
    (_set("annotations", 1, image_id=1.5), r"1\.5"),
    (_set("annotations", 1, image_id=True), "True"),
    (_set("annotations", 1, bbox=[0, 0, NAN, 5]), r"annotations\[1\] .*bbox.* nan"),
    (_set("annotations", 1, bbox=[0, 0, 10**400, 5]), "bbox.* 1000"),
    (_set("annotations", 1, bbox=[0, "0x", 5, 5]), "bbox.*'0x'"),
    (_set("annotations", 1, bbox=[9, 9, -5, 5]), r"annotations\[1\] .*-5"),
    (_set("annotations", 1, bbox=[1, 2, 3]), r"bbox is \[1, 2, 3\]"),
    (_set("annotations", 1, iscrowd=2), "iscrowd is 2"),
    (_set("images", 1, id=1), r"images\[1\] \(id 1\)"),
    (_drop("images", 1, "id"), r"images\[1\]: it has no 'id'"),
    (_set("images", 1, width=-5), r"images\[1\] \(id 2\): width is -5"),
    (_set("images", 1, height=10**9), "height is 1000000000"),
    (_set("images", 1, file_name=5), r"\b5\b.*file name"),
    (lambda content: content["annotations"].append(None), r"annotations\[2\] is None, not an"),
    (lambda content: content["annotations"].append([1]), r"annotations\[2\] is \[1\], not an"),
    (lambda content: content.pop("annotations"), "no list 'annotations'"),
    (lambda content: content.update(images={}), "no list 'images'"),
]
TRUTH_ONLY = [
    (lambda content: content.update(images=[], annotations=[]), "images"),
    (lambda content: content.pop("images"), "no list 'images'"),
    (_drop("images", 1, "width"), r"images\[1\] \(id 2\): it has no 'width'"),
    (_set("images", 1, height=None), "height is None"),
    (_set("annotations", 1, segmentation="x"), r"annotations\[1\] .*segmentation is 'x'"),
    (
        _set("annotations", 1, segmentation={"size": [200, 100], "counts": [20000]}),
        r"annotations\[1\] .*mask is 100 x 200 .*image is 200 x 100 .*swapped",
    ),
]
BOTH += [
    (_set("annotations", 1, id=1), r"annotations\[1\] \(id 1,"),
    (_set("annotations", 1, area=INF), "area.* inf"),
    (_set("annotations", 1, area=-1), "area is -1.0"),
    (_set("annotations", 1, score=NAN), r"annotations\[1\] \(id 2, image_id 2\).*score.* nan"),
    (_set("annotations", 1, score=[1]), r"score is \[1\]"),
    (_set("annotations", 1, score="high"), "score is 'high'"),
]


@pytest.mark.parametrize(
    ("parse", "change", "message"),
    [
        *((parse_ground_truth, *case) for case in BOTH + TRUTH_ONLY),
        *((parse_predictions, *case) for case in BOTH),
    ],
)
def test_broken_files_are_refused(coco, parse, change, message):
    content = coco([(1, 0, 0, 9, 9), (2, 0, 0, 9, 9)], images=(1, 2))
    parse(copy.deepcopy(content), "file.json")
    change(content)
    with pytest.raises(UserError, match=rf"^file\.json.*{message}"):
        parse(content, "file.json")


def test_a_result_list_is_no_ground_truth():
    with pytest.raises(UserError, match="bare list"):
        parse_ground_truth([], "g")


def test_broken_record_of_a_result_list_is_named():
    rows = [{"image_id": 3, "bbox": [0, 0, 1, 1]}, {"image_id": 3, "score": 1}]
    with pytest.raises(UserError, match=r"^p: record 1 \(image_id 3\): it has neither"):
        parse_predictions(rows, "p")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", r"g\.json"), ("{", r"g\.json"), ("3", r"g\.json")],
)
def test_files_that_are_no_coco_json(tmp_path, text, message):
    path = tmp_path / "g.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_ground_truth(path)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="ground truth"):
        read_ground_truth(tmp_path / "none.json")


def test_records_read_at_once_are_those_read_one_by_one(coco):
    content = coco([(1, n % 150, 0, 9, 9, {"score": n / 300}) for n in range(300)])
    del content["annotations"][5]["segmentation"]
    together = parse_predictions(content, "p")
    del content["annotations"][7]["bbox"]  # now they are looked at one by one
    apart = parse_predictions(content, "p")
    rows = [row for row in range(300) if row != 7]
    assert [repr(together.records[row]) for row in rows] == [
        repr(apart.records[row]) for row in rows
    ]
    assert (together.records[9].where.index, together.without_score) == (9, 0)
    truth = parse_ground_truth(coco([]), "g")
    placed = [align_predictions(file, truth).instances for file in (together, apart)]
    assert placed[0][5].rle is None
    assert [item.area for item in placed[0]] == [81] * 300
    assert [item.box for item in placed[0]] == [item.box for item in placed[1]]
    assert placed[1][7].rle == placed[0][7].rle


@pytest.mark.parametrize(
    "odd", [{"iscrowd": 1}, {"image_id": 1.0}, {"bbox": None}, {"bbox": (0, 0, 1, 1), "score": 1}]
)
def test_an_odd_record_among_many(coco, odd):
    content = coco([(1, n, 0, 9, 9, {"score": 0.5}) for n in range(9)])
    content["annotations"][4].update(odd)
    file = parse_predictions(content["annotations"], "p")
    assert len(file.records) + file.crowds_dropped == 9
    assert file.records.image_ids == [1]


def test_images_with_crowds_only_are_not_listed(coco):
    rows = coco([(1, 0, 0, 9, 9, {"iscrowd": 1}), (2, 0, 0, 9, 9)], images=(1, 2))["annotations"]
    assert parse_predictions(rows, "p").records.image_ids == [2]
