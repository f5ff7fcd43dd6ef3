"""A trained detector: its weights held to its config, its detections as masks of the label engine.

Shape letters: N detections, H and W rows and columns of the photograph, h and w of the network's
image, S side of a predicted mask. Boxes are XYXY in pixels of the network's image.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances

from promerge_d2.coco.records import mask_record
from promerge_d2.labeler import LabelResult
from promerge_d2.modeling.frozen_vit import FrozenViT
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.image import ImageLike, load_image
from promerge_d2.version import __version__

NAMED = 5  # of the keys that do not fit, in messages
NOTHING = "no_confident_detection"


def load_detector(cfg: CfgNode) -> torch.nn.Module:
    """Build a detector and load ``MODEL.WEIGHTS``, every key of which must find its place.

    Args:
        cfg: the configuration, checked (``check_device``, ``check_weights``).

    Returns:
        The model in evaluation mode, on ``MODEL.DEVICE``.

    Raises:
        UserError: the file is no checkpoint, or it is one of another detector; keys that are
            missing, unknown or of another shape are named.
    """
    model = build_model(cfg)
    _StrictCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model.eval()


class _StrictCheckpointer(DetectionCheckpointer):
    """detectron2's, which only warns of keys that do not fit."""

    def _load_file(self, filename: str) -> dict:
        try:
            return super()._load_file(filename)
        except Exception as error:  # a file of another kind is unpickled to any of them
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(
                f"MODEL.WEIGHTS {filename} cannot be read as a checkpoint: {reason}"
            ) from error

    def _load_model(self, checkpoint: dict) -> None:
        found = super()._load_model(checkpoint)
        shapes = [
            f"{k} is {tuple(has)}, not {tuple(wants)}" for k, has, wants in found.incorrect_shapes
        ]
        wrong = {k for k, *_ in found.incorrect_shapes}
        problems = [
            [f"{key} is missing" for key in found.missing_keys if key not in wrong],
            [f"{key} is unknown" for key in found.unexpected_keys],
            shapes,
        ]
        if any(problems):
            said = [
                "; ".join(kind[:NAMED])
                + (f" and {len(kind) - NAMED} more" if len(kind) > NAMED else "")
                for kind in problems
                if kind
            ]
            raise UserError(
                "MODEL.WEIGHTS does not fit the config; take the config that it was trained "
                f"with (config.yaml beside it): {'; '.join(said)}"
            )


@dataclass
class PreprocessedImage:
    """An image as the detector takes it.

    Attributes:
        height, width: of the upright photograph, in pixels.
        image: (3, h, w) float32, 0 to 255, channels as ``INPUT.FORMAT``.
        seconds: wall-clock time by stage so far.
    """

    height: int
    width: int
    image: torch.Tensor
    seconds: dict[str, float]


@dataclass
class Detected:
    """An image that is done with the network.

    Attributes:
        height, width, seconds: as of ``PreprocessedImage``.
        instances: on the CPU, in the frame of the network's image: ``pred_boxes``, ``scores`` (N,)
            and ``pred_masks`` (N, 1, S, S).
    """

    height: int
    width: int
    seconds: dict[str, float]
    instances: Instances


@dataclass(frozen=True)
class DetectorProcessor:
    """See ``promerge_d2.labeler.base.Processor``.

    Attributes:
        min_size, max_size: of the network's image, as ``INPUT.MIN_SIZE_TEST`` and ``_MAX_``.
        channels: ``RGB`` or ``BGR``.
        min_score: the lowest score of a detection that is kept.
    """

    min_size: int
    max_size: int
    channels: str
    min_score: float
    apply_exif = True  # as detectron2

    def preprocess(self, image: ImageLike) -> PreprocessedImage:
        """Read and resize an image as detectron2 does for tests.

        Raises:
            ImageError: the image cannot be read.
        """
        started = time.perf_counter()
        pixels = load_image(image)
        height, width = pixels.shape[:2]
        if self.channels == "BGR":
            pixels = pixels[:, :, ::-1]
        resize = T.ResizeShortestEdge(self.min_size, self.max_size).get_transform(pixels)
        pixels = resize.apply_image(pixels).astype("float32")
        tensor = torch.as_tensor(pixels.transpose(2, 0, 1).copy())
        return PreprocessedImage(height, width, tensor, {"decoding": time.perf_counter() - started})

    def postprocess(self, prepared: Detected) -> LabelResult:
        """Masks at the photograph's size, the highest score first.

        The box of a record is the tight box of its mask, as that of every pseudo-label; detections
        whose mask is empty are left out.
        """
        started = time.perf_counter()
        instances = prepared.instances[prepared.instances.scores >= self.min_score]
        instances = Instances(instances.image_size, **instances.get_fields())
        instances.pred_boxes = instances.pred_boxes.clone()  # scaled in place
        instances = detector_postprocess(instances, prepared.height, prepared.width)
        pasted = time.perf_counter()
        order = torch.argsort(instances.scores, descending=True, stable=True).tolist()
        records = [
            mask_record(instances.pred_masks[n].numpy(), instances.scores[n].item())
            for n in order
            if instances.pred_masks[n].any()
        ]
        seconds = {**prepared.seconds, "masks": pasted - started}
        seconds["encoding"] = time.perf_counter() - pasted
        reason = None if records else NOTHING
        return LabelResult(prepared.height, prepared.width, records, reason, seconds)


