"""Scores: how likely a mask is an object, from the features and the colours alone (our own).

Nine cues, each in [0, 1], are multiplied, and the product is brought to the scale of a
probability. No label went into the cues; their powers and the scale were fixed on COCO train2017
(docs/best.md), apart from any image that a reported figure is of.

Shape letters: D components, H and W rows and columns of the patch grid, N = H * W patches, M masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from promerge_d2.labeler.refine import NUMBA
from promerge_d2.labeler.regions import device as on_device
from promerge_d2.labeler.regions.candidates import Candidates
from promerge_d2.labeler.regions.measures import measure, most_alike

CUES = (
    "contrast",
    "agreement",
    "background",
    "border",
    "size",
    "compactness",
    "prominence",
    "edge",
    "support",
)

_BORDER = 2  # patches
_AGREEING_MAPS = 2  # the first of the candidates' maps, asked for the agreement
_EVEN_ODDS = 0.7  # a product, so divided, at which every second mask was an object
_ODDS_POWER = 0.7  # of it, to make odds
_BEST = 20  # masks of a photograph by which it is compared with others
_LEVEL = 0.6  # the power of their mean that its products are divided by


@dataclass(frozen=True)
class Frame:
    """The photograph that a patch grid lies on.

    Attributes:
        resemblance: (H, W) in [0, 1], see ``resemblance_to_border``.
        prominence: (H, W) in [0, 1], the norm of a patch's raw feature, in shares of the largest (1
            where all are 0).
        colours: (H, W, 3) float32, CIE Lab.
        share: of the photograph that the grid covers.
    """

    resemblance: np.ndarray
    prominence: np.ndarray
    colours: np.ndarray
    share: float = 1.0

    @classmethod
    def of(
        cls,
        unit: np.ndarray,
        norms: np.ndarray,
        image: np.ndarray,
        background_quantile: float = 0.7,
    ) -> Frame:
        """Describe a grid that covers the whole photograph.

        Args:
            unit: (D, H, W) unit features.
            norms: (H, W) of the raw features.
            image: (h, w, 3) uint8 RGB, the photograph at any size.
            background_quantile: see ``resemblance_to_border``.

        Returns:
            The frame.
        """
        height, width = norms.shape
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        colours = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        resemblance = resemblance_to_border(unit, background_quantile)
        prominence = norms / norms.max() if norms.max() > 0 else np.ones_like(norms)
        return cls(resemblance.reshape(height, width), prominence, colours)


def score_candidates(
    candidates: Candidates, frame: Frame, most: int, device: str = NUMBA
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Score the candidates that have a hope of a place among the best.

    The score is made of nine cues:

    * ``contrast``: mean feature inside, times itself less the mean feature of the ring around: it
      is high when the mask is of one kind and its surroundings are of another;
    * ``agreement``: the mask's IoU, in its surroundings, with the patches whose product with its
      mean feature is above the middle between inside and ring: what a prompt with that feature
      would find there; mean of two maps, squared;
    * ``background``: one less the mean share of border patches that the mask's patches resemble,
      squared;
    * ``border``: one less the share of the image's border that the mask covers, to the power of
      4;
    * ``size``: with the area's share s, s to the power of 0.8, and less for very small and very
      large masks: exp(-0.06 (ln s + 3)^2);
    * ``compactness``: the outline of a square of this area, in shares of the mask's own, to the
      power of 2.5;
    * ``prominence``: the mean norm of the mask's raw features, in shares of the largest norm of
      the image, squared: objects have longer features than stuff;
    * ``edge``: with e the mean colour difference of neighbours across the mask's outline and m
      that of all neighbours in the image, e / (e + m), or a half where the image is flat;
      to the power of 1.5;
    * ``support``: the IoU with the most alike region of each tree, their mean squared: what only
      one view of the features shows is seldom an object. It costs most, and is asked only of the
      ``most`` masks for which the product of the others is highest.

    Cosines are compared with quantiles and means of the image's own, never with fixed numbers, so
    that the scores carry over between backbones.

    Args:
        candidates: none of the masks empty.
        frame: the photograph around.
        most: candidates to score at most.
        device: of torch, where masks are measured; or ``numba``.

    Returns:
        Indices (K,) int64 of the scored ones, in their order. By the name of each cue (K,) float64,
        and under ``product`` their product.
    """
    cues = _local_cues(candidates, frame, device)
    product = np.prod(list(cues.values()), axis=0)
    kept = np.sort(np.argsort(-product, kind="stable")[:most])
    cues = {name: cue[kept] for name, cue in cues.items()}
    cues["support"] = _support(candidates, kept, device)
    return kept, {**cues, "product": np.prod(list(cues.values()), axis=0)}


