"""A detectron2 evaluator that returns class-agnostic AP and AR, box and mask."""

from __future__ import annotations

import itertools
import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import BitMasks, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from promerge_d2.coco.ground_truth import read_ground_truth
from promerge_d2.coco.predictions import read_predictions
from promerge_d2.coco.read import CocoSource
from promerge_d2.coco.records import ImageId
from promerge_d2.evaluation.align import align_predictions
from promerge_d2.evaluation.metrics import evaluate_class_agnostic, format_table
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import write_json

logger = logging.getLogger(__name__)

RESULTS_FILE = "coco_instances_results.json"


def detection_records(
    instances: Instances, image_id: ImageId, *, masks: bool = True, boxes_from_masks: bool = False
) -> list[dict[str, Any]]:
    """Return a detector's instances as records of a COCO result list, all of category 1.

    Args:
        instances: ``pred_boxes`` (XYXY, pixels of the original image), ``scores``,
            ``pred_classes`` and maybe ``pred_masks`` ``(N, H, W)`` bool.
        image_id: of their image.
        masks: whether masks are wanted; encoding them takes time.
        boxes_from_masks: see ``ClassAgnosticEvaluator``.
    """
    instances = instances.to("cpu")
    if boxes_from_masks and instances.has("pred_masks"):
        found = BitMasks(instances.pred_masks)
        boxes = instances.pred_boxes.clone()  # the caller keeps the predicted ones
        boxes.tensor[found.nonempty()] = found[found.nonempty()].get_bounding_boxes().tensor
        instances.pred_boxes = boxes
    if not masks and instances.has("pred_masks"):
        instances.remove("pred_masks")
    records = instances_to_coco_json(instances, image_id)
    return [{**record, "category_id": 1} for record in records]


class ClassAgnosticEvaluator(DatasetEvaluator):
    """Score a detector on a data set as one class, as ``evaluate_class_agnostic`` does.

    Boxes are always scored, masks if the detector predicts them and the ground truth has them.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | os.PathLike | None = None,
        boxes_from_masks: bool = False,
    ) -> None:
        """Read the ground truth of a data set.

        Args:
            dataset_name: a registered data set whose metadata has a COCO-style ``json_file``.
            output_dir: where to save the detections as a COCO result list with category 1
                (``coco_instances_results.json``, which ``tools/evaluate_labels.py`` reads); None
                saves nothing.
            boxes_from_masks: the box of a detection is the tight box of its mask, as the boxes of
                pseudo-labels and of most ground truth are; a detection whose mask is empty keeps
                its own (our own).

        Raises:
            UserError: the data set has no ``json_file``, or the file is no valid ground truth.
        """
        json_file = MetadataCatalog.get(dataset_name).get("json_file")
        if json_file is None:
            raise UserError(
                f"the data set {dataset_name!r} has no 'json_file' in its metadata, so its ground "
                "truth is unknown; import what registers it, or register a COCO-style json"
            )
        self._ground_truth = read_ground_truth(PathManager.get_local_path(json_file))
        self._dataset_name = dataset_name
        self._output_dir = output_dir
        self._boxes_from_masks = boxes_from_masks
        self._detections: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Forget all detections."""
        self._detections = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take the detections of a batch.

        Args:
            inputs: detectron2's dicts, of which ``image_id`` is used.
            outputs: dicts with ``instances``, see ``detection_records``.
        """
        for record, output in zip(inputs, outputs, strict=True):
            self._detections += detection_records(
                output["instances"],
                record["image_id"],
                masks=not self._ground_truth.box_only,
                boxes_from_masks=self._boxes_from_masks,
            )

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Score what was processed.

        Returns:
            ``{"bbox": {...}, "segm": {...}}`` with the ``METRICS`` in per cent, -1 where there is
            no object (of that size); empty in all processes but the first.

        Raises:
            UserError: a detection is broken, such as a score that is not a number.
        """
        comm.synchronize()
        detections = list(itertools.chain.from_iterable(comm.gather(self._detections, dst=0)))
        if not comm.is_main_process():
            return OrderedDict()
        name = f"the detections on {self._dataset_name}"
        found = read_predictions(CocoSource.of(detections, name))
        predictions = align_predictions(found, self._ground_truth)
        if self._output_dir is not None:
            write_json(Path(self._output_dir) / RESULTS_FILE, detections)
        results = evaluate_class_agnostic(self._ground_truth, predictions)
        logger.info("class-agnostic results on %s:\n%s", self._dataset_name, format_table(results))
        return OrderedDict(results)
