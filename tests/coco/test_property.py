"""Small random COCO files and mutations of them, through every tool: a plain reader's answer.

``PROMERGE_EXAMPLES=10000 pytest tests/coco/test_property.py`` tries more, from new seeds.
"""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from promerge_d2.coco.predictions import read_predictions
from promerge_d2.evaluation import align_predictions
from promerge_d2.pseudo_labels.finding import list_images
from tests.coco import plain
from tests.coco.checks import NUMBERS, as_rows, attempt, check_every_tool, rows_of, run
from tests.coco.mutations import TRIED, change, files, good_files
from tests.helpers import parse_ground_truth


@TRIED
@given(data=files())
def test_every_tool_gives_the_plain_readers_answer(tmp_path, data):
    path = tmp_path / f"{next(NUMBERS)}.json"  # a new one each time: an index knows it by its time
    path.write_bytes(data)
    check_every_tool(path, data)
    for left in tmp_path.glob("*"):
        left.unlink()


def read_list(rows, images):
    """The plain reader's predictions on some images, or its refusal."""
    if not isinstance(rows, list):
        return plain.Refused("")
    objects = []
    for masks in (False, True):  # masks are looked at when all records are read
        for place, row in enumerate(rows):
            try:
                item = plain.read_object(row, images if masks else {}, f"record {place}", True)
            except plain.Refused as refused:
                return refused
            if item is not None:
                objects.append({**item, "crowd": False})
    for item in objects:
        box = item["box"]
        item["area"] = float(box[2] * box[3] if item["mask"] is None else item["mask"].sum())
    return objects


@TRIED
@given(truth=good_files(), guesses=good_files(), draw=st.data())
def test_a_result_list_gives_the_plain_readers_answer(tmp_path, truth, guesses, draw):
    for _ in range(draw.draw(st.integers(0, 2))):
        change(draw.draw, guesses, sections=("annotations",))
    rows = guesses["annotations"]
    images = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    ground_truth = parse_ground_truth(truth, "truth")
    expected = read_list(rows, images)
    if not isinstance(expected, plain.Refused):
        known = {plain.identity(row["image_id"]) for row in rows if not crowd_of(row)}
        if known and not known & images.keys():
            expected = plain.Refused("truth")  # no image in common

    def evaluate():
        return align_predictions(read_predictions(path), ground_truth)

    path = tmp_path / f"{next(NUMBERS)}.json"
    path.write_text(json.dumps(rows))
    found = run(evaluate, expected, path)
    path.unlink()
    if found is not None:
        assert as_rows(found.instances) == rows_of(expected)


def crowd_of(row):
    return row.get("iscrowd") not in (None, False, 0, "0")


@TRIED
@given(data=files())
def test_an_input_list_gives_names_and_ids(tmp_path, data):
    path = tmp_path / "input.json"
    path.write_bytes(data)
    images, _ = attempt(lambda: list_images(path, tmp_path), path)
    if images is not None:
        assert len({image.id for image in images.files}) == len(images.files)
