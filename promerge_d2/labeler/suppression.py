"""Non-maximum suppression of masks.

A mask is packed into integers, so that an overlap is a count of bits.

Shape letters: M masks, h and w rows and columns of their frame, K kept masks, B integers a mask.
"""

from __future__ import annotations

import heapq

import numpy as np


def suppress(masks: np.ndarray, scores: np.ndarray, max_iou: float, most: int) -> np.ndarray:
    """Drop masks that overlap better ones (non-maximum suppression).

    Args:
        masks: (M, h, w) bool, none empty.
        scores: (M,); equal ones keep their order.
        max_iou: a mask is dropped when its IoU with a kept one of a higher score exceeds this.
        most: masks to keep at most.

    Returns:
        Indices of the kept masks, (K,) int64, by descending score.
    """
    packed = pack_words(masks)
    areas = count_bits(packed)
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    inside = np.zeros((min(most, len(masks)), packed.shape[1]), np.uint64)
    for index in order:
        if len(kept) == most:
            break
        common = count_bits(inside[: len(kept)] & packed[index])
        if not (common > max_iou * (areas[kept] + areas[index] - common)).any():
            inside[len(kept)] = packed[index]
            kept.append(index)
    return np.array(kept, np.int64)


def suppress_softly(
    masks: np.ndarray, scores: np.ndarray, max_iou: float, most: int, decay: float
) -> tuple[np.ndarray, np.ndarray]:
    """Choose masks one by one, the scores of the others falling with their overlap (Soft-NMS).

    Of all masks that are left the one of the highest score is kept, then each other's score is
    its own times exp(-decay * IoU^2), with the highest IoU that it has with a kept mask (Bodla et
    al., 2017, multiply the factors of all kept masks).

    Args:
        masks: (M, h, w) bool, none empty.
        scores: (M,), none below 0; of equal ones the first goes first.
        max_iou: a mask is dropped when its IoU with a kept one exceeds this.
        most: masks to keep at most.
        decay: of the scores, at least 0; 0 leaves them as they are.

    Returns:
        Indices of the kept masks, (K,) int64, and their scores (K,) after the fall, descending.
    """
    packed = pack_words(masks)
    areas = count_bits(packed)
    kept: list[int] = []
    final: list[float] = []
    inside = np.zeros((min(most, len(masks)), packed.shape[1]), np.uint64)
    highest, seen = np.zeros(len(masks)), np.zeros(len(masks), np.int64)
    waiting = [(-score, index) for index, score in enumerate(scores)]
    heapq.heapify(waiting)
    while waiting and len(kept) < most:  # a score can only fall: those below need no look
        score, index = heapq.heappop(waiting)
        if seen[index] < len(kept):
            common = count_bits(inside[seen[index] : len(kept)] & packed[index])
            union = areas[kept[seen[index] :]] + areas[index] - common
            highest[index] = max(highest[index], (common / union).max())
            seen[index] = len(kept)
            if highest[index] <= max_iou:
                fallen = -scores[index] * np.exp(-decay * highest[index] ** 2)
                heapq.heappush(waiting, (fallen, index))
        else:
            inside[len(kept)] = packed[index]
            kept.append(index)
            final.append(-score)
    return np.array(kept, np.int64), np.array(final, np.float64)


def pack_words(masks: np.ndarray) -> np.ndarray:
    """Pack masks into integers of 64 bits.

    Args:
        masks: (M, h, w) bool.

    Returns:
        (M, B) uint64; the bits beyond h * w are 0.
    """
    packed = np.packbits(masks.reshape(len(masks), masks.shape[1] * masks.shape[2]), axis=1)
    return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)


def count_bits(packed: np.ndarray) -> np.ndarray:
    """Count the bits that are set in each row of (M, B) uint64: (M,) int64."""
    return np.bitwise_count(packed).sum(axis=1, dtype=np.int64)
