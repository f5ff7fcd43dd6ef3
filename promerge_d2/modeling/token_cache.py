"""Tokens of a frozen ViT on disk, by the content of the image that they are of.

Shape letters: C channels, H and W rows and columns of the patch grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode

from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import atomic_path

# fp16 halves the disk; its 11 significant bits change a token by 0.02 % (bf16: 0.17 %)
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}


class TokenCache:
    """One file an image, whole or not there; any number of processes can share the folder.

    Args:
        folder: where the files are; made when the first is written.
        weights_sha256: of the network's weights, a part of the key.
        precision: of ``PRECISIONS``, what is kept.
        layers: a part of the key, see ``FrozenViT``.
        relations: a part of the key, see ``FrozenViT``.

    Raises:
        UserError: another precision.
    """

    def __init__(
        self,
        folder: str,
        weights_sha256: str | None,
        precision: str = "fp32",
        layers: Sequence[int] = (),
        relations: bool = False,
    ) -> None:
        if precision not in PRECISIONS:
            raise UserError(
                f"MODEL.FROZEN_VIT.CACHE_PRECISION is {' or '.join(PRECISIONS)}, not {precision}"
            )
        self.folder = Path(folder)
        self.weights_sha256 = weights_sha256
        self.precision = precision
        self.layers = sorted(layers)
        self.relations = relations

    @classmethod
    def from_config(cls, cfg: CfgNode, weights_sha256: str | None) -> TokenCache:
        """Return the cache of ``MODEL.FROZEN_VIT``."""
        vit = cfg.MODEL.FROZEN_VIT
        return cls(vit.CACHE_DIR, weights_sha256, vit.CACHE_PRECISION, vit.LAYERS, vit.RELATIONS)

    def file(self, image: torch.Tensor) -> Path:
        """Return where the tokens of a normalised, padded image (3, h, w) are, or will be."""
        about: tuple = (self.weights_sha256, tuple(image.shape), self.precision)
        if self.layers:
            about = (*about, self.layers)
        if self.relations:
            about = (*about, "relations")
        digest = hashlib.sha256(str(about).encode())
        digest.update(image.cpu().contiguous().numpy().data)
        key = digest.hexdigest()
        return self.folder / key[:2] / f"{key}.npy"

    def read(self, file: Path) -> torch.Tensor | None:
        """Read tokens (C, H, W) as they are kept, or return None where there are none.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            return torch.from_numpy(np.load(file))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"cannot read the tokens {file}: {error}; delete the file to have it made again"
            ) from error

    def write(self, file: Path, tokens: torch.Tensor) -> torch.Tensor:
        """Keep tokens (C, H, W) float32, and return them as they are kept."""
        kept = tokens.to(PRECISIONS[self.precision])
        with atomic_path(file) as part, open(part, "wb") as stream:
            np.save(stream, kept.cpu().numpy())
        return kept
