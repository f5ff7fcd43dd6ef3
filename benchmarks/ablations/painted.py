"""Painted scenes with exact ground truth, each case hard for a background that is told by its edge.

All coordinates are pixels (x, y) of the scene; a box is (x0, y0, x1, y1), its ends inside.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from promerge_d2.coco.records import mask_record
from promerge_d2.utils.files import write_json
from promerge_d2.visualization.overlay import save_png

HEIGHT, WIDTH = 360, 480
SEED = 0
SIDES = ("top", "bottom", "left", "right")
CASES = {
    "away": "objects away from the border",
    "texture": "objects away from the border, full of edges",
    "touch_1": "an object that touches one side",
    "touch_2": "an object that touches two sides",
    "touch_3": "an object that touches three sides",
    "touch_4": "an object that touches all sides",
    "frame": "objects away from the border; other stuff along each side, not the background",
}

Box = tuple[float, float, float, float]


def paint_case(case: str, count: int, folder: Path) -> tuple[Path, Path]:
    """Paint the scenes of a case; the same bytes each time.

    Args:
        case: a name of ``CASES``.
        count: scenes.
        folder: gets ``CASE/NN.png`` and ``CASE.json``, a COCO file.

    Returns:
        The folder of the scenes and the COCO file.
    """
    coco = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}]}
    for index in range(count):
        picture, masks = paint(case, index)
        name = f"{index:03d}.png"
        save_png(folder / case / name, picture, drawing=False)
        size = {"height": HEIGHT, "width": WIDTH}
        coco["images"].append({"id": index + 1, "file_name": name, **size})
        for mask in masks:
            place = {"id": len(coco["annotations"]) + 1, "image_id": index + 1}
            coco["annotations"].append({**place, "category_id": 1, "iscrowd": 0, **_truth(mask)})
    write_json(folder / f"{case}.json", coco)
    return folder / case, folder / f"{case}.json"


def _truth(mask: np.ndarray) -> dict:
    record = mask_record(mask)
    del record["score"]
    return record


def paint(case: str, index: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Paint a scene.

    Args:
        case: a name of ``CASES``.
        index: of the scene; objects of ``touch_*`` go through all combinations of sides.

    Returns:
        (HEIGHT, WIDTH, 3) uint8 RGB and the objects' masks, (HEIGHT, WIDTH) bool each, which do
        not overlap.
    """
    rng = np.random.default_rng([SEED, list(CASES).index(case), index])
    if case.startswith("touch_"):
        combinations = list(itertools.combinations(SIDES, int(case[-1])))
        boxes = [touching_box(rng, combinations[index % len(combinations)])]
    else:
        boxes = inner_boxes(rng, 0.26 if case == "frame" else 0.1)
    masks = [blob(rng, box) for box in boxes]
    stuff = frame_parts(rng) if case == "frame" else []
    background, *colours = distinct_colours(rng, 1 + len(stuff) + len(masks))
    picture = smooth_stuff(rng, background)
    for colour, part in zip(colours, (*stuff, *masks), strict=True):
        fill = texture if case == "texture" else smooth_stuff
        picture[part] = fill(rng, colour)[part]
    return np.clip(picture, 0, 255).round().astype(np.uint8), masks


def touching_box(rng: np.random.Generator, sides: Sequence[str]) -> Box:
    """A box that sticks out of the scene on these sides and stays well inside on the others."""
    x0, y0, x1, y1 = (rng.uniform(0.2, 0.35) for _ in range(4))  # inside of the side, as a share
    depth = 0.16 if len(sides) < 4 else 0.06  # leave some background in the corners
    beyond = {side: -depth * rng.uniform(0.7, 1.3) for side in sides}
    x0, x1 = beyond.get("left", x0), beyond.get("right", x1)
    y0, y1 = beyond.get("top", y0), beyond.get("bottom", y1)
    return x0 * WIDTH, y0 * HEIGHT, (1 - x1) * WIDTH, (1 - y1) * HEIGHT


def inner_boxes(rng: np.random.Generator, margin: float) -> list[Box]:
    """One to three boxes apart from each other, at least ``margin`` of a side from the border."""
    columns, rows = 3, 2
    cell = np.array([WIDTH / columns, HEIGHT / rows]) * (1 - 2 * margin)
    boxes = []
    for place in rng.permutation(columns * rows)[: rng.integers(1, 4)]:
        size = cell * rng.uniform(0.6, 0.9, 2)
        corner = np.array([WIDTH, HEIGHT]) * margin + cell * [place % columns, place // columns]
        corner = corner + (cell - size) * rng.uniform(0.1, 0.9, 2)
        boxes.append((*corner, *(corner + size)))
    return boxes


def blob(rng: np.random.Generator, box: Box) -> np.ndarray:
    """A smooth shape that fills a box from side to side, cut at the scene's border: bool mask."""
    angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    radius = np.ones_like(angles)
    for waves in (2, 3, 4):
        radius += rng.uniform(0, 0.3 / waves) * np.cos(waves * angles + rng.uniform(0, 2 * np.pi))
    points = np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)
    low, high = points.min(axis=0), points.max(axis=0)
    points = (points - low) / (high - low) * np.subtract(box[2:], box[:2]) + box[:2]
    return _polygon(points)


def frame_parts(rng: np.random.Generator) -> list[np.ndarray]:
    """Four strips with mitred corners, one along each side: bool masks that share no pixel."""
    x0, y0 = rng.uniform(0.12, 0.18, 2) * (WIDTH, HEIGHT)
    x1, y1 = (WIDTH, HEIGHT) - rng.uniform(0.12, 0.18, 2) * (WIDTH, HEIGHT)
    outer = [(0, 0), (WIDTH - 1, 0), (WIDTH - 1, HEIGHT - 1), (0, HEIGHT - 1)]
    inner = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    parts: list[np.ndarray] = []
    taken = np.zeros((HEIGHT, WIDTH), bool)
    for a, b in ((0, 1), (1, 2), (2, 3), (3, 0)):
        part = _polygon(np.array([outer[a], outer[b], inner[b], inner[a]])) & ~taken
        taken |= part
        parts.append(part)
    return parts


def _polygon(points: np.ndarray) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.fillPoly(mask, [points.round().astype(np.int32)], 1)
    return mask.astype(bool)


def distinct_colours(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """RGB colours (3,) of which no two are near each other."""
    colours: list[np.ndarray] = []
    while len(colours) < count:
        colour = rng.uniform(30, 225, 3)
        if all(np.linalg.norm(colour - other) > 100 for other in colours):
            colours.append(colour)
    return colours


def smooth_stuff(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    """A surface of one colour with soft shades and a little grain: (HEIGHT, WIDTH, 3) float."""
    shades = cv2.resize(rng.normal(0, 7, (4, 5, 3)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return colour + shades + rng.normal(0, 3, (HEIGHT, WIDTH, 3))


def texture(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    """A surface of small squares, dark and light: (HEIGHT, WIDTH, 3) float."""
    side = int(rng.integers(4, 8))
    squares = rng.choice([-80.0, 80.0], (-(-HEIGHT // side), -(-WIDTH // side), 1))
    squares = squares.repeat(side, axis=0).repeat(side, axis=1)[:HEIGHT, :WIDTH]
    return colour + squares + rng.normal(0, 3, (HEIGHT, WIDTH, 3))
