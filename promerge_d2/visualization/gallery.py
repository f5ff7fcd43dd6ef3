"""A page of labelled photographs to look through."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from promerge_d2.utils.files import atomic_path
from promerge_d2.visualization.overlay import color_of
from promerge_d2.visualization.pages import write_page

_SIDE = 640  # pixels of a picture's longer side
_ROUGH = 0.8  # pixels that an outline may be off


@dataclass(frozen=True)
class Labelled:
    """A photograph and its masks.

    Attributes:
        name: shown below it.
        photograph: (h, w, 3) uint8 RGB.
        masks: each (h, w) bool.
        scores: one a mask; None where it has none.
        reason: why there is no mask, or empty.
    """

    name: str
    photograph: np.ndarray
    masks: Sequence[np.ndarray]
    scores: Sequence[float | None]
    reason: str = ""


def write_gallery(
    folder: str | os.PathLike,
    title: str,
    summary: Sequence[str],
    histogram: Sequence[tuple[str, int]],
    images: Iterable[Labelled],
) -> Path:
    """Write ``index.html`` and a picture an image into a folder.

    The page can be narrowed to a reason, to numbers of masks, and to images with a mask of at
    least some score; addresses such as ``index.html#masks=0-0`` or ``#score=0.5`` do it at once.
    Masks lie over the pictures as outlines, the best few of each image, as many as are asked for
    (``#best=3``); a click makes a picture large.

    Args:
        folder: made if need be.
        title: heading and window title.
        summary: paragraphs at the top.
        histogram: numbers of masks in words, and how many images have so many.
        images: drawn one by one.

    Returns:
        The page.
    """
    folder = Path(folder)
    cards: list[dict[str, Any]] = []
    for number, image in enumerate(images):
        name = f"{number:05d}.jpg"
        scale = min(1, _SIDE / max(image.photograph.shape[:2]))
        picture = cv2.resize(
            image.photograph, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA
        )
        with atomic_path(folder / name) as part:
            Image.fromarray(picture).save(part, "JPEG", quality=85)
        height, width = picture.shape[:2]
        cards.append(
            {
                "name": image.name,
                "picture": name,
                "height": height,
                "width": width,
                "reason": image.reason,
                "outlines": _outlines(image, height, width),
                **_in_words(image),
            }
        )
    reasons = collections.Counter(card["reason"] for card in cards if card["reason"])
    write_page(
        folder / "index.html",
        "gallery.html",
        title=title,
        summary=summary,
        histogram=histogram,
        most=max((count for _, count in histogram), default=0) or 1,
        reasons=sorted(reasons.items()),
        cards=cards,
    )
    return folder / "index.html"


def _in_words(image: Labelled) -> dict[str, str]:
    """Name the best score, and say what was found."""
    scores = [score for score in image.scores if score is not None]
    best = f"{max(scores):.3g}" if scores else ""
    words = image.reason
    if image.masks:
        words = f"{len(image.masks)} mask{'s' if len(image.masks) > 1 else ''}"
        words += f", best score {best}" if best else ""
    return {"best": best, "words": words}


def _outlines(image: Labelled, height: int, width: int) -> list[dict[str, Any]]:
    """Trace the masks as paths of SVG at the picture's size, large ones first; ranks by score."""
    scores = [0.0 if score is None else score for score in image.scores]
    ranked = sorted(range(len(scores)), key=lambda index: -scores[index])
    rank = {index: place for place, index in enumerate(ranked)}
    areas = [np.count_nonzero(mask) for mask in image.masks]
    paths = []
    for index in sorted(rank, key=lambda index: -areas[index]):
        mask = np.asarray(image.masks[index], np.uint8)
        small = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(small, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        # pixels' centres, so that an outline does not lie a half off
        path = "".join(
            "M" + "L".join(f"{x}.5,{y}.5" for x, y in points[:, 0].tolist()) + "z"
            for points in (cv2.approxPolyDP(outline, _ROUGH, True) for outline in outlines)
        )
        color = "#{:02x}{:02x}{:02x}".format(*color_of(rank[index]))
        score = image.scores[index]
        words = "" if score is None else f", score {score:.3g}"
        paths.append({"rank": rank[index], "color": color, "path": path, "score": words})
    return paths
