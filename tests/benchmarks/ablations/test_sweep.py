import csv
import json

import pytest

from benchmarks.ablations import sweep as sweep_module
from benchmarks.ablations.cache import Cache, key_of
from benchmarks.ablations.results import Results
from benchmarks.ablations.sweep import LabelledImages, Point, override, score_point, sweep
from promerge_d2.coco.records import mask_record
from promerge_d2.labeler import LabelResult, ProMergeConfig
from promerge_d2.utils.errors import UserError
from tests.benchmarks.ablations.conftest import BOXES
from tests.helpers import coco_json, photo, save_image, square

POINTS = [
    Point({"tau_b": value, "filter": kind}, {"tau_b": value, "background_filter": kind})
    for value in ("0.2", "0.9")
    for kind in ("cascade", "none")
]


@pytest.fixture
def run(tmp_path, tiny_labeler, labelled):
    """``run(name, points, workers)``: sweep into a folder; all share one cache."""
    images = LabelledImages.read(*labelled)

    def call(name, points=POINTS, workers=0, cache="cache"):
        results = Results(tmp_path / name, "sweep", {"run": 1})
        sweep(results, points, tiny_labeler(), images, tmp_path / cache, workers)
        return results.file

    call.images = images
    return call


def without_seconds(file):
    return [{**row, "seconds": None} for row in csv.DictReader(file.open())]


# Figures


def found(*masks_and_scores):
    records = [mask_record(mask, score) for mask, score in masks_and_scores]
    return LabelResult(20, 20, records, None if records else "why", {"masks": 0.25})


@pytest.fixture
def truth(tmp_path):
    """Two objects and a crowd on the first image, one on the second, none on the third."""
    objects = [square(20, 20, 0, 0, 6, 10), square(20, 20, 10, 0, 16, 10)]
    crowd = {"mask": square(20, 20, 0, 12, 20, 20), "iscrowd": 1}
    images = [
        ("a.png", 20, 20, [*objects, crowd]),
        ("b.png", 20, 20, [square(20, 20, 5, 5, 15, 15)]),
        ("c.png", 20, 20, []),
    ]
    for name, *_ in images:
        save_image(tmp_path / "made" / name, photo(20, 20, (0, 0, 1, 1)))
    return LabelledImages.read(tmp_path / "made", coco_json(tmp_path / "made.json", images))


def test_precision_and_recall_by_hand(truth):
    figures = score_point(
        truth,
        [
            found(
                (square(20, 20, 0, 0, 4, 10), 0.9),  # IoU 40/60 with the first object
                (square(20, 20, 0, 0, 6, 10), 0.8),  # exact, but the object is taken
                (square(20, 20, 10, 0, 16, 4), 0.7),  # IoU 24/60 with the second
                (square(20, 20, 2, 13, 12, 19), 0.6),  # inside the crowd: counts neither way
            ),
            found((square(20, 20, 5, 5, 15, 10), 0.5)),  # IoU 50/100: just enough
            found(),
        ],
    )
    assert figures["precision"] == "50.00"  # 2 of 4: the crowd's is not counted
    assert figures["recall"] == "66.67"  # 2 of 3
    assert figures["masks"] == "1.67"  # 5 on 3 images
    assert figures["empty"] == "33.33"
    assert figures["seconds"] == "0.2500"
    # thresholds 0.50 (2 hits of 3 objects) to 0.65 (1 hit): (2 + 1 + 1 + 1) / 3 / 10 thresholds,
    # and the exact one, second in line, from 0.70 on: 6 / 3 / 10
    assert figures["AR100"] == f"{100 * (5 + 6) / 30:.4f}"


def test_nothing_found_has_no_precision(truth):
    figures = score_point(truth, [found(), found(), found()])
    assert figures["precision"] == ""
    assert figures["recall"] == "0.00"
    assert figures["AP"] == "0.0000"
    assert figures["empty"] == "100.00"
    assert figures["ARl"] == ""  # there is no large object


def test_boxes_are_scored_where_there_are_no_masks(tmp_path):
    save_image(tmp_path / "a.png", photo(20, 20, (0, 0, 1, 1)))
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]}
    image = {"id": 1, "file_name": "a.png", "height": 20, "width": 20}
    (tmp_path / "boxes.json").write_text(
        json.dumps({"images": [image], "annotations": [annotation]})
    )
    images = LabelledImages.read(tmp_path, tmp_path / "boxes.json")
    ring = square(20, 20, 0, 0, 10, 10) & ~square(20, 20, 1, 1, 9, 9)  # a small mask, the same box
    assert images.describe()["iou_type"] == "bbox"
    assert score_point(images, [found((ring, 1.0))])["recall"] == "100.00"


# Images


