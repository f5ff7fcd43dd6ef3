"""Small random COCO files and mutations of them, as bytes, for property tests (hypothesis)."""

from __future__ import annotations

import copy
import json
import os

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_api

from tests.coco import plain

ASKED = int(os.environ.get("PROMERGE_EXAMPLES", "0"))
TRIED = settings(
    max_examples=ASKED or 200,
    derandomize=not ASKED,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

ODD = [
    *(None, True, False, "", "7", "0", "1", "1e1", "x", "é", "\ud800", "a\\b.jpg", ".\\a.jpg"),
    *(-1, 0, 1, 2, 7, 0.0, 0.5, 1.0, 7.0, 65535, 65536, 2**31, 2**63, 2**64 - 1, 10**400),
    *(1e308, -1e-308, float("nan"), float("inf"), [], {}, [1], [[]], {"size": [6, 8]}),
    *([0, 0, 0, 0], [1, 1, 3, 0], [1, 2, 3], ["1", 2, 3, 4], [0, 0, 1e200, 1e200]),
    *([90, 90, 5, 5], [-9, -9, 4, 4]),
    *([[1, 1, 4, 1, 4, 4], [2, 2]], [[1, 1, 2, 2]], [1, 1, 4, 1, 4, 4], [[0, 0, 4, 0, 4, 4, 1]]),
    *(
        [[0, 0, 1e9, 0, 1, 1]],
        [[0, "1", 4, 0, 4, 4]],
        [[1, 1, 1, 1, 1, 1]],
        [[0, 0, 9, 0, 9, 9], 3],
    ),
    *({"size": [6, 8], "counts": "P"}, {"size": [8, 6], "counts": [48]}, "52203"),
    *({"size": [6, 8], "counts": [48]}, {"size": [6, 8], "counts": [0, 48]}),
    *({"size": [6.0, 8], "counts": [8, 40]}, {"size": [6, 8], "counts": [49, -1]}),
]
# what people's files have there, right or wrong
LIKELY = {
    "id": [2**64 - 1, "1", "01", 1.0, -1],
    "image_id": [2**64 - 1, "1", 1.0, 2],
    "width": ["8", 8.0, 6],
    "height": ["6", 6.0, 8],
    "bbox": [[0, 0, 0, 0], [1, 1, 3, 0], [90, 90, 5, 5], [-9, -9, 4, 4], ["1", 1, 2, 2], []],
    "iscrowd": ["0", "1", True, None, "no"],
    "score": [None, "0.5", 2, "high"],
    "area": [None, "3", 0, -1],
    "segmentation": [
        *([1, 1, 4, 1, 4, 4], [[1, 1, 4, 1, 4, 4], [2, 2]], [[1, 1, 2, 2]], []),
        *([[0, 0, 4, 0, 4, 4, 1]], {"size": [6, 8], "counts": [48]}),
    ],
}
KEYS = {
    "images": ["id", "file_name", "width", "height", "reason", "coco_url"],
    "annotations": [
        *("id", "image_id", "bbox", "area", "score", "iscrowd", "segmentation", "category_id"),
    ],
}


@st.composite
def files(draw):
    """Bytes of a file that is right, or right but for a few changes."""
    return draw(mutated(draw(good_files())))


@st.composite
def mutated(draw, content):
    """Bytes of a file, which is right, after up to three changes, in an encoding."""
    for _ in range(draw(st.integers(0, 3))):
        change(draw, content)
    order = draw(st.permutations(list(content)))
    escaped = draw(st.booleans())
    text = json.dumps({key: content[key] for key in order}, ensure_ascii=escaped)
    encodings = ["utf-8"] * 6 + ["utf-8-sig"] * 2 + ["utf-16", "latin-1", "utf-32-le"]
    data = text.encode(draw(st.sampled_from(encodings)), "surrogatepass" if escaped else "replace")
    if draw(st.integers(0, 30)) == 0:
        data = data[: draw(st.integers(0, len(data)))]
    return data


@st.composite
def good_files(draw):
    images, annotations = [], []
    for number in range(draw(st.integers(1, 3))):
        height, width = draw(st.sampled_from([(6, 8), (8, 6), (5, 5)]))
        name = draw(st.sampled_from(["a", "söder/b", "c d"])) + f"{number}.jpg"
        images.append({"id": number + 1, "file_name": name, "width": width, "height": height})
    for number in range(draw(st.integers(0, 4))):
        image = draw(st.sampled_from(images))
        seed = draw(st.integers(0, 999))
        rng = np.random.default_rng(seed)
        mask = rng.random((image["height"], image["width"])) < rng.choice([0.05, 0.5, 1])
        rle = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
        x, y, w, h = rng.integers(1, 5, 4).tolist()
        record = {
            "id": number + 1,
            "image_id": image["id"],
            "category_id": 1,
            "iscrowd": int(seed % 7 == 0),
            "bbox": mask_api.toBbox(rle).tolist(),
            "area": int(mask.sum()),
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        }
        kind = draw(st.integers(0, 3))
        if kind == 1:
            record["segmentation"]["counts"] = plain.decode(record["segmentation"]["counts"])
        elif kind == 2:
            record["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            record |= {"bbox": [x, y, w, h], "area": w * h}
        elif kind == 3:
            del record["segmentation"]
        if draw(st.booleans()):
            record["score"] = float(rng.random())
        annotations.append(record)
    return {"info": {"description": "x"}, "images": images, "annotations": annotations}


def change(draw, content, sections=("images", "annotations", "annotations")):
    """Change a file that is right, or was."""
    odd = st.sampled_from(ODD).map(copy.deepcopy)
    section = draw(st.sampled_from(sections))
    rows = content.get(section)
    if not isinstance(rows, list) or not rows or draw(st.integers(0, 20)) == 0:
        content[section] = draw(odd)
        return
    place = draw(st.integers(0, len(rows) - 1))
    row, key, other = rows[place], *(draw(st.sampled_from(KEYS[section])) for _ in range(2))
    hows = ["drop", "odd", "odd", "likely", "likely", "likely", "text", "swap", "twice", "record"]
    how = draw(st.sampled_from(hows))
    if how == "record":
        rows[place] = draw(odd)
    elif how == "twice":
        rows.insert(draw(st.integers(0, len(rows))), copy.deepcopy(row))
    elif not isinstance(row, dict):
        rows.pop(place)
    elif how == "drop":
        row.pop(key, None)
    elif how == "likely" and key in LIKELY:
        row[key] = copy.deepcopy(draw(st.sampled_from(LIKELY[key])))
    elif how in ("odd", "likely"):
        row[key] = draw(odd)
    elif how == "text":
        row[key] = str(row.get(key))
    else:
        row[key], row[other] = row.get(other), row.get(key)
