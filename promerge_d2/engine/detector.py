"""A trained detector: its weights checked against its config, its detections as a mask generator's.

Shape letters: N detections, H and W rows and columns of the photograph, h and w of the network's
image, S side of a predicted mask. Boxes are XYXY in pixels of the network's image.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances

from promerge_d2.coco.records import mask_record
from promerge_d2.config import add_promerge_config
from promerge_d2.engine.setup import building, reading_checkpoint
from promerge_d2.evaluation.evaluator import detection_records
from promerge_d2.features import FeatureExtractor
from promerge_d2.features.checkpoints import describe_misfits
from promerge_d2.labeler import LabelResult
from promerge_d2.modeling.frozen_vit import FrozenViT
from promerge_d2.utils.differences import differences
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.image import ImageLike, load_image
from promerge_d2.version import __version__

NOTHING = "no_confident_detection"
OF_AN_IMAGE = ("image_id", "category_id")  # keys of a record that the engine gives
TEST_INPUT = ("FORMAT", "MIN_SIZE_TEST", "MAX_SIZE_TEST")
ELSEWHERE = (  # keys whose values are paths, or change no detection
    *("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.FROZEN_VIT.WEIGHTS"),
    "MODEL.FROZEN_VIT.CACHE_DIR",
)


def load_detector(cfg: CfgNode) -> torch.nn.Module:
    """Build a detector and load ``MODEL.WEIGHTS``, every key of which must find its place.

    Args:
        cfg: the configuration, checked (``check_device``, ``check_weights``).

    Returns:
        The model in evaluation mode, on ``MODEL.DEVICE``.

    Raises:
        UserError: the settings clash, the file is no checkpoint, or it is one of another detector;
            keys that are missing, unknown or of another shape are named.
    """
    with building("the model"):
        model = build_model(cfg)
    with reading_checkpoint(cfg.MODEL.WEIGHTS):
        _StrictCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model.eval()


class _StrictCheckpointer(DetectionCheckpointer):
    """detectron2's, which only warns of keys that do not fit."""

    def _load_model(self, checkpoint: dict) -> None:
        found = super()._load_model(checkpoint)
        wrong = {key for key, *_ in found.incorrect_shapes}
        missing = [key for key in found.missing_keys if key not in wrong]
        problems = describe_misfits(missing, found.unexpected_keys, found.incorrect_shapes)
        if problems:
            raise UserError(
                "MODEL.WEIGHTS does not fit the config; take the config that it was trained "
                f"with (config.yaml beside it): {problems}"
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
    """The detector's work around the network, see ``promerge_d2.labeler.mask_generator.Processor``.

    Attributes:
        min_size, max_size: of the network's image, as ``INPUT.MIN_SIZE_TEST`` and ``_MAX_``.
        channels: ``RGB`` or ``BGR``.
        min_score: the lowest score of a detection that is kept.
        evaluation: keyword arguments of ``detection_records``, for records as the evaluator scores
            them (empty masks stay, boxes may be the predicted ones); None for pseudo-labels.
    """

    min_size: int
    max_size: int
    channels: str
    min_score: float
    evaluation: dict[str, bool] | None = None
    apply_exif = True  # as detectron2
    needs_gpu = False

    def preprocess(self, image: ImageLike) -> PreprocessedImage:
        """Read and resize an image as detectron2 does for tests.

        Args:
            image: a file's path, a PIL image, or an RGB array (H, W, 3) uint8.

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

    def postprocess(self, detected: Detected) -> LabelResult:
        """Paste the masks at the photograph's size and make records, the highest score first.

        The box of a pseudo-label is the tight box of its mask; detections whose mask is empty are
        left out.

        Args:
            detected: of ``DetectorMaskGenerator.start_forward``; it stays as it is.
        """
        started = time.perf_counter()
        instances = detected.instances[detected.instances.scores >= self.min_score]
        order = torch.argsort(instances.scores, descending=True, stable=True)
        instances = instances[order]  # a copy: boxes are scaled in place
        if self.evaluation and not any(self.evaluation.values()) and instances.has("pred_masks"):
            instances.remove("pred_masks")  # pasting takes time
        instances = detector_postprocess(instances, detected.height, detected.width)
        pasted = time.perf_counter()
        if self.evaluation is None:
            records = [
                mask_record(mask.numpy(), score)
                for mask, score in zip(instances.pred_masks, instances.scores.tolist(), strict=True)
                if mask.any()
            ]
        else:
            found = detection_records(instances, 0, **self.evaluation)
            records = [{k: v for k, v in r.items() if k not in OF_AN_IMAGE} for r in found]
        seconds = {**detected.seconds, "masks": pasted - started}
        seconds["encoding"] = time.perf_counter() - pasted
        reason = None if records else NOTHING
        return LabelResult(detected.height, detected.width, records, reason, seconds)


class DetectorMaskGenerator:
    """A trained detector as a ``MaskGenerator``.

    On a CPU images go one by one, so that no bit of the masks depends on their neighbours.

    Args:
        cfg: the configuration; ``TEST.DETECTIONS_PER_IMAGE`` bounds what it finds.
        min_score: the lowest score of a detection that is kept.
        evaluation: see ``DetectorProcessor``.

    Raises:
        UserError: it predicts no masks and is to make pseudo-labels, or as ``load_detector``.
    """

    name = "detector"
    title = "detector"
    reasons = {NOTHING: "no detection with a mask reached the minimum score"}  # noqa: RUF012

    def __init__(
        self, cfg: CfgNode, min_score: float = 0.0, evaluation: dict[str, bool] | None = None
    ) -> None:
        if not cfg.MODEL.MASK_ON and evaluation is None:
            raise UserError("the detector predicts no masks: set MODEL.MASK_ON True")
        self.model = load_detector(cfg)
        self.detections = cfg.TEST.DETECTIONS_PER_IMAGE
        self._settings = settings_of(cfg)
        self._mask_side = 2 * cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
        self.processor = DetectorProcessor(
            cfg.INPUT.MIN_SIZE_TEST,
            cfg.INPUT.MAX_SIZE_TEST,
            cfg.INPUT.FORMAT,
            min_score,
            evaluation,
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
        """Iterate over all parameters; also a frozen ViT's, which are none of the model's."""
        nets = (self.model, *_frozen(self.model))
        return itertools.chain.from_iterable(net.parameters() for net in nets)

    def to(self, device: str | torch.device) -> None:
        """Move the network."""
        self.model.to(device)

    @torch.no_grad()
    def start_forward(self, images: Sequence[PreprocessedImage]) -> Callable[[], list[Detected]]:
        """Detect objects, see ``MaskGenerator``; all is done when this returns.

        Args:
            images: of ``DetectorProcessor.preprocess``, at least one.
        """
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
        """Detect the objects of one image, of any score, in the frame of the network's image.

        Args:
            image: a file's path, a PIL image, or an RGB array (H, W, 3) uint8.

        Raises:
            ImageError: the image cannot be read.
        """
        (detected,) = self.start_forward([self.processor.preprocess(image)])()
        return detected

    def describe(self, preset: str) -> dict:
        """Describe what the detections follow from, see ``MaskGenerator``.

        Args:
            preset: the config's name.
        """
        backbones = "".join(f"; backbone: {f.backbone.training}" for f in _frozen(self.model))
        info = {
            "description": f"detections of a trained detector{backbones}",
            "version": __version__,
            "labeler": self.name,
            "config": preset,
            "settings": self._settings,
            "weights_sha256": weights_sha256(self.model),
            "min_score": self.processor.min_score,
            "detections_per_image": self.detections,
        }
        if self.processor.evaluation is not None:
            info["records"] = self.processor.evaluation
        return info


def settings_of(cfg: CfgNode) -> dict:
    """Return what detections follow from besides weights: values unlike detectron2's defaults.

    Paths and the device are left out.

    Args:
        cfg: the configuration.

    Returns:
        Dotted key to value, such as ``{"MODEL.RPN.NMS_THRESH": 0.65}``, as JSON has them.
    """
    defaults = get_cfg()
    add_promerge_config(defaults)
    before, now = (
        {"MODEL": node.MODEL, "INPUT": {key: node.INPUT[key] for key in TEST_INPUT}}
        for node in (defaults, cfg)
    )
    changed = {name: value for name, _, value in differences(before, now)}
    kept = {name: value for name, value in changed.items() if name not in ELSEWHERE}
    return json.loads(json.dumps(kept))


def weights_sha256(model: torch.nn.Module) -> str:
    """Return the SHA-256 of a model's tensors, names and a frozen ViT's hash: not of a file.

    A checkpoint also holds the state of its run, which makes files differ whose weights do not.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        array = tensor.cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    for extractor in _frozen(model):
        digest.update(str(extractor.weights_sha256).encode())
    return digest.hexdigest()


def _frozen(model: torch.nn.Module) -> list[FeatureExtractor]:
    return [module.extractor for module in model.modules() if isinstance(module, FrozenViT)]
