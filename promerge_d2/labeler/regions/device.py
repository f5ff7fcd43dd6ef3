"""Measures and suppression of masks in torch, for any device.

The twins of ``measures`` and of ``suppress_softly``. Counts are exact and sums of the pictures
double, as there; products of features are sums of float32 in another order.

Shape letters: as of ``measures``; G masks that go together.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from promerge_d2.labeler.regions.measures import MARGIN, RING, SURROUNDINGS, Measures
from promerge_d2.labeler.regions.merge_tree import leaf_ranges

_TOGETHER = 1024  # masks; more at once would only take more memory


@torch.no_grad()
def measure(
    masks: np.ndarray,
    maps: list[np.ndarray],
    steps: np.ndarray,
    pictures: np.ndarray,
    device: str,
) -> Measures:
    """Measure masks, see ``measures.measure``.

    Args:
        masks: (M, H, W) bool, none empty.
        maps: F of (D, H, W) float32 unit features.
        steps: (H, W, 2) float64, of ``colour_steps``.
        pictures: (Q, H, W) float64.
        device: of torch, where it is computed.

    Returns:
        The measures, float64.
    """
    count, features = len(masks), [torch.from_numpy(m).to(device).flatten(1) for m in maps]
    rest = [torch.from_numpy(array).to(device) for array in (steps, pictures)]
    parts = [
        _measure(torch.from_numpy(masks[first : first + _TOGETHER]).to(device), features, *rest)
        for first in range(0, count, _TOGETHER)
    ]
    f, q = len(maps), len(pictures)
    table = torch.cat(parts, dim=1).cpu().numpy() if parts else np.zeros((1 + 3 * f + 3 + q, 0))
    compared, (outline, border, across_outline) = table[1 : 1 + 3 * f], table[1 + 3 * f : -q]
    coherence, across, agreement = compared.reshape(3, f, count)
    sums = table[-q:]
    return Measures(table[0], coherence, across, agreement, outline, border, across_outline, sums)


def _measure(
    masks: torch.Tensor, maps: list[torch.Tensor], steps: torch.Tensor, pictures: torch.Tensor
) -> torch.Tensor:
    """(1 + 3 F + 3 + Q, G) float64: the attributes of ``Measures``, in their order."""
    inside = masks.flatten(1).float()
    area = inside.sum(dim=1)
    surroundings = _reach(masks, SURROUNDINGS)
    ring = (_reach(masks, RING) & ~masks).flatten(1).float()
    around = ring.sum(dim=1).clamp(min=1)
    compared = []
    for features in maps:
        mean = inside @ features.T / area[:, None]
        own = mean.square().sum(dim=1)
        other = (mean * (ring @ features.T)).sum(dim=1) / around
        middle = (own + other) / 2
        is_alike = (mean @ features > middle[:, None]) & surroundings.flatten(1)
        common = (is_alike & masks.flatten(1)).sum(dim=1)
        agreement = common.double() / (is_alike.sum(dim=1) + area.double() - common)
        compared.append(torch.stack([own.double(), other.double(), agreement]))
    # along each row, then down each column
    changes = [masks[:, :, 1:] ^ masks[:, :, :-1], masks[:, 1:] ^ masks[:, :-1]]
    lengths = [steps[:, :-1, 0], steps[:-1, :, 1]]
    across = [c.flatten(1).double() @ s.flatten() for c, s in zip(changes, lengths, strict=True)]
    border = masks[:, [0, -1]].sum(dim=(1, 2)) + masks[:, :, [0, -1]].sum(dim=(1, 2))
    outline = changes[0].sum(dim=(1, 2)) + changes[1].sum(dim=(1, 2)) + border
    sums = pictures.flatten(1) @ inside.double().T
    rest = torch.stack([outline.double(), border.double(), across[0] + across[1]])
    return torch.cat([area[None].double(), *torch.stack(compared, dim=1), rest, sums])


def _reach(masks: torch.Tensor, distance: int) -> torch.Tensor:
    """(G, H, W) bool: patches whose squared distance to a mask is no more than ``distance``."""
    y, x = torch.meshgrid(*[torch.arange(-MARGIN, MARGIN + 1)] * 2, indexing="ij")
    disc = (y.square() + x.square() <= distance).float().to(masks.device)
    return F.conv2d(masks[:, None].float(), disc[None, None], padding=MARGIN)[:, 0] > 0.5


@torch.no_grad()
def most_alike(masks: np.ndarray, trees: list[np.ndarray], device: str) -> np.ndarray:
    """Find each mask's IoU with the most alike region of each tree, see ``measures.most_alike``.

    Args:
        masks: (M, H, W) bool, none empty.
        trees: T of the children (N - 1, 2) of ``merge_tree``.
        device: of torch, where it is computed.

    Returns:
        (T, M) float32.
    """
    inside = torch.from_numpy(masks).to(device).flatten(1)
    area, found = inside.sum(dim=1, keepdim=True), []
    for tree in trees:
        order, ranges = (torch.from_numpy(array).to(device) for array in leaf_ranges(tree))
        found.append(_most_alike(inside, area, order, ranges[len(order) :]))
    return torch.stack(found).cpu().numpy()


def _most_alike(
    inside: torch.Tensor, area: torch.Tensor, order: torch.Tensor, ranges: torch.Tensor
) -> torch.Tensor:
    """(M,) float32: the highest IoU of masks (M, N) with the regions of a tree."""
    first, last = ranges.T
    before = F.pad(inside[:, order].cumsum(dim=1, dtype=torch.int32), (1, 0))
    common = before[:, last] - before[:, first]
    return (common.float() / (last - first + area - common).float()).amax(dim=1)


@torch.no_grad()
def suppress_softly(
    masks: np.ndarray, scores: np.ndarray, max_iou: float, most: int, decay: float, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Choose masks one by one, see ``suppression.suppress_softly``.

    Args:
        masks: (M, h, w) bool, none empty.
        scores: (M,) float64, none below 0; of equal ones the first goes first.
        max_iou: a mask is dropped when its IoU with a kept one exceeds this.
        most: masks to keep at most.
        decay: of the scores, at least 0.
        device: of torch, where it is computed.

    Returns:
        Indices of the kept masks, (K,) int64, and their scores (K,) after the fall, descending.
    """
    inside, own = (torch.from_numpy(array).to(device) for array in (masks, scores))
    kept, final = _choose(inside.flatten(1).float(), own, max_iou, min(most, len(masks)), decay)
    indices, values = kept.cpu().numpy(), final.cpu().numpy()
    return indices[values >= 0], values[values >= 0]


def _choose(
    inside: torch.Tensor, own: torch.Tensor, max_iou: float, count: int, decay: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (count,) and scores of ``suppress_softly``; -1 is the score where none is left."""
    common, area = inside @ inside.T, inside.sum(dim=1).double()
    highest, is_left = torch.zeros_like(own), torch.ones_like(own, dtype=torch.bool)
    kept = torch.zeros(count, dtype=torch.int64, device=own.device)
    final = torch.zeros(count, dtype=torch.float64, device=own.device)
    for place in range(count):  # nothing here waits for the device
        fallen = own * torch.exp(-decay * highest.square())
        final[place], kept[place] = torch.where(is_left, fallen, -1.0).max(dim=0)
        chosen = kept[place : place + 1]
        shared = common.index_select(0, chosen)[0].double()
        highest = torch.maximum(highest, shared / (area + area.index_select(0, chosen) - shared))
        is_left &= highest <= max_iou
        is_left.index_fill_(0, chosen, False)
    return kept, final
