"""The interface between whatever finds masks and the engine that runs it over many images.

An image is preprocessed, goes through a network, is postprocessed. Preprocessing and
postprocessing need no network, so that other processes can do them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from promerge_d2.utils.image import ImageLike


@dataclass
class LabelResult:
    """The masks of one image.

    Attributes:
        height, width: of the upright image, in pixels.
        records: see ``Labeler.__call__``.
        reason: a key of ``MaskGenerator.reasons`` when there are no records, else None.
        seconds: wall-clock time by stage: ``decoding``, ``features`` (of a detector
            ``detection``), ``masks``, ``refinement`` (of labelers), ``encoding``.
    """

    height: int
    width: int
    records: list[dict] = field(default_factory=list)
    reason: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class Processor(Protocol):
    """The parts of a mask generator's work that need no network: any process can do them.

    Attributes:
        apply_exif: whether photographs are turned upright.
        needs_gpu: whether ``postprocess`` opens a GPU.
    """

    @property
    def apply_exif(self) -> bool: ...  # noqa: D102 - above

    @property
    def needs_gpu(self) -> bool: ...  # noqa: D102 - above

    def preprocess(self, image: ImageLike) -> Any:
        """Make an image ready for ``MaskGenerator.start_forward``.

        Args:
            image: a file's path, a PIL image, or an RGB array (H, W, 3) uint8.

        Returns:
            The image. Those whose attribute ``shape`` is the same, or that have none, go through
            the network together.

        Raises:
            ImageError: the image cannot be read.
        """
        ...

    def postprocess(self, output: Any) -> LabelResult:
        """Make masks of an image.

        Args:
            output: what ``MaskGenerator.start_forward`` gave for it.
        """
        ...


class MaskGenerator(Protocol):
    """What the label engine runs: a ``Labeler``, or a trained detector.

    Attributes:
        name: in label files.
        title: in sentences.
        reasons: why an image has no mask, by the key in label files.
        processor: see there.
        device: where the network is.
        output_bytes: size of what ``start_forward`` gives for an image.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - above

    @property
    def title(self) -> str: ...  # noqa: D102

    @property
    def reasons(self) -> dict[str, str]: ...  # noqa: D102

    @property
    def processor(self) -> Processor: ...  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    @property
    def output_bytes(self) -> int: ...  # noqa: D102

    def weights(self) -> Iterator[torch.Tensor]:
        """Iterate over all that a process with a network of its own shares with this one."""
        ...

    def to(self, device: str | torch.device) -> None:
        """Move the network."""
        ...

    def start_forward(self, images: Sequence[Any]) -> Callable[[], list[Any]]:
        """Start the network on images.

        Args:
            images: of ``Processor.preprocess``.

        Returns:
            A function that waits and gives, for each image, what ``Processor.postprocess`` takes.
        """
        ...

    def describe(self, preset: str) -> dict:
        """Describe everything that the masks follow from, besides the images.

        Args:
            preset: name of the settings, for the record.

        Returns:
            ``info`` of a label file.
        """
        ...
