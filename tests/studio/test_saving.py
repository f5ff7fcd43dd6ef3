"""New files: what was kept, and nothing written over."""

import json

import numpy as np
import pytest
from pycocotools import mask as mask_api

from promerge_d2.coco.check import validate_labels
from promerge_d2.studio.catalog import Keep, Wanted
from promerge_d2.studio.session import Session
from tests.studio.conftest import MASKS


def content_of(saved):
    with open(saved["file"]) as file:
        return json.load(file)


def masks_of(content, image_id):
    return [
        mask_api.decode(each["segmentation"]).astype(bool)
        for each in content["annotations"]
        if each["image_id"] == image_id
    ]


def test_untouched_it_is_the_same_file(session, labels):
    old, new = json.loads(labels.read_text()), content_of(session.save(Keep(-1), False))
    for section in ("images", "annotations", "categories"):
        assert new[section] == old[section]
    assert new["info"]["description"] == "made"
    assert new["info"]["studio"]["labels_sha256"] == session.catalog.sha256


def test_says_how_far_it_is(session, monkeypatch):
    seen, read = [], session.catalog.read

    def noting(place):
        seen.append(session.saving())
        return read(place)

    monkeypatch.setattr(session.catalog, "read", noting)
    for _ in range(2):
        session.save(Keep(), False)
    assert seen == [{"written": number, "photographs": 6} for number in range(6)] * 2


def test_what_is_kept(session):
    session.edit(0, "accept", [0])
    session.edit(0, "reject", [1])
    session.edit(1, "merge", [1, 2])
    session.edit(2, "reject", [0, 1, 2])
    saved = session.save(Keep(0.35, 1), False)
    content = content_of(saved)
    found = {
        image["id"]: [
            round(each["score"], 2)
            for each in content["annotations"]
            if each["image_id"] == image["id"]
        ]
        for image in content["images"]
    }
    # of photograph 1 the second best is left out by the slider, though the best was rejected
    assert found == {1: [0.2], 2: [0.8], 3: [], 4: [0.6], 5: [0.5], 6: []}
    assert saved["masks"] == len(content["annotations"]) == 4
    assert np.array_equal(masks_of(content, 2)[0], MASKS[1][1] | MASKS[2][1])
    reasons = [image.get("reason") for image in content["images"]]
    assert reasons == [None, None, "rejected_by_hand", None, None, "no_regions"]
    assert not validate_labels(saved["file"]).problems
    assert content_of(session.save(Keep(), True))["info"]["studio"]["accepted_only"] is True


def test_the_accepted_alone(session):
    session.edit(0, "accept", [2])
    session.edit(1, "merge", [0, 1])
    content = content_of(session.save(Keep(), True))
    assert [each["image_id"] for each in content["annotations"]] == [1, 2]
    about = content["info"]["studio"]
    assert (about["accepted"], about["merged"], about["rejected"]) == (2, 2, 0)


def test_no_file_is_written_over(session, labels):
    before = labels.read_bytes()
    names = [session.save(Keep(), False)["file"] for _ in range(3)]
    assert [name.rpartition("/")[2] for name in names] == [
        "labels.edited.json",
        "labels.edited-2.json",
        "labels.edited-3.json",
    ]
    assert labels.read_bytes() == before


def test_crowds_boxes_and_polygons_are_as_they_were(session, labels):
    content = json.loads(labels.read_text())
    crowd, box, polygon = content["annotations"][:3]
    crowd["iscrowd"] = 1
    del box["segmentation"]
    polygon["segmentation"] = [[40, 20, 80, 20, 80, 50]]
    polygon["attribute"] = "kept"
    del polygon["area"]
    other = labels.with_name("other.json")
    other.write_text(json.dumps(content))
    second = Session(other)
    try:
        assert [mask["number"] for mask in second.photograph(0, "large")["masks"]] == [2]
        second.edit(0, "reject", [2])
        second.edit(1, "accept", [0])
        new = content_of(second.save(Keep(2.0), False))
        old = [{k: v for k, v in each.items() if k != "id"} for each in (crowd, box)]
        found = [{k: v for k, v in each.items() if k != "id"} for each in new["annotations"]]
        assert found[:2] == old
        assert len(found) == 3
        second.undo()
        second.undo()
        (kept,) = content_of(second.save(Keep(0.45, 1), False))["annotations"][2:3]
        assert kept["segmentation"] == polygon["segmentation"]
        assert kept["attribute"] == "kept"
    finally:
        second.close()


def test_classes_of_the_file_stay(session, labels):
    content = json.loads(labels.read_text())
    content["categories"] = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    for number, each in enumerate(content["annotations"]):
        each["category_id"] = 7 if number == 1 else 3
    other = labels.with_name("other.json")
    other.write_text(json.dumps(content))
    second = Session(other)
    try:
        second.edit(1, "merge", [0, 2])
        new = content_of(second.save(Keep(-1), False))
    finally:
        second.close()
    assert new["categories"] == content["categories"]
    classes = {
        i: [a["category_id"] for a in new["annotations"] if a["image_id"] == i] for i in (1, 2)
    }
    assert classes == {1: [3, 7, 3], 2: [3, 3]}


@pytest.mark.parametrize("keep", [Keep(), Keep(0.3), Keep(0, 2)])
def test_as_many_as_the_page_counted(session, keep):
    session.edit(0, "merge", [0, 1])
    session.edit(1, "reject", [1])
    assert session.save(keep, False)["masks"] == session.find(keep, Wanted())["kept"]
