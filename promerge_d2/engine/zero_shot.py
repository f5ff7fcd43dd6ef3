"""A detector's predictions on a data set: by any number of processes, kept, gone on with.

Every process takes the share of detectron2's ``InferenceSampler`` and appends each image's
detections to a file of its own. What is there is never computed again, whoever computed it; the
first process joins the files in the order of the ground truth's images, so the result is the same
bytes for any number of processes. Images go through the detector one by one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.utils import comm

from official.files import inside
from promerge_d2.coco.instances import ImageId
from promerge_d2.coco.read import GroundTruth, read_ground_truth
from promerge_d2.evaluation.evaluator import detection_records
from promerge_d2.evaluation.zero_shot import DataSet
from promerge_d2.utils.files import atomic_path, make_folder, sha256_of
from promerge_d2.utils.progress import progress

logger = logging.getLogger(__name__)

Place = tuple[Path, int]  # a file of detections, and where in it an image's line starts


def fingerprint(cfg: CfgNode) -> str:
    """What decides a detector's predictions, as a hash: its settings and the bytes of its weights.

    The device is not among it.
    """
    model = cfg.MODEL.clone()
    model.defrost()
    model.DEVICE = model.WEIGHTS = ""
    test = (cfg.TEST.DETECTIONS_PER_IMAGE, cfg.TEST.BOXES_FROM_MASKS)
    text = f"{model.dump()}{cfg.INPUT.dump()}{test}{sha256_of(cfg.MODEL.WEIGHTS)}"
    return hashlib.sha256(text.encode()).hexdigest()


def detect(cfg: CfgNode, model: torch.nn.Module, data_set: DataSet, folder: Path) -> Path:
    """Write ``folder/NAME.json``, a COCO file with all images listed; every process calls it.

    A file of the same detector is kept as it is, the file of another one replaced.

    Args:
        cfg: the configuration of the model.
        model: with its weights.
        data_set: where the images are.
        folder: for the predictions, and for the parts of an unfinished run.

    Raises:
        UserError: the ground truth is broken, or one of its file names leads out of its folder.
    """
    truth = read_ground_truth(data_set.json_file)
    key = hashlib.sha256(
        (fingerprint(cfg) + repr(list(truth.images.values()))).encode()
    ).hexdigest()
    output, parts = folder / f"{data_set.name}.json", folder / f"{data_set.name}.parts-{key[:12]}"
    if _made_by(output, key):
        if comm.is_main_process():
            logger.info("%s: predictions of the same detector are reused", output)
        return output
    if comm.is_main_process():
        make_folder(parts)
    comm.synchronize()
    done = _find(parts)
    todo = [image for image in truth.images.values() if image.id not in done]
    comm.synchronize()  # before anybody writes, all have read
    if todo:
        dicts = [
            {
                "file_name": str(
                    inside(data_set.image_root, i.file_name, f"{truth.name}: image {i.id!r}")
                ),
                "image_id": i.id,
                "height": i.height,
                "width": i.width,
            }
            for i in todo
        ]
        _infer(cfg, model, dicts, parts / f"{comm.get_rank()}.jsonl", masks=not truth.box_only)
    comm.synchronize()
    if comm.is_main_process():
        _join(output, truth, _find(parts), key)
        shutil.rmtree(parts)
    comm.synchronize()
    return output


def _infer(
    cfg: CfgNode, model: torch.nn.Module, dicts: list[dict[str, Any]], part: Path, masks: bool
) -> None:
    loader = build_detection_test_loader(
        dicts, mapper=DatasetMapper(cfg, False), num_workers=cfg.DATALOADER.NUM_WORKERS
    )
    model.eval()
    with torch.inference_mode(), open(part, "a", encoding="utf-8") as file:
        for batch in progress(loader, desc=part.parent.name.partition(".parts-")[0], unit="image"):
            image_id = batch[0]["image_id"]
            found = detection_records(
                model(batch)[0]["instances"],
                image_id,
                masks=masks,
                boxes_from_masks=cfg.TEST.BOXES_FROM_MASKS,
            )
            # the line break goes first, so that a line cut off by a stop spoils no other
            file.write("\n" + json.dumps({"image_id": image_id, "detections": found}))
            file.flush()


def _find(parts: Path) -> dict[ImageId, Place]:
    """Where each image's line is; one that a stop cut off is left out and computed again."""
    found = {}
    for part in sorted(parts.glob("*.jsonl")):
        start = 0
        with open(part, "rb") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    found[json.loads(line)["image_id"]] = part, start
                start += len(line)
    return found


def _made_by(output: Path, key: str) -> bool:
    """Whether the file's first line, which ``_join`` writes, names the detector ``key``."""
    if not output.is_file():
        return False
    with open(output, encoding="utf-8") as file:
        return file.readline() == _head(key)


def _head(key: str) -> str:
    return f'{{"info": {{"detector": "{key}"}},\n'


def _join(output: Path, truth: GroundTruth, found: dict[ImageId, Place], key: str) -> None:
    """Write the file, one image's detections in memory at a time."""
    images = [
        {"id": i.id, "file_name": i.file_name, "width": i.width, "height": i.height}
        for i in truth.images.values()
    ]
    with (
        atomic_path(output) as temporary,
        open(temporary, "w", encoding="utf-8") as file,
        contextlib.ExitStack() as stack,
    ):
        names = sorted({part for part, _ in found.values()})
        parts = {part: stack.enter_context(open(part, "rb")) for part in names}
        file.write(f'{_head(key)}"categories": [{{"id": 1, "name": "object"}}],\n')
        file.write(f'"images": {json.dumps(images)},\n"annotations": [\n')
        separator = ""
        for image_id in truth.images:
            part, start = found[image_id]
            parts[part].seek(start)
            for record in json.loads(parts[part].readline())["detections"]:
                file.write(separator + json.dumps(record))
                separator = ",\n"
        file.write("\n]}\n")
