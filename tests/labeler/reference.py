"""A slow, obvious reference of ProMerge's grid stages, for the tests only.

Written from a description of the method (docs/algorithm.md holds its numbers), before and
without looking at `promerge_d2.labeler` (only the filter kind "none" follows its docstring): plain
loops, numpy float64, one prompt and one mask at a time. Masks are bool arrays (H, W), row first;
features are (C, H, W). Masks of equal area are taken in the order of their prompts, row by row,
components in reading order.
"""

from __future__ import annotations

import dataclasses

import numpy as np

EPS = 1e-5


@dataclasses.dataclass
class Settings:
    """Thresholds of A3, released values."""

    stride: int = 4
    tau_b: float = 0.2
    side_rule: str = "more_than_half"
    min_sides: int = 2
    component_ratio: float = 0.5
    min_background: float = 0.1
    vote: float = 0.5
    background_filter: str = "cascade"
    filter_ioa: float = 0.8
    filter_feature: float = 0.1
    merge_ioa: float = 0.5
    merge_gate: float = 0.1
    merge_feature: float = 0.1


@dataclasses.dataclass
class Result:
    """What every stage gave; a stage that was not reached is None."""

    foreground: list[np.ndarray]
    candidates: list[np.ndarray]
    background: np.ndarray | None = None
    pruned: list[np.ndarray] | None = None
    merged: list[np.ndarray] | None = None
    stopped: str | None = None  # why there are no masks
    margins: list[float] = dataclasses.field(default_factory=list)  # |float - its threshold|


def unit_keys(features: np.ndarray) -> np.ndarray:
    """Divide every cell's feature by its norm + 1e-5."""
    features = np.asarray(features, dtype=np.float64)
    channels, height, width = features.shape
    unit = np.zeros((channels, height, width))
    for r in range(height):
        for c in range(width):
            vector = features[:, r, c]
            unit[:, r, c] = vector / (np.sqrt((vector * vector).sum()) + EPS)
    return unit


def affinity(unit: np.ndarray, row: int, col: int) -> np.ndarray:
    """Cosine of one prompt with every cell."""
    _, height, width = unit.shape
    out = np.zeros((height, width))
    for r in range(height):
        out[r] = unit[:, row, col] @ unit[:, r, :]
    return out


def covered_sides(mask: np.ndarray, rule: str) -> int:
    """How many of the four border lines are covered, each against its own length."""
    count = 0
    for line in (mask[0, :], mask[-1, :], mask[:, 0], mask[:, -1]):
        fraction = sum(bool(x) for x in line) / len(line)
        if rule == "more_than_half":
            count += round(fraction)  # Python rounds one half to even, that is to 0
        elif rule == "at_least_half":
            count += 1 if fraction >= 0.5 else 0
        else:
            raise ValueError(rule)
    return count


def flood(mask: np.ndarray) -> list[np.ndarray]:
    """4-connected components in the order in which a row-by-row scan meets them."""
    height, width = mask.shape
    seen = np.zeros((height, width), dtype=bool)
    out = []
    for r in range(height):
        for c in range(width):
            if not mask[r, c] or seen[r, c]:
                continue
            component = np.zeros((height, width), dtype=bool)
            stack = [(r, c)]
            seen[r, c] = True
            while stack:
                y, x = stack.pop()
                component[y, x] = True
                for ny, nx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                    if 0 <= ny < height and 0 <= nx < width and mask[ny, nx] and not seen[ny, nx]:
                        seen[ny, nx] = True
                        stack.append((ny, nx))
            out.append(component)
    return out


def split(mask: np.ndarray, row: int, col: int, ratio: float) -> list[np.ndarray]:
    """Components with at least `ratio` times the area of the prompt's own component."""
    parts = flood(mask)
    own = [p.sum() for p in parts if p[row, col]]
    if not own:  # the prompt is not in its own map: it has no object
        return []
    return [p for p in parts if p.sum() >= ratio * own[0]]


def mean_key(unit: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean of the unit keys over a mask, not normalised again."""
    return unit[:, mask].mean(axis=1)


def background_vote(candidates: list[np.ndarray], vote: float) -> np.ndarray:
    """Cells that more than a share `vote` of the candidates hold."""
    total = np.zeros(candidates[0].shape, dtype=np.int64)
    for candidate in candidates:
        total += candidate
    return total / len(candidates) > vote


def filter_masks(
    masks: list[np.ndarray],
    background: np.ndarray | None,
    unit: np.ndarray,
    s: Settings,
    margins: list[float],
) -> list[np.ndarray]:
    """Ascending area; a mask must bring something new that is not scenery."""
    masks = sorted(masks, key=lambda m: int(m.sum()))  # stable
    if s.background_filter == "none":
        return masks
    accepted: list[np.ndarray] = []
    union = np.zeros_like(background)
    for mask in masks:
        new = mask & ~union
        if not new.any():
            continue
        if s.background_filter in ("cascade", "ioa"):
            ioa = (new & background).sum() / new.sum()
            if not ioa < s.filter_ioa:
                continue
        if s.background_filter in ("cascade", "feature"):
            similarity = mean_key(unit, mask) @ mean_key(unit, background)
            margins.append(abs(similarity - s.filter_feature))
            if not similarity < s.filter_feature:
                continue
        accepted.append(mask)
        union = union | mask
    return accepted


def merge(
    masks: list[np.ndarray], unit: np.ndarray, s: Settings, margins: list[float]
) -> list[np.ndarray]:
    """Descending area; a mask joins every cluster that holds enough of it. One pass."""
    clusters: list[np.ndarray] = []
    for mask in sorted(masks, key=lambda m: -int(m.sum())):
        joined = mask.copy()
        left = []
        for cluster in clusters:
            q = (mask & cluster).sum() / mask.sum()
            hit = q > s.merge_ioa
            if not hit and q > s.merge_gate:
                similarity = mean_key(unit, mask) @ mean_key(unit, cluster)
                margins.append(abs(similarity - s.merge_feature))
                hit = similarity >= s.merge_feature
            if hit:
                joined |= cluster
            else:
                left.append(cluster)
        clusters = [*left, joined]
    return clusters


def promerge_grid(features: np.ndarray, s: Settings) -> Result:
    """All grid stages of C1, items 3 to 9."""
    unit = unit_keys(features)
    _, height, width = unit.shape
    result = Result(foreground=[], candidates=[])
    for row in range(0, height, s.stride):
        for col in range(0, width, s.stride):
            cosines = affinity(unit, row, col)
            result.margins.append(float(np.abs(cosines - s.tau_b).min()))
            mask = cosines > s.tau_b
            if covered_sides(mask, s.side_rule) >= s.min_sides:
                result.candidates.append(mask)
            else:
                result.foreground.extend(split(mask, row, col, s.component_ratio))
    if not result.foreground:
        result.stopped = "no_foreground"
        return result
    if s.background_filter != "none":
        if not result.candidates:
            result.stopped = "no_background"
            return result
        result.background = background_vote(result.candidates, s.vote)
        count = result.background.sum()
        if count == 0 or count / (height * width) < s.min_background:
            result.stopped = "small_background"
            return result
    result.pruned = filter_masks(result.foreground, result.background, unit, s, result.margins)
    result.merged = merge(result.pruned, unit, s, result.margins)
    if not result.merged:
        result.stopped = "all_pruned"
    return result
