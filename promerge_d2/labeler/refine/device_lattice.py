"""The permutohedral lattice in torch, on any device: sort for the points, gather for the blur.

The twin of ``lattice``: the same points, weights and neighbours, in the same order. Sums onto a
lattice point are segments of one sorted list, added up in the order of the pixels, not by atomics:
on a given device the same input gives the same bytes.

Shape letters: P pixels, d feature dimensions, V lattice points in use, S signals.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from promerge_d2.labeler.refine.lattice import basis_scale, lay_out


class DeviceLattice:
    """The lattice of a set of features, see ``PermutohedralLattice``.

    For example, a bilateral filter of a picture (3, h, w) with deviations of 8 pixels and 0.1:

        y, x = torch.meshgrid(torch.arange(h) / 8, torch.arange(w) / 8, indexing="ij")
        lattice = DeviceLattice(torch.cat([torch.stack([x, y]), picture / 0.1]).flatten(1))
        smooth = lattice.filter(picture.flatten(1).T) / lattice.filter(torch.ones(h * w, 1))

    Args:
        features: (d, P) float32 on any device, in standard deviations of the Gaussian.
        normalise: multiply the weights by ``1 / sqrt(filter(1))`` of the pixel, the symmetric
            normalisation of the dense CRF.

    Attributes:
        points: (P, d + 1) int64, the corners of each pixel's simplex.
        weights: (P, d + 1) float32, barycentric coordinates.
        neighbours: (d + 1, 2, V) int64, by direction; V stands for a point that does not exist.

    Raises:
        ValueError: the features spread too far to be told apart.
    """

    def __init__(self, features: torch.Tensor, normalise: bool = True) -> None:
        d, count = features.shape
        scale = basis_scale(d)
        reach = features.abs().amax(dim=1).cpu().numpy()
        places = torch.from_numpy(lay_out(reach * scale)).to(features.device)
        residual, nearest, rank = _find_simplices(features, scale.astype(np.float32))
        # the k-th corner has the d + 1 - k lowest ranks k above and the others d + 1 - k below
        by_rank = torch.zeros_like(residual).scatter_(0, rank, residual)
        leap = F.pad((d + 1) * places, (0, 1))[:, None].expand(-1, count)
        leap_by_rank = torch.zeros_like(leap).scatter_(0, rank, leap)
        falls = by_rank[:-1] - by_rank[1:]  # of neighbouring ranks
        weights = torch.cat([1 + by_rank[-1:] - by_rank[:1], falls.flip(0)])
        steps = places.sum() - leap_by_rank[1:].flip(0)
        first = (nearest[:d] * places[:, None]).sum(dim=0, keepdim=True)
        keys = torch.cat([first, steps]).cumsum(dim=0)
        self.weights = weights.T.contiguous()
        known, points = torch.unique(keys.T, return_inverse=True)  # ascending
        self.points = points
        self.neighbours = _link(known, places)
        self._order = torch.argsort(points.flatten(), stable=True)
        self._lengths = torch.bincount(points.flatten(), minlength=len(known))
        self._gain = 1 / (1 + 2.0**-d)
        if normalise:
            norm = self.filter(torch.ones(count, 1, device=features.device))
            self.weights = self.weights * (1 / (norm + 1e-20).sqrt())

    def filter(self, signals: torch.Tensor) -> torch.Tensor:
        """Filter signals by the Gaussian: splat, blur, slice.

        Args:
            signals: (P, S) float32, on the features' device.

        Returns:
            (P, S) float32.
        """
        corners = self.points.shape[1]
        sent = signals[self._order // corners] * self.weights.flatten()[self._order, None]
        values = torch.segment_reduce(sent, "sum", lengths=self._lengths, axis=0, unsafe=True)
        for before, after in self.neighbours:
            padded = F.pad(values, (0, 0, 0, 1))
            values = values + 0.5 * (padded[before] + padded[after])
        taken = torch.zeros_like(signals)
        for k in range(corners):  # one by one: all at once would be several times the memory
            taken += self.weights[:, k, None] * values[self.points[:, k]]
        return taken * self._gain


def _find_simplices(
    features: torch.Tensor, scale: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the nearest remainder-0 point, the distance from it and that distance's rank.

    Returns:
        Residuals (d + 1, P) float32 in shares of d + 1, points (d + 1, P) and ranks (d + 1, P)
        int64; the arithmetic is that of ``lattice`` step by step, so that they are equal.
    """
    d, count = features.shape
    total = torch.zeros(count, device=features.device)
    position = torch.empty(d + 1, count, device=features.device)
    for j in range(d, 0, -1):  # onto the hyperplane of coordinate sum zero
        value = features[j - 1] * float(scale[j - 1])
        position[j] = total - j * value
        total = total + value
    position[0] = total
    inverse = float(np.float32(1 / (d + 1)))
    steps = torch.floor(position * inverse + 0.5)
    residual = position - steps * (d + 1)
    nearest = (steps * (d + 1)).long()
    rank = steps.long().sum(dim=0).repeat(d + 1, 1)
    for i in range(d):
        for j in range(i + 1, d + 1):
            is_smaller = (residual[i] < residual[j]).long()
            rank[i] += is_smaller
            rank[j] += 1 - is_smaller
    wrap = (d + 1) * ((rank < 0).long() - (rank > d).long())
    return (residual - wrap) * inverse, nearest + wrap, rank + wrap


def _link(keys: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Find both neighbours of every lattice point in every direction: (d + 1, 2, V) int64."""
    count, d = len(keys), len(places)
    neighbours = []
    for j in range(d + 1):
        # a step along direction j: -1 in every coordinate but d in the j-th
        step = -places.sum() + ((d + 1) * places[j] if j < d else 0)
        for wanted in (keys + step, keys - step):
            place = torch.searchsorted(keys, wanted).clamp(max=count - 1)
            neighbours.append(torch.where(keys[place] == wanted, place, count))
    return torch.stack(neighbours).reshape(d + 1, 2, count)
