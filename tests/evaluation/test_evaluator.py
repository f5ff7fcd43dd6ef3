"""The detectron2 evaluator, against the core, its own file, and detectron2's COCOEvaluator."""

from __future__ import annotations

import json

import numpy as np
import pytest

from promerge_d2.evaluation import METRICS
from promerge_d2.utils.errors import UserError

torch = pytest.importorskip("torch")
pytest.importorskip("detectron2")

from detectron2.data import MetadataCatalog  # noqa: E402
from detectron2.engine import launch  # noqa: E402
from detectron2.evaluation import COCOEvaluator, print_csv_format  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402
from detectron2.utils import comm  # noqa: E402

from promerge_d2.evaluation.evaluator import ClassAgnosticEvaluator  # noqa: E402

HEIGHT, WIDTH = 100, 200


def _instances(boxes, scores, masks=True):
    """Detections of XYXY boxes; each mask fills its box."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_boxes = Boxes(boxes)
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
    if masks:
        filled = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(filled, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        instances.pred_masks = filled
    return instances


@pytest.fixture
def dataset(save):
    """``dataset(content)``: register a ground truth, return its name; undone after the test."""
    names = []

    def register(content, **metadata):
        name = f"promerge_test_evaluator_{len(names)}"
        names.append(name)
        path = str(save(f"{name}.json", content))
        MetadataCatalog.get(name).set(json_file=path, **metadata)
        return name

    yield register
    for name in names:
        MetadataCatalog.remove(name)


def _run(evaluator, outputs):
    """Feed ``{image_id: instances}`` as batches of one, return the results."""
    evaluator.reset()
    for image_id, instances in outputs.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()


def test_results_and_file(coco, dataset, tmp_path):
    truth = coco([(1, 20, 0, 40, 40), (2, 0, 0, 10, 10)], images=(1, 2, 3))
    evaluator = ClassAgnosticEvaluator(dataset(truth), tmp_path / "out")
    hit_and_miss = _instances([[20, 0, 60, 40], [150, 60, 190, 90]], [0.9, 0.8])
    results = _run(evaluator, {1: hit_and_miss, 2: _instances([], [])})
    assert list(results) == ["bbox", "segm"]
    for metrics in results.values():
        assert tuple(metrics) == METRICS
        assert metrics["AP"] == pytest.approx(100 * 51 / 101)
        assert metrics["AR100"] == metrics["AR1"] == 50
        assert metrics["ARs"] == 0
        assert metrics["ARl"] == -1
    print_csv_format(results)
    saved = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert [(row["image_id"], row["category_id"]) for row in saved] == [(1, 1), (1, 1)]
    assert saved[0]["bbox"] == [20, 0, 40, 40]


def test_the_saved_file_scores_the_same(coco, dataset, score, tmp_path):
    truth = coco([(1, 20, 0, 40, 40), (2, 0, 0, 10, 10)], images=(1, 2))
    outputs = {
        2: _instances([[0, 0, 10, 9], [0, 0, 10, 10]], [0.5, 0.5]),
        1: _instances([[21, 1, 60, 44]], [0.5]),
    }
    results = _run(ClassAgnosticEvaluator(dataset(truth), tmp_path), outputs)
    saved = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert score(truth, saved) == dict(results)


def test_reset_forgets(coco, dataset):
    evaluator = ClassAgnosticEvaluator(dataset(coco([(1, 20, 0, 40, 40)])))
    hit = _instances([[20, 0, 60, 40]], [0.9])
    assert _run(evaluator, {1: hit})["segm"]["AR100"] == 100
    assert _run(evaluator, {})["segm"]["AR100"] == 0


def test_boxes_from_masks(coco, dataset, tmp_path):
    """A mask 20 pixels narrower than its box gives the box; an empty one leaves it."""
    outputs = {1: _instances([[20, 0, 80, 40], [100, 50, 120, 70]], [0.9, 0.8])}
    outputs[1].pred_masks[0, :, 60:] = False
    outputs[1].pred_masks[1] = False
    truth = coco([(1, 20, 0, 40, 40)])
    evaluator = ClassAgnosticEvaluator(dataset(truth), tmp_path, boxes_from_masks=True)
    assert _run(evaluator, outputs)["bbox"]["AP75"] == pytest.approx(100)
    assert _run(ClassAgnosticEvaluator(dataset(truth)), outputs)["bbox"]["AP75"] == 0
    saved = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert [row["bbox"] for row in saved] == [[20, 0, 40, 40], [100, 50, 20, 20]]
    box_only = dataset(coco([(1, 20, 0, 40, 40)], masks=False))
    results = _run(ClassAgnosticEvaluator(box_only, boxes_from_masks=True), outputs)
    assert list(results) == ["bbox"]
    assert results["bbox"]["AP75"] == pytest.approx(100)


def test_boxes_only(coco, dataset):
    outputs = {1: _instances([[20, 0, 60, 40]], [0.9])}
    boxes = dataset(coco([(1, 20, 0, 40, 40)], masks=False))
    assert list(_run(ClassAgnosticEvaluator(boxes), outputs)) == ["bbox"]
    assert outputs[1].has("pred_masks")  # the caller's detections are left as they were
    masks = dataset(coco([(1, 20, 0, 40, 40)]))
    outputs = {1: _instances([[20, 0, 60, 40]], [0.9], masks=False)}
    assert list(_run(ClassAgnosticEvaluator(masks), outputs)) == ["bbox"]


def test_errors(coco, dataset, tmp_path):
    with pytest.raises(UserError, match=r"'promerge_test_unknown'.*'json_file'"):
        ClassAgnosticEvaluator("promerge_test_unknown")
    MetadataCatalog.remove("promerge_test_unknown")
    name = dataset(coco([(1, 20, 0, 40, 40)]))
    outputs = {1: _instances([[20, 0, 60, 40]], [float("nan")])}
    with pytest.raises(UserError, match=rf"^the detections on {name}: record 0 .*score.* nan"):
        _run(ClassAgnosticEvaluator(name, tmp_path / "out"), outputs)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", range(3))
def test_ap_equals_that_of_detectron2(coco, dataset, seed):
    rng = np.random.default_rng(seed)
    objects, outputs = [], {}
    for image_id in range(1, 9):
        corners = rng.integers(0, (150, 60), (rng.integers(0, 8), 2))
        sizes = rng.integers(10, (50, 40), corners.shape)
        objects += [(image_id, *map(int, row)) for row in np.hstack((corners, sizes))]
        boxes = np.hstack((corners, corners + sizes)).repeat(3, axis=0)
        boxes = np.clip(boxes + rng.integers(-4, 5, boxes.shape), 0, (WIDTH, HEIGHT) * 2)
        outputs[image_id] = _instances(boxes.tolist(), rng.integers(1, 4, len(boxes)) / 4)
    truth = coco(objects, images=range(1, 9))
    truth["categories"] = [{"id": 1, "name": "object"}]
    for annotation in truth["annotations"]:
        annotation["category_id"] = 1
    name = dataset(truth, thing_dataset_id_to_contiguous_id={1: 0}, thing_classes=["object"])
    ours = _run(ClassAgnosticEvaluator(name), outputs)
    theirs = _run(COCOEvaluator(name, use_fast_impl=False), outputs)
    for iou_type, metrics in theirs.items():
        for metric, value in metrics.items():
            assert ours[iou_type][metric] == (-1 if np.isnan(value) else value)
    assert 0 < theirs["segm"]["AP"] < 100


def _process(json_file, folder):
    """One of two processes: each saw one image of the two, only the first returns figures."""
    MetadataCatalog.get("promerge_test_processes").set(json_file=json_file)
    evaluator = ClassAgnosticEvaluator("promerge_test_processes", folder)
    rank = comm.get_rank()
    results = _run(evaluator, {rank + 1: _instances([[20, 0, 60, 40]], [0.9])})
    if rank:
        assert results == {}
    else:
        assert results["segm"]["AR100"] == 100


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="detectron2 wants a GPU a process")
def test_gathers_over_processes(coco, save, tmp_path):
    path = save("truth.json", coco([(1, 20, 0, 40, 40), (2, 20, 0, 40, 40)], images=(1, 2)))
    launch(_process, 2, dist_url="auto", args=(str(path), str(tmp_path)))
    saved = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert [row["image_id"] for row in saved] == [1, 2]
