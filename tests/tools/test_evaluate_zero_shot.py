"""One command over all benchmarks: predictions, a detector, the page, what is absent or hostile."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset

from promerge_d2.data import register_promerge_instances
from promerge_d2.data.benchmarks import DataSet, choose_data_sets
from promerge_d2.engine import ProMergeTrainer
from promerge_d2.engine.detector import DetectorMaskGenerator, load_detector
from promerge_d2.engine.setup import read_config
from promerge_d2.evaluation.evaluator import ClassAgnosticEvaluator
from promerge_d2.utils.errors import UserError
from tests.engine.conftest import config, left_as_found, photos  # noqa: F401 - fixtures
from tests.helpers import ROOT, coco_json, run_tool, save_image, square
from tests.pseudo_labels.helpers import in_a_fork, wait_until, whole_lines

GREY = np.full((60, 80, 3), 99, np.uint8)
TRUTHS = ("labels", "boxes")
A, B = square(60, 80, 10, 10, 50, 50), square(60, 80, 55, 5, 75, 25)


@pytest.fixture
def root(tmp_path):
    """COCO with three images and KITTI with one, boxes only, both class-agnostic."""
    base = tmp_path / "root"
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        save_image(base / "coco" / "val2017" / name, GREY)
    save_image(base / "kitti" / "training" / "image_2" / "000001.png", GREY)
    for folder in ("coco", "kitti"):
        (base / folder / "annotations").mkdir()
    coco_json(
        base / "coco" / "annotations" / "coco_cls_agnostic_instances_val2017.json",
        [("1.jpg", 60, 80, [A, B]), ("2.jpg", 60, 80, [A]), ("3.jpg", 60, 80, [])],
    )
    boxes = base / "kitti" / "annotations" / "trainval_cls_agnostic.json"
    coco_json(boxes, [("training/image_2/000001.png", 60, 80, [A, {"mask": B, "iscrowd": 1}])])
    content = json.loads(boxes.read_text())
    for record in content["annotations"]:
        del record["segmentation"]
    boxes.write_text(json.dumps(content))
    return base


@pytest.fixture
def runs(tmp_path):
    """Two folders of predictions: ``good`` finds all of both sets, ``poor`` one object of COCO."""
    for name, masks in (("good", ([A, B], [A])), ("poor", ([A], []))):
        (tmp_path / name).mkdir()
        images = [(f"{i}.jpg", 60, 80, found) for i, found in enumerate(masks, start=1)]
        coco_json(tmp_path / name / "cls_agnostic_coco.json", images)
    kitti = [("training/image_2/000001.png", 60, 80, [B, A])]
    coco_json(tmp_path / "good" / "cls_agnostic_kitti.json", kitti)
    return tmp_path / "good", tmp_path / "poor"


@pytest.fixture
def evaluate(monkeypatch, capsys, caplog, tmp_path, root):
    """``evaluate(...)``: exit code, all that was said, results.json."""

    def run(*arguments, output=tmp_path / "out"):
        caplog.clear()
        with caplog.at_level("INFO"):
            code = run_tool(
                monkeypatch,
                "evaluate_zero_shot.py",
                *("--root", root, "--output", output, "--resamples", 50, *arguments),
            )
        out, err = capsys.readouterr()
        file = output / "results.json"
        return code, out + err + caplog.text, json.loads(file.read_text()) if code == 0 else None

    return run


def test_two_runs_on_what_is_present(evaluate, runs, tmp_path):
    good, poor = runs
    code, said, results = evaluate("--predictions", good, "--predictions", f"weak={poor}")
    assert code == 0, said
    found = {(r["data_set"], r["run"]): r for r in results["results"]}
    assert list(found) == [
        ("cls_agnostic_coco", "good"),
        ("cls_agnostic_coco", "weak"),
        ("cls_agnostic_kitti", "good"),
    ]
    coco = found["cls_agnostic_coco", "good"]
    assert coco["figures"]["segm.AP"] == coco["figures"]["bbox.AP"] == pytest.approx(100)
    assert (coco["images"], coco["images_listed"], coco["objects"]) == (3, 2, 3)
    assert coco["difference_to"] is None
    assert "a subset of 5000" in coco["protocol"]
    assert "max detections 100" in coco["protocol"]
    weak = found["cls_agnostic_coco", "weak"]
    # one of three objects, first and alone: precision 1 up to recall 1/3
    assert weak["figures"]["segm.AP"] == pytest.approx(100 * 34 / 101)
    assert weak["figures"]["segm.AR100"] == pytest.approx(100 / 3)
    value, low, high = weak["differences"]["segm.AR100"]
    assert value == pytest.approx(-200 / 3)
    assert low <= value <= high <= 0
    kitti = found["cls_agnostic_kitti", "good"]
    assert not any(name.startswith("segm") for name in kitti["figures"])
    assert kitti["figures"]["bbox.AP"] == pytest.approx(100)  # what lies in DontCare costs nothing
    assert "boxes only" in kitti["protocol"]
    assert "1 ignore regions" in kitti["protocol"]
    assert "cls_agnostic_kitti.json" in results["not_run"]["cls_agnostic_kitti, weak"]
    assert "prepare_sa1b.py" in results["not_run"]["cls_agnostic_sa1b"]
    assert "ai.meta.com" in results["not_run"]["cls_agnostic_sa1b"]

    text = (tmp_path / "out" / "results.md").read_text()
    assert text in said
    assert "| ProMerge+ (published) | 8.90 | 9.00 | 4.00 | 5.40 | 12.20 | 7.80 |" in text
    assert "| good | 100.00 | - | - | 100.00 | - | - |" in text
    assert "good, mask (lists 2 of 3 images)" in text
    assert "AP minus that of good" in text

    page = (tmp_path / "out" / "index.html").read_text()
    pictures = re.findall(r'src="([^"]+)"', page)
    assert all((tmp_path / "out" / name).is_file() for name in pictures)
    assert "plots/cls_agnostic_coco.png" in pictures
    assert sum(name.startswith("pictures/cls_agnostic_coco/weak/") for name in pictures) == 2
    assert "1.jpg: AP 50.5, 2 objects" in page
    assert "Subsets: COCO val2017 3 of 5000, KITTI 1 of 7481 images" in page


def test_the_page_says_what_made_the_predictions(evaluate, runs, tmp_path):
    file = runs[0] / "cls_agnostic_coco.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({"info": {"description": "features: made up"}, **content}))
    code, said, _ = evaluate("--predictions", f"mine={file}", "--datasets", "coco")
    assert code == 0, said
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Runs: mine (features: made up). Figures" in page


def test_the_same_bytes_again(evaluate, runs, tmp_path):
    for output in ("a", "b"):
        evaluate("--predictions", runs[0], "--datasets", "coco", output=tmp_path / output)
    names = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(names) > 5
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_one_file_on_all_sets_and_a_set_of_ones_own(evaluate, runs, root, tmp_path):
    own = coco_json(tmp_path / "own.json", [("1.jpg", 60, 80, [A])])
    code, said, results = evaluate(
        *("--predictions", runs[1] / "cls_agnostic_coco.json", "--resamples", 0),
        *("--set", "mine", own, root / "coco" / "val2017"),
    )
    assert code == 0, said
    found = {r["data_set"]: r for r in results["results"]}
    assert list(found) == ["cls_agnostic_coco", "mine"]
    assert found["mine"]["figures"]["segm.AP"] == pytest.approx(100)
    assert found["mine"]["intervals"] == {}
    assert "no image of" in results["not_run"]["cls_agnostic_kitti, cls_agnostic_coco"]


@pytest.mark.parametrize(
    ("listed", "on_disk"),
    [
        (unicodedata.normalize("NFC", "söder.jpg"), unicodedata.normalize("NFD", "söder.jpg")),
        ("a\\b.jpg", "a/b.jpg"),
        (os.fsdecode(b"caf\xe9.jpg"), os.fsdecode(b"caf\xe9.jpg")),
    ],
)
def test_pictures_are_found_however_names_are_spelled(evaluate, tmp_path, listed, on_disk):
    save_image(tmp_path / "photos" / on_disk, GREY)
    own = coco_json(tmp_path / "own.json", [(listed, 60, 80, [A])])
    code, said, _ = evaluate(
        *("--predictions", own, "--datasets", "coco", "--set", "mine", own, tmp_path / "photos"),
    )
    assert code == 0, said
    assert "left out" not in said
    assert len(list((tmp_path / "out" / "pictures" / "mine").rglob("*.png"))) == 2


def test_files_of_a_folder_have_long_or_short_names(evaluate, runs):
    (runs[0] / "cls_agnostic_coco.json").rename(runs[0] / "coco.json")
    code, said, results = evaluate("--predictions", runs[0], "--resamples", 0)
    assert code == 0, said
    names = [found["data_set"] for found in results["results"]]
    assert names == ["cls_agnostic_coco", "cls_agnostic_kitti"]


def test_only_images_that_every_run_lists(evaluate, runs):
    good, poor = runs
    content = json.loads((good / "cls_agnostic_coco.json").read_text())
    content["images"].pop()  # the second of two
    content["annotations"].pop()
    (good / "cls_agnostic_coco.json").write_text(json.dumps(content))
    few = ("--predictions", good, "--predictions", poor, "--datasets", "coco")
    everywhere = evaluate(*few)[2]["results"][0]
    assert everywhere["figures"]["segm.AR100"] == pytest.approx(100 * 2 / 3)
    code, said, results = evaluate(*few, "--only-listed")
    assert code == 0, said
    first, second = results["results"]
    assert (first["images"], first["images_listed"], first["objects"]) == (1, 1, 2)
    assert first["figures"]["segm.AR100"] == pytest.approx(100)
    assert second["figures"]["segm.AR100"] == pytest.approx(50)
    assert second["predictions"] == 1
    assert "1 images, a subset of 5000, those of 3 that every run lists" in said


def test_more_detections(evaluate, root, tmp_path):
    many = [A] + [square(60, 80, x, y, x + 3, y + 3) for x in range(20) for y in range(6)]
    records = coco_json(tmp_path / "many.json", [("2.jpg", 60, 80, [*many[1:], A])])
    few = ("--predictions", records, "--datasets", "coco", "--pictures", 0)
    figures = evaluate(*few)[2]["results"][0]["figures"]
    assert "segm.AR1000" not in figures
    assert figures["segm.AR100"] == 0
    code, said, results = evaluate(*few, "--detections", 1000)
    assert code == 0
    assert results["results"][0]["figures"]["segm.AR1000"] == pytest.approx(100 / 3)
    assert results["results"][0]["figures"]["segm.AR100"] == 0
    assert "AR1000 from 1000 detections an image" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --predictions"),
        (("--predictions", "none.json"), "none.json"),
        (("--predictions", "../x=."), "../x"),
        (("--predictions", "a=.", "--predictions", "a=."), "same name"),
        (("--predictions", "a=.", "--datasets", "cococo"), "cococo"),
        (("--predictions", "a=.", "--datasets", "voc"), "cls_agnostic_voc"),
        (("--predictions", "a=."), "cls_agnostic_coco, a"),
        (("--predictions", "a=.", "--detections", 10), "--detections starts"),
        (("--config-file", "none.yaml"), "none.yaml"),
    ],
)
def test_refused_with_one_message(evaluate, arguments, message):
    code, said, _ = evaluate(*arguments)
    assert code == 3
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(score=float("nan")), "annotations[0] (id 1, image"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, -3, 4]), "bbox [1, 2, -3, 4]"),
        (lambda c: c["annotations"][1].update(segmentation={"size": [6, 8], "counts": [48]}),
         "8 x 6"),
        (lambda c: c["annotations"][0].pop("image_id"), "'image_id'"),
        (lambda c: c["images"][1].update(id=1), "images[1] (id 1"),
        (lambda c: c["images"][0].update(width=81), "81 x 60"),
    ],
)  # fmt: skip
def test_hostile_predictions_name_the_record(evaluate, runs, change, message):
    file = runs[0] / "cls_agnostic_coco.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    code, said, _ = evaluate("--predictions", runs[0])
    assert code == 3
    assert str(file) in said
    assert message in said


def test_empty_predictions_are_refused(evaluate, tmp_path):
    (tmp_path / "empty.json").write_text("")
    code, said, _ = evaluate("--predictions", tmp_path / "empty.json")
    assert code == 3
    assert "empty.json" in said


@pytest.mark.parametrize(
    "name",
    [
        "../../secret.png",
        "/etc/secret.png",
        "a/../../b.png",
        "C:\\secret.png",
        "a\0.png",
        "a" * 256,
        "a/" * 2000,
    ],
    ids=lambda name: repr(name[:16]),
)
def test_pictures_outside_the_root_are_never_read(evaluate, runs, root, name):
    file = root / "coco" / "annotations" / "coco_cls_agnostic_instances_val2017.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = name
    file.write_text(json.dumps(content))
    predictions = json.loads((runs[0] / "cls_agnostic_coco.json").read_text())["annotations"]
    (runs[0] / "cls_agnostic_coco.json").write_text(json.dumps(predictions))
    code, said, _ = evaluate("--predictions", runs[0])
    assert code == 3
    assert repr(name)[:12] in said
    assert "image 1" in said or "id 1" in said


def test_a_picture_that_is_absent_costs_no_figure(evaluate, runs, root):
    (root / "coco" / "val2017" / "1.jpg").unlink()
    code, said, results = evaluate("--predictions", runs[0], "--datasets", "coco")
    assert code == 0, said
    assert results["results"][0]["figures"]["segm.AP"] == pytest.approx(100)


def test_names(tmp_path):
    six = [data_set.name for data_set in choose_data_sets(["six"], tmp_path)]
    assert len(six) == 6
    assert choose_data_sets(["six", "cls_agnostic_coco"], tmp_path)[0].name == "cls_agnostic_coco"
    assert len(choose_data_sets(["six", "coco"], tmp_path)) == 6
    assert set(six) < {data_set.name for data_set in choose_data_sets(["all"], tmp_path)}
    own = DataSet("mine", "mine", tmp_path / "mine.json", tmp_path)
    assert [d.name for d in choose_data_sets(["kitti"], tmp_path, [own])] == [
        "cls_agnostic_kitti",
        "mine",
    ]
    with pytest.raises(UserError, match="choose all, six, or from coco, coco20k"):
        choose_data_sets([""], tmp_path)


# --- a detector -----------------------------------------------------------------------------------


@pytest.fixture
def detector(config, tmp_path):  # noqa: F811 - a fixture
    """Arguments that run a tiny detector with random weights over four photos."""
    file = config()
    cfg = read_config(str(file), [])
    torch.manual_seed(0)
    weights = tmp_path / "weights.pth"
    torch.save({"model": ProMergeTrainer.build_model(cfg).state_dict()}, weights)
    return _command(file, tmp_path), ("MODEL.WEIGHTS", weights)


def _command(file, tmp_path):
    own = ("photos", tmp_path / "labels.json", tmp_path / "photos")
    few = ("--datasets", "photos", "--resamples", 0, "--pictures", 0)
    return ("--config-file", file, "--set", *own, *few)


def _records(folder):
    return json.loads((folder / "predictions" / "detector" / "photos.json").read_text())


def test_weights_of_another_detector_are_refused(evaluate, detector, capsys):
    command, (key, weights) = detector
    state = torch.load(weights)["model"]
    torch.save({"model": {k: v for k, v in state.items() if "mask_head" not in k}}, weights)
    code, said, _ = evaluate(*command, key, weights)
    assert code == 3
    assert "MODEL.WEIGHTS does not fit the config" in said
    assert "mask_head" in said


def test_a_detector_is_run_and_its_predictions_kept(evaluate, detector, tmp_path, monkeypatch):
    start, weights = detector
    code, said, results = evaluate(*start, *weights)
    assert code == 0, said
    (found,) = results["results"]
    assert (found["run"], found["images_listed"], found["images"]) == ("detector", 4, 4)
    content = _records(tmp_path / "out")
    assert found["predictions"] == len(content["annotations"]) > 0
    before = (tmp_path / "out" / "predictions" / "detector" / "photos.json").read_bytes()
    monkeypatch.setattr(DetectorMaskGenerator, "start_forward", None)  # nothing is computed again
    code, said, again = evaluate(*start, *weights)
    assert code == 0, said
    assert again == results
    assert (tmp_path / "out" / "predictions" / "detector" / "photos.json").read_bytes() == before


def test_another_detector_is_refused(evaluate, detector):
    start, weights = detector
    assert evaluate(*start, *weights)[0] == 0
    code, said, _ = evaluate(*start, *weights, "MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.4")
    assert code == 3
    assert "settings.MODEL.ROI_HEADS.NMS_THRESH_TEST was null, is now 0.4" in said


def test_ids_and_order_are_those_of_the_ground_truth(evaluate, detector, tmp_path):
    start, weights = detector
    truth = json.loads((tmp_path / "labels.json").read_text())
    for image, new in zip(truth["images"], (70, 8, 900, "a name"), strict=True):
        for annotation in truth["annotations"]:
            if annotation["image_id"] == image["id"]:
                annotation["image_id"] = new
        image["id"] = new
    (tmp_path / "labels.json").write_text(json.dumps(truth))
    code, said, results = evaluate(*start, *weights)
    assert code == 0, said
    found = [(image["id"], image["file_name"]) for image in _records(tmp_path / "out")["images"]]
    assert found == [(8, "1.png"), (70, "0.png"), (900, "2.png"), ("a name", "3.png")]
    assert results["results"][0]["images_listed"] == 4


def test_an_image_that_is_not_there_is_named(evaluate, detector, tmp_path):
    start, weights = detector
    (tmp_path / "photos" / "2.png").unlink()
    code, said, _ = evaluate(*start, *weights)
    assert code == 2
    assert "2.png: cannot read the image" in said
    assert "Traceback" not in said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    (found,) = results["results"]
    assert (found["images_listed"], found["images"]) == (3, 4)


@pytest.mark.parametrize("from_masks", [False, True])
def test_figures_are_those_of_the_evaluator(evaluate, detector, tmp_path, from_masks, monkeypatch):
    """Boxes only and masks; the box of a detection its own, or its mask's."""
    (_, file, *_), (key, weights) = detector
    boxes = json.loads((tmp_path / "labels.json").read_text())
    for annotation in boxes["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    options = [key, str(weights), "TEST.BOXES_FROM_MASKS", str(from_masks)]
    own = [("--set", name, tmp_path / f"{name}.json", tmp_path / "photos") for name in TRUTHS]
    code, said, results = evaluate(
        *("--config-file", file, *own[0], *own[1], "--datasets", "labels,boxes"),
        *("--pictures", 0, *options),
    )
    assert code == 0, said
    cfg = read_config(str(file), options)
    model = load_detector(cfg)
    for found, name in zip(results["results"], TRUTHS, strict=True):
        register_promerge_instances(name, tmp_path / f"{name}.json", tmp_path / "photos")
        evaluator = ClassAgnosticEvaluator(name, boxes_from_masks=from_masks)
        loader = build_detection_test_loader(
            DatasetCatalog.get(name), mapper=DatasetMapper(cfg, False)
        )
        expected = inference_on_dataset(model, loader, evaluator)
        assert set(expected) == ({"bbox"} if name == "boxes" else {"bbox", "segm"})
        figures = {
            kind: {metric: found["figures"][f"{kind}.{metric}"] for metric in metrics}
            for kind, metrics in expected.items()
        }
        assert figures == expected


def test_killed_in_the_middle_it_goes_on(evaluate, detector, tmp_path):
    start, weights = detector
    assert evaluate(*start, *weights, output=tmp_path / "whole")[0] == 0
    file = tmp_path / "out" / "predictions" / "detector" / "photos.json"
    process = in_a_fork(lambda: evaluate(*start, *weights))
    if not wait_until(lambda: whole_lines(file) >= 2, process):
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert not file.exists()
    assert whole_lines(file) < 4
    code, said, _ = evaluate(*start, *weights)
    assert code == 0, said
    whole = tmp_path / "whole" / "predictions" / "detector" / "photos.json"
    assert file.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(photos, tmp_path):  # noqa: F811 - a fixture
    """detectron2's ``launch`` on CPUs (gloo); the processes import the tool anew."""
    settings = {
        "_BASE_": str(ROOT / "configs" / "Base-RCNN-FPN.yaml"),
        "MODEL": {
            "DEVICE": "cpu",
            "RESNETS": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64, "NORM": "BN"},
            "FPN": {"OUT_CHANNELS": 32, "NORM": "BN"},
            "RPN": {"PRE_NMS_TOPK_TEST": 20, "POST_NMS_TOPK_TEST": 10},
            "ROI_BOX_HEAD": {"FC_DIM": 32},
            "ROI_MASK_HEAD": {"NUM_CONV": 1, "CONV_DIM": 16},
        },
        "INPUT": {"MIN_SIZE_TEST": 96, "MAX_SIZE_TEST": 144},
        "DATALOADER": {"NUM_WORKERS": 0},
    }
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(settings))
    torch.manual_seed(0)
    weights = tmp_path / "weights.pth"
    model = ProMergeTrainer.build_model(read_config(str(file), []))
    torch.save({"model": model.state_dict()}, weights)
    found = []
    for count in (1, 2):
        output = tmp_path / f"with_{count}"
        command = [sys.executable, ROOT / "tools" / "evaluate_zero_shot.py", "--output", output]
        command += ["--num-gpus", count, *_command(file, tmp_path), "MODEL.WEIGHTS", weights]
        done = subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        found.append((output / "predictions" / "detector" / "photos.json").read_bytes())
    assert found[0] == found[1]
    assert json.loads(found[0])["annotations"]
