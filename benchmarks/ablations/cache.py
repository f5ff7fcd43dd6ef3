"""What is computed once and kept on disk: images after the network, and refined masks.

Folder and name of a file say what it follows from (weights and facet; the pixels that the network
and the refiner see), so a changed image, grid or network finds none and is computed anew; so is a
file that is damaged. Files are whole or not there. After a change of the code of ``features`` or
``refinement`` delete the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import promerge_d2
from promerge_d2.features import FeatureExtractor
from promerge_d2.labeler import ImageFeatures, PreprocessedImage
from promerge_d2.labeler.refine import REFINERS, Refiner
from promerge_d2.utils.files import atomic_path

logger = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]

_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Cache:
    """The files of one backbone and facet.

    Attributes:
        folder: holds them.
    """

    folder: Path

    @classmethod
    def of(cls, extractor: FeatureExtractor, root: Path) -> Cache:
        """Name the part of ``root`` that belongs to a network."""
        center, precision = extractor.center, extractor.precision
        identity = repr((promerge_d2.__version__, extractor.weights_sha256, center, precision))
        digest = hashlib.sha256(identity.encode()).hexdigest()
        return cls(root / f"{extractor.backbone.name}-{extractor.facet}-{digest[:12]}")

    def features_file(self, key: str) -> Path:
        """Name the file of the image with this key (``key_of``), as it is after the network."""
        return self.folder / f"{key}.npz"

    def load(self, key: str) -> ImageFeatures | None:
        """Read an image after the network; None where it is not there or damaged."""
        arrays = _read(self.features_file(key))
        if not arrays.keys() >= {"size", "working", "features"}:
            return None
        height, width = arrays["size"].tolist()
        features = torch.from_numpy(arrays["features"])
        return ImageFeatures(height, width, arrays["working"], {}, features)

    def store(self, key: str, prepared: ImageFeatures) -> None:
        """Keep an image after the network; its features stay float32, so that no mask changes."""
        with atomic_path(self.features_file(key)) as part, open(part, "wb") as file:
            np.savez(
                file,
                size=np.array([prepared.height, prepared.width]),
                working=prepared.working_image,
                features=prepared.features.numpy(),
            )

    @contextlib.contextmanager
    def refined_once(self, key: str, name: str) -> Iterator[Refiner | None]:
        """Give a refiner that computes a mask of this image only if it never has before.

        Masks not seen before are refined together. ``mean_field`` may then differ from a run of
        its own by some pixels in a million, since what is sure in all masks of a group rests.

        Args:
            key: of the image, see ``key_of``.
            name: of a refiner of ``REFINERS``; for ``none`` there is no refiner.
        """
        refiner = REFINERS[name]
        if refiner is None:
            yield None
            return
        file = self.folder / f"{key}.masks.npz"
        known = _read(file)
        before = len(known)
        yield _remembering(name, refiner, known)
        if len(known) > before:
            with atomic_path(file) as part, open(part, "wb") as out:
                np.savez_compressed(out, allow_pickle=False, **known)


def key_of(decoded: PreprocessedImage) -> str:
    """Compute the SHA-256 of all that the network, the refiner and the records see of an image."""
    sizes = (decoded.height, decoded.width, decoded.views[0].shape, decoded.working_image.shape)
    digest = hashlib.sha256(repr(sizes).encode())
    for pixels in (*decoded.views, decoded.working_image):
        digest.update(pixels.tobytes())
    return digest.hexdigest()


def _remembering(name: str, refine: Refiner, known: Arrays) -> Refiner:
    """Make the refiner ``name`` look masks up in ``known`` and add to it."""

    def look_up(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
        on_image = hashlib.sha256(f"{name} {image.shape} ".encode() + image.tobytes())
        keys = []
        for mask in masks:
            digest = on_image.copy()
            digest.update(np.packbits(mask).tobytes())
            keys.append(digest.hexdigest())
        new = {key: index for index, key in enumerate(keys) if key not in known}
        if new:
            refined = refine(image, masks[list(new.values())])
            known.update(zip(new, (np.packbits(mask) for mask in refined), strict=True))
        flat = np.unpackbits(np.stack([known[key] for key in keys]), axis=1, count=masks[0].size)
        return flat.reshape(masks.shape).astype(bool)

    return look_up


def _read(file: Path) -> Arrays:
    """Read all arrays of an ``.npz`` file; none where it is not there or damaged."""
    try:
        with np.load(file) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        return {}
    except _DAMAGED as error:
        logger.warning("%s is damaged (%s): computed again", file, error)
        return {}
