"""A page of labelled photographs to look through. It opens from disk, without a server."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from promerge_d2.utils.files import atomic_path, make_folder
from promerge_d2.visualization.overlay import color_of

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
    folder = make_folder(folder)
    cards, reasons = [], {}
    for number, image in enumerate(images):
        name = f"{number:05d}.jpg"
        picture = _shrink(image.photograph)
        with atomic_path(folder / name) as part:
            Image.fromarray(picture).save(part, "JPEG", quality=85)
        reasons[image.reason] = reasons.get(image.reason, 0) + 1
        cards.append(_card(image, name, _outlines(image, *picture.shape[:2])))
    options = "".join(
        f'<option value="{escape(reason)}">{escape(reason)} ({count})</option>'
        for reason, count in sorted(reasons.items())
        if reason
    )
    page = (
        _PAGE.replace("{title}", escape(title))
        .replace("{summary}", "".join(f"<p>{escape(text)}</p>" for text in summary))
        .replace("{bars}", _bars(histogram))
        .replace("{options}", options)
        .replace("{cards}", "\n".join(cards))
    )
    with atomic_path(folder / "index.html") as part:
        part.write_text(page, encoding="utf-8")
    return folder / "index.html"


def _bars(histogram: Sequence[tuple[str, int]]) -> str:
    most = max((count for _, count in histogram), default=0) or 1
    return "".join(
        f'<span title="{count} images"><i style="height: {-(-60 * count // most)}px">'
        f"</i>{escape(masks)}</span>"
        for masks, count in histogram
    )


def _card(image: Labelled, picture: str, outlines: str) -> str:
    scores = [score for score in image.scores if score is not None]
    best = f"{max(scores):.4g}" if scores else ""
    told = image.reason
    if image.masks:
        told = f"{len(image.masks)} mask{'s' if len(image.masks) > 1 else ''}"
        told += f", best score {best}" if best else ""
    return (
        f'<figure data-masks="{len(image.masks)}" data-score="{best}" '
        f'data-reason="{escape(image.reason)}">'
        f'<div><img loading="lazy" src="{picture}" alt="{escape(image.name)}">{outlines}</div>'
        f"<figcaption>{escape(image.name)}<br><b>{escape(told)}</b></figcaption></figure>"
    )


def _outlines(image: Labelled, height: int, width: int) -> str:
    """The masks as an SVG of the picture's size, large ones below; ranks go by score."""
    scores = [0.0 if score is None else score for score in image.scores]
    ranked = sorted(range(len(scores)), key=lambda index: -scores[index])
    rank = {index: place for place, index in enumerate(ranked)}
    areas = [np.count_nonzero(mask) for mask in image.masks]
    paths = []
    for index in sorted(rank, key=lambda index: -areas[index]):
        mask = np.asarray(image.masks[index], np.uint8)
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        outlines = [cv2.approxPolyDP(outline, _ROUGH, True)[:, 0] for outline in outlines]
        # pixels' centres, so that an outline does not lie a half off
        d = "".join(
            "M" + "L".join(f"{x}.5,{y}.5" for x, y in outline.tolist()) + "z"
            for outline in outlines
        )
        color = "#{:02x}{:02x}{:02x}".format(*color_of(rank[index]))
        score = image.scores[index]
        told = f"mask {rank[index] + 1}" + ("" if score is None else f", score {score:.4g}")
        paths.append(
            f'<path data-rank="{rank[index]}" fill="{color}" stroke="{color}" d="{d}">'
            f"<title>{told}</title></path>"
        )
    return f'<svg viewBox="0 0 {width} {height}">{"".join(paths)}</svg>'


def _shrink(picture: np.ndarray) -> np.ndarray:
    scale = _SIDE / max(picture.shape[:2])
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return picture


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root { color-scheme: light dark; --line: #8885; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem; }
h1 { margin: 0 0 0.5rem; line-height: 1.2; }
p { margin: 0.2rem 0; max-width: 60rem; }
form { position: sticky; top: 0; background: Canvas; padding: 0.7rem 0; z-index: 1;
  display: flex; flex-wrap: wrap; gap: 0.4rem 1.2rem; align-items: center;
  border-bottom: 1px solid var(--line); margin: 0.8rem 0 1rem; }
input[type=number] { width: 4.5rem; }
input, select, button { font: inherit; }
output { font-weight: 600; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
figure { margin: 0; }
figure[hidden], path[hidden] { display: none; }
figure div { position: relative; cursor: zoom-in; }
figure.large { grid-column: 1 / -1; }
figure.large div { cursor: zoom-out; max-width: 66rem; }
img { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: #8882;
  border-radius: 4px; display: block; }
svg { position: absolute; inset: 0; width: 100%; height: 100%; }
path { fill-opacity: 0.3; fill-rule: evenodd; stroke-width: 1.5;
  vector-effect: non-scaling-stroke; }
path:hover { fill-opacity: 0.6; stroke-width: 3; }
.bars { display: flex; align-items: flex-end; gap: 6px; margin: 0.6rem 0; font-size: 0.75rem; }
.bars span { display: flex; flex-direction: column; align-items: center; min-width: 1.6rem; }
.bars i { width: 100%; background: #4a90d9; }
figcaption { font-size: 0.85rem; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>{title}</h1>
{summary}
<div class="bars">{bars} &nbsp; masks an image, all images of the file</div>
<form>
<label>Reason <select name="reason"><option value="">any</option>{options}</select></label>
<label>Masks from <input name="from" type="number" min="0"></label>
<label>to <input name="to" type="number" min="0"></label>
<label>Best score at least <input name="score" type="number" step="any"></label>
<label>Draw the best <input name="best" type="number" min="0" value="5"> of each</label>
<button type="reset">reset</button>
<output></output>
</form>
<main>
{cards}
</main>
<script>
"use strict";
const form = document.querySelector("form");
const figures = [...document.querySelectorAll("figure")];
const within = (value, from, to) => (from === "" || value >= +from) && (to === "" || value <= +to);
function show() {
  const wanted = Object.fromEntries(new FormData(form));
  let shown = 0;
  for (const figure of figures) {
    const { masks, score, reason } = figure.dataset;
    const fits = (wanted.reason === "" || reason === wanted.reason)
      && within(+masks, wanted.from, wanted.to)
      && (wanted.score === "" || (score !== "" && +score >= +wanted.score));
    figure.hidden = !fits;
    shown += fits;
    if (!fits) continue;
    for (const path of figure.querySelectorAll("path"))
      path.toggleAttribute("hidden", wanted.best !== "" && +path.dataset.rank >= +wanted.best);
  }
  form.querySelector("output").textContent = `${shown} of ${figures.length} shown`;
}
function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  form.reset();
  if (asked.has("reason")) form.elements.reason.value = asked.get("reason");
  if (asked.has("masks")) {
    const [from, to] = asked.get("masks").split("-");
    form.elements.from.value = from;
    form.elements.to.value = to ?? "";
  }
  if (asked.has("best")) form.elements.best.value = asked.get("best");
  if (asked.has("score")) form.elements.score.value = asked.get("score");
  show();
}
document.querySelector("main").addEventListener("click", (event) => {
  if (event.target.closest("figure div"))
    event.target.closest("figure").classList.toggle("large");
});
form.addEventListener("input", show);
form.addEventListener("reset", () => setTimeout(show));
form.addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", readAddress);
readAddress();
</script>
</body>
</html>
"""
