"""Every format: what is exported comes back."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from promerge_d2.pseudo_labels.exporting import export_labels
from promerge_d2.pseudo_labels.formats import FORMATS
from promerge_d2.pseudo_labels.importing import import_format
from tests.pseudo_labels.formats.helpers import SCORES, content_of, images, label_file

SLOWLY = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
EXACT = sorted(set(FORMATS) - {"yolo", "rfdetr"})


def there_and_back(folder, drawn, name, **options):
    labels = label_file(folder, drawn)
    photos = {"images": "link", "image_root": folder / "photos", **options}
    exported = export_labels(labels, folder / "out", name, **photos)
    imported = import_format(folder / "out", folder / "back.json", name)
    assert imported.images == exported.images == exported.photographs == len(drawn)
    assert imported.masks == exported.masks == sum(len(masks) for _, masks in drawn)
    assert not imported.left_out.problems
    assert not exported.left_out.problems
    return exported, content_of(folder / "back.json")


@pytest.mark.parametrize("name", EXACT)
@SLOWLY
@given(drawn=images())
def test_masks_and_scores_come_back_as_they_were(name, drawn):
    with tempfile.TemporaryDirectory() as folder:
        exported, back = there_and_back(Path(folder), drawn, name)
    assert (exported.changes.masks, exported.changes.pixels) == (0, 0)
    assert set(back) == {image for image, _ in drawn}
    for image, masks in drawn:
        assert [score for _, score in back[image]] == list(SCORES[: len(masks)])
        for mask, (found, _) in zip(masks, back[image], strict=True):
            assert np.array_equal(mask, found)


@SLOWLY
@given(drawn=images())
def test_yolo_adds_bridges_and_says_how_many_pixels(drawn):
    with tempfile.TemporaryDirectory() as folder:
        exported, back = there_and_back(Path(folder), drawn, "yolo")
    more = [
        int((mask != found).sum())
        for image, masks in drawn
        for mask, (found, _) in zip(masks, back[image], strict=True)
    ]
    assert exported.changes.pixels == sum(more)
    assert exported.changes.masks == np.count_nonzero(more)
    for image, masks in drawn:
        assert {score for _, score in back[image]} <= {1.0}
        for mask, (found, _) in zip(masks, back[image], strict=True):
            assert (found >= mask).all()
