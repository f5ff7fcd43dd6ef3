"""The table of label files in docs/files.md holds: every command on every kind of trouble."""

from __future__ import annotations

import json
import os
import re
import shutil
import unicodedata

import pytest

from tests.engine.conftest import config, left_as_found, photos  # noqa: F401 - fixtures
from tests.helpers import ROOT, coco_json, photo, run_tool, save_image, square, use_tiny

COLUMNS = ["label", "import", "validate", "evaluate, zero-shot", "prepare", "train"]


def table():
    """The cells of the page's table of label files, by row and column."""
    lines = (ROOT / "docs" / "files.md").read_text(encoding="utf-8").splitlines()
    start = lines.index(f"| label file | {' | '.join(COLUMNS)} |") + 2
    rows = {}
    for line in lines[start:]:
        if not line.startswith("|"):
            return rows
        kind, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[kind] = dict(zip(COLUMNS, cells, strict=True))
    return rows


def each(section, **values):
    """A change of every record of a section; ``...`` drops a key."""

    def change(content):
        for record in content[section]:
            record.update(values)
            for key in [key for key, value in values.items() if value is ...]:
                del record[key]

    return change


def first(**values):
    """A change of the first object."""
    return lambda content: content["annotations"][0].update(values)


def with_id(content, image_id):
    content["images"][0]["id"] = image_id
    for record in content["annotations"][:2]:
        record["image_id"] = image_id


def turned(content):
    content["images"][1].update(width=96, height=144)


PLAIN = [84, 16, 120, 16, 120, 48, 84, 48]
CHANGES = {
    "all else allowed above": [
        each("images", width="144", height="96"),
        each("annotations", iscrowd="0"),
        each("annotations", score=None),
        lambda content: with_id(content, 2**64 - 1),
        first(segmentation=PLAIN),
        each("annotations", bbox=...),
        "utf-8-sig",
        ".\\0.png",
        unicodedata.normalize("NFC", "söder.png"),
        os.fsdecode(b"caf\xe9.png"),
    ],
    "object without a mask": [first(segmentation=None)],
    "part of two points, box of no area": [
        first(segmentation=[PLAIN, [60, 45, 60, 46]]),
        first(bbox=[5, 5, 0, 7]),
    ],
    "one photograph's sides exchanged": [turned],
    "photograph missing": [lambda content: content["images"][0].update(file_name="gone.png")],
}


@pytest.fixture
def labels(tmp_path, photos):  # noqa: F811
    """``labels(change)``: two photographs of three objects, and their file after the change."""

    def make(change):
        boxes = [square(96, 144, 84, 16, 120, 48), square(96, 144, 12, 40, 48, 80)]
        images = [("0.png", 96, 144, boxes), ("1.png", 96, 144, boxes[1:])]
        file = coco_json(tmp_path / "mine.json", images)
        content, encoding = json.loads(file.read_text()), "utf-8"
        if change == "utf-8-sig":
            encoding = change
        elif isinstance(change, str):
            content["images"][0]["file_name"] = change
            other = unicodedata.normalize("NFD", change.removeprefix(".\\"))
            save_image(photos / other, photo(box=(84, 16, 120, 48)))
        else:
            change(content)
        file.write_text(json.dumps(content), encoding=encoding)
        return file

    return make


@pytest.fixture
def commands(tmp_path, monkeypatch, photos, config):  # noqa: F811
    """The exit code of each column's command on a file."""
    tiny = ["--backbone", "tiny", "--weights", use_tiny(monkeypatch, tmp_path), "--workers", "0"]

    def run(name, file):
        def tool(script, *arguments):
            return run_tool(monkeypatch, script, *arguments)

        output = tmp_path / "out.json"
        match name:
            case "label":
                fast = ["--preset", "release", "--grid", "6", "--refine", "none"]
                images = ["--input", file, "--image-root", photos]
                return tool("label_images.py", *images, "--output", output, *tiny, *fast)
            case "import":
                return tool("import_labels.py", "--input", file, "--output", output)
            case "validate":
                return tool("validate_labels.py", file, "--images", photos)
            case "evaluate, zero-shot":
                return tool("evaluate_labels.py", "--predictions", file, "--ground-truth", file)
            case "prepare":
                root = tmp_path / "root" / "coco"
                shutil.copytree(photos, root / "val2017")
                (root / "annotations").mkdir()
                shutil.copy(file, root / "annotations" / "instances_val2017.json")
                return tool("../datasets/prepare_coco.py", "--root", root.parent)
        data = {"DATASETS.PROMERGE": [["mine", str(file), str(photos)]], "DATASETS.TEST": []}
        short = {"SOLVER.MAX_ITER": 2, "INPUT.COPY_PASTE.ENABLED": False}
        return tool(
            "train_net.py", "--config", config(**data, **short, **{"DATASETS.TRAIN": ["mine"]})
        )

    return run


def test_every_row_of_the_table_is_tried():
    assert table().keys() == CHANGES.keys()


@pytest.mark.parametrize(
    ("kind", "place"), [(kind, n) for kind in CHANGES for n in range(len(CHANGES[kind]))]
)
def test_commands_end_as_the_table_says(labels, commands, kind, place):
    file = labels(CHANGES[kind][place])
    wanted = {
        column: int((re.findall(r"exit (\d)", cell) or [0])[0])
        for column, cell in table()[kind].items()
    }
    assert {column: commands(column, file) for column in COLUMNS} == wanted