def to_probability(products: np.ndarray) -> np.ndarray:
    """Bring products of cues to the scale of a probability.

    How much stands out differs from photograph to photograph. A product is divided by the
    geometric mean of the photograph's twenty best, to the power of 0.6; the odds are (q / 0.7)^0.7
    of the quotient q. The two numbers are a logistic fit on 54 photographs of COCO train2017, so
    that half of the refined masks with a score of 0.5 have an IoU of 0.5 or more with an object
    (seen: of scores from 0.3 to 0.6 44 %, from 0.1 to 0.3 14 %, above 0.6 67 %).

    Args:
        products: (K,) of an image's masks, above 0, descending.

    Returns:
        (K,) in (0, 1), in the same order.
    """
    relative = products / np.exp(_LEVEL * np.log(products[:_BEST]).mean())
    odds = (relative / _EVEN_ODDS) ** _ODDS_POWER
    return odds / (1 + odds)


def _local_cues(candidates: Candidates, frame: Frame, device: str) -> dict[str, np.ndarray]:
    """The cues but for ``support``."""
    count, height, width = candidates.masks.shape
    steps = colour_steps(frame.colours)
    pictures = np.stack([frame.resemblance, frame.prominence])
    args = (candidates.masks, candidates.maps[:_AGREEING_MAPS], steps, pictures)
    of = measure(*args) if device == NUMBA else on_device.measure(*args, device)
    edge = of.steps / np.maximum(of.outline - of.border, 1)
    usual = steps.sum() / max(1, 2 * height * width - height - width)
    resemblance, prominence = of.sums
    covered = of.border * np.sqrt(frame.share) / (2 * (height + width))
    share = of.area * frame.share / (height * width)
    return {
        "contrast": np.clip(of.coherence[0] - of.across[0], 0, 1),
        "agreement": np.mean(of.agreement, axis=0) ** 2,
        "background": (1 - resemblance / of.area) ** 2,
        "border": np.clip(1 - covered, 0, 1) ** 4,
        "size": share**0.8 * np.exp(-0.06 * (np.log(share) + 3) ** 2),
        "compactness": np.minimum(1, 4 * np.sqrt(of.area) / of.outline) ** 2.5,
        "prominence": (prominence / of.area) ** 2,
        "edge": (edge / (edge + usual) if usual > 0 else np.full(count, 0.5)) ** 1.5,
    }


def _support(candidates: Candidates, chosen: np.ndarray, device: str) -> np.ndarray:
    """(K,): the square of the mean, over the trees, of the IoU with a tree's most alike region."""
    args = (candidates.masks[chosen], candidates.trees)
    found = most_alike(*args) if device == NUMBA else on_device.most_alike(*args, device)
    return found.mean(axis=0, dtype=np.float64) ** 2


def colour_steps(colours: np.ndarray) -> np.ndarray:
    """Return how much neighbours differ in colour.

    Args:
        colours: (H, W, 3).

    Returns:
        (H, W, 2) float64: Euclidean distance to the right and to the lower neighbour, 0 where
        there is none.
    """
    steps = np.zeros((*colours.shape[:2], 2))
    steps[:, :-1, 0] = np.linalg.norm(np.diff(colours, axis=1), axis=2)
    steps[:-1, :, 1] = np.linalg.norm(np.diff(colours, axis=0), axis=2)
    return steps


def resemblance_to_border(unit: np.ndarray, quantile: float) -> np.ndarray:
    """Ask how much each patch resembles the image's border.

    Args:
        unit: (D, H, W) float32 unit features.
        quantile: a patch resembles a border patch when their product is above this quantile of
            all such products in the image.

    Returns:
        (H * W,) float64 in [0, 1]: the share of border patches that it resembles.
    """
    _, height, width = unit.shape
    flat = unit.reshape(len(unit), -1)
    border = np.ones((height, width), bool)
    border[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    products = flat[:, border.ravel()].T @ flat
    place = int(quantile * (products.size - 1))
    limit = np.partition(products.ravel(), place)[place]
    return (products > limit).mean(axis=0)