class DetectorLabeler:
    """A trained detector where a labeler can be: see ``MaskGenerator``.

    On a CPU images go through the network one by one, so that no bit of the masks depends on
    their neighbours.

    Args:
        cfg: the configuration; ``TEST.DETECTIONS_PER_IMAGE`` bounds what it finds.
        min_score: the lowest score of a detection that is kept.

    Raises:
        UserError: it predicts no masks, or as ``load_detector``.
    """

    name = "detector"
    title = "detector"
    reasons = {NOTHING: "no detection with a mask reached the minimum score"}  # noqa: RUF012

    def __init__(self, cfg: CfgNode, min_score: float = 0.0) -> None:
        if not cfg.MODEL.MASK_ON:
            raise UserError("the detector predicts no masks: set MODEL.MASK_ON True")
        self.model = load_detector(cfg)
        self.detections = cfg.TEST.DETECTIONS_PER_IMAGE
        self._mask_side = 2 * cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
        self.processor = DetectorProcessor(
            cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT, min_score
        )

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.device

    @property
    def output_bytes(self) -> int:
        """Bytes of an image's detections: float32 masks, and little beside them."""
        return 4 * self.detections * self._mask_side**2

    def weights(self) -> Iterator[torch.Tensor]:
        """See ``MaskGenerator``; a frozen ViT's too, which are no parameters of the model."""
        frozen = (m.extractor for m in self.model.modules() if isinstance(m, FrozenViT))
        return itertools.chain.from_iterable(net.parameters() for net in (self.model, *frozen))

    def to(self, device: str | torch.device) -> None:
        """Move the network."""
        self.model.to(device)

    @torch.no_grad()
    def start_forward(self, images: Sequence[PreprocessedImage]) -> Callable[[], list[Detected]]:
        """See ``MaskGenerator``; detections are there when this returns."""
        started = time.perf_counter()
        inputs = [{"image": image.image} for image in images]
        step = 1 if self.device.type == "cpu" else len(inputs)
        found = [
            instances.to("cpu")
            for first in range(0, len(inputs), step)
            for instances in self.model.inference(
                inputs[first : first + step], do_postprocess=False
            )
        ]
        seconds = (time.perf_counter() - started) / len(images)
        detected = [
            Detected(image.height, image.width, {**image.seconds, "detection": seconds}, instances)
            for image, instances in zip(images, found, strict=True)
        ]
        return lambda: detected

    def detect(self, image: ImageLike) -> Detected:
        """One image, all detections, in the frame of the network's image.

        Raises:
            ImageError: the image cannot be read.
        """
        (detected,) = self.start_forward([self.processor.preprocess(image)])()
        return detected

    def describe(self, preset: str) -> dict:
        """See ``MaskGenerator``.

        Args:
            preset: the config's name.
        """
        return {
            "description": "detections of a trained detector",
            "version": __version__,
            "labeler": self.name,
            "config": preset,
            "weights_sha256": weights_sha256(self.model),
            "min_score": self.processor.min_score,
            "detections_per_image": self.detections,
        }


def weights_sha256(model: torch.nn.Module) -> str:
    """SHA-256 of a model's tensors, names and a frozen ViT's hash: not of a file.

    A checkpoint also holds the state of its run, which makes files differ whose weights do not.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        array = tensor.cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    for module in model.modules():
        if isinstance(module, FrozenViT):
            digest.update(str(module.extractor.weights_sha256).encode())
    return digest.hexdigest()
