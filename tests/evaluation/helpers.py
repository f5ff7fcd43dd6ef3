"""A random case, and the figures that plain pycocotools gives it."""

from __future__ import annotations

import contextlib
import copy
import io

import numpy as np
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from promerge_d2.evaluation import METRICS


def random_case(seed):
    """Ground truth and predictions with random ellipses, many ties, crowds, empty images."""
    rng = np.random.default_rng(seed)
    height, width = 120, 160
    rows, columns = np.mgrid[:height, :width]

    def blob(center, radii):
        mask = ((rows - center[0]) / radii[0]) ** 2 + ((columns - center[1]) / radii[1]) ** 2 < 1
        rle = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
        box = mask_api.toBbox(rle).tolist()
        area = float(mask_api.area(rle))
        return {"size": rle["size"], "counts": rle["counts"].decode()}, box, area

    images = [
        {"id": int(i), "file_name": f"{i}.jpg", "height": height, "width": width}
        for i in rng.permutation(1000)[:12]
    ]
    truth, guesses = [], []
    for image in images:
        for _ in range(rng.integers(0, 15)):
            center, radii = rng.uniform(0, 1, 2) * (height, width), rng.uniform(3, 60, 2)
            mask, box, area = blob(center, radii)
            crowd = int(rng.random() < 0.1)
            truth.append((image["id"], mask, box, {"area": area, "iscrowd": crowd}))
            for _ in range(rng.integers(0, 12)):
                near = blob(center + rng.normal(0, 3, 2), radii * rng.uniform(0.8, 1.2, 2))
                guesses.append((image["id"], *near[:2], {"score": float(rng.integers(1, 5)) / 4}))
    order = rng.permutation(len(guesses))
    as_records = [
        [
            {"id": n, "image_id": i, "category_id": 1, "segmentation": mask, "bbox": box, **more}
            for n, (i, mask, box, more) in enumerate(rows_, start=1)
        ]
        for rows_ in (truth, [guesses[k] for k in order])
    ]
    categories = [{"id": 1, "name": "object"}]
    return {"images": images, "annotations": as_records[0], "categories": categories}, as_records[1]


def plain_pycocotools(truth, guesses, iou_type):
    """The usual way; detectron2 removes the boxes for masks, or the box area would count."""
    guesses = copy.deepcopy(guesses)
    if iou_type == "segm":
        for guess in guesses:
            del guess["bbox"]
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = copy.deepcopy(truth)
        api.createIndex()
        engine = COCOeval(api, api.loadRes(guesses), iou_type)
        engine.evaluate()
        engine.accumulate()
        engine.summarize()
    figures = {
        name: value * 100 if value >= 0 else -1
        for name, value in zip(METRICS[:12], engine.stats.tolist(), strict=True)
    }
    judged = [
        match["dtMatches"][0, place] > 0
        for match in engine.evalImgs
        if match is not None and match["aRng"] == engine.params.areaRng[0]
        for place in range(min(5, len(match["dtIds"])))
        if not match["dtIgnore"][0, place]
    ]
    some = judged and any(not record["iscrowd"] for record in truth["annotations"])
    return {**figures, "P5": float(sum(judged) / len(judged)) * 100 if some else -1}
