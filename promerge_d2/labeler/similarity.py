"""What it means that two patches are alike: the product of their normalised features.

Shape letters: C channels, H and W rows and columns of the patch grid.
"""

from __future__ import annotations

import torch


def l2_normalize(features: torch.Tensor) -> torch.Tensor:
    """Divide each feature by its norm plus 1e-5, as the release does.

    Args:
        features: (C, H, W) float32.

    Returns:
        (C, H, W) float32 of norm just below 1; zero features stay zero.
    """
    return features / (features.square().sum(dim=0, keepdim=True).sqrt() + 1e-5)