def test_images_are_those_of_the_ground_truth(labelled):
    folder, annotations = labelled
    images = LabelledImages.read(folder, annotations)
    assert images.files == tuple(folder / f"{i}.png" for i in range(3))
    assert len(images.truth.objects) == 3
    few = LabelledImages.read(folder, annotations, 2)
    assert few.files == (folder / "0.png", folder / "2.png")  # spread over all
    assert [o.image_id for o in few.truth.objects] == [1, 3]
    assert few.describe()["sha256"] != images.describe()["sha256"]


def test_a_missing_image_is_named(labelled):
    folder, annotations = labelled
    (folder / "1.png").unlink()
    with pytest.raises(UserError, match=r"1\.png.*photos"):
        LabelledImages.read(folder, annotations)


# Sweeps


def test_finds_the_objects_and_writes_a_row_a_point(run):
    rows = without_seconds(run("out"))
    assert [(row["tau_b"], row["filter"]) for row in rows] == [
        ("0.2", "cascade"),
        ("0.2", "none"),
        ("0.9", "cascade"),
        ("0.9", "none"),
    ]
    assert rows[0]["recall"] == "100.00"
    assert rows[0]["empty"] == "0.00"
    assert len({row["masks"] for row in rows}) > 1  # the settings matter


def test_rows_equal_those_of_the_labeler_itself(run, tiny_labeler):
    (row, *_) = without_seconds(run("out"))
    labeler = tiny_labeler(**POINTS[0].settings)
    direct = score_point(run.images, [labeler.label(file) for file in run.images.files])
    assert {**row, "seconds": None} == {**POINTS[0].columns, **direct, "seconds": None}


def test_the_same_bytes_with_two_workers_as_with_none(run):
    rows = [
        without_seconds(run(f"{workers}", POINTS[:2], workers, f"cache{workers}"))
        for workers in (0, 2)
    ]
    assert rows[0] == rows[1]


def test_goes_on_after_an_interrupt(run, monkeypatch):
    whole = run("whole", cache="other")
    label, calls = sweep_module._label, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 8:  # in the middle of the third point
            raise KeyboardInterrupt
        return label(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(sweep_module, "_label", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("out")
    assert len(without_seconds(whole.parents[1] / "out" / "sweep.csv")) == 2
    assert without_seconds(run("out")) == without_seconds(whole)


def test_points_that_are_done_are_not_done_again(run, monkeypatch):
    first = run("out", POINTS[:2])
    before = first.read_text()
    label, calls = sweep_module._label, []
    monkeypatch.setattr(
        sweep_module, "_label", lambda *arguments: calls.append(arguments) or label(*arguments)
    )
    after = run("out")
    assert after.read_text().startswith(before)  # not even the seconds are new
    assert len(calls) == 2 * 3  # two points, three images
    assert without_seconds(after) == without_seconds(run("whole", cache="other"))
    calls.clear()
    run("out")
    assert not calls


def test_features_are_computed_once(run, tiny_labeler, monkeypatch):
    extractor = type(tiny_labeler().extractor)
    forward, passes = extractor.forward, []
    monkeypatch.setattr(
        extractor, "forward", lambda self, x: passes.append(len(x)) or forward(self, x)
    )
    run("a")
    run("b")
    assert sum(passes) == 3


def test_a_changed_image_and_a_damaged_file_are_computed_again(run, labelled, tiny_labeler):
    rows = without_seconds(run("before"))
    cache = Cache.of(tiny_labeler().extractor, run.images.files[0].parents[1] / "cache")
    damaged = cache.features_file(key_of(tiny_labeler().processor.preprocess(run.images.files[1])))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:1000])
    assert without_seconds(run("damaged")) == rows
    assert len(damaged.read_bytes()) == len(whole)

    save_image(run.images.files[0], photo(box=BOXES[1], seed=0))  # the object has moved
    run.images = LabelledImages.read(*labelled)
    results = Results(run.images.files[0].parents[1] / "after", "sweep", {"run": 2})
    sweep(results, POINTS, tiny_labeler(), run.images, cache.folder.parent)
    assert results.rows[0]["recall"] == "66.67"


def test_an_unknown_setting_is_refused_before_any_work(run):
    with pytest.raises(UserError, match="'tau_c'"):
        run("out", [*POINTS, Point({"tau_c": "1"}, {"tau_c": "1"})])
    assert not (run.images.files[0].parents[1] / "cache").exists()


def test_override_keeps_the_other_settings():
    config = ProMergeConfig(grid=(10, 12), tau_f=0.3)
    changed = override(config, {"tau_b": "0.45", "background_filter": "ioa"})
    assert changed == ProMergeConfig(grid=(10, 12), tau_f=0.3, tau_b=0.45, background_filter="ioa")


def test_broken_image_is_named(run):
    run.images.files[1].write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1\.png"):
        run("out")


def test_seconds_are_those_of_the_mask_stage_of_the_median_image(truth):
    def took(seconds):
        return LabelResult(20, 20, seconds={"masks": seconds, "refinement": 9.0, "features": 9.0})

    assert score_point(truth, [took(7.0), took(0.5), took(1.0)])["seconds"] == "1.0000"
