import pytest

from promerge_d2.labeler import ProMergeLabeler
from tests.helpers import coco_json, photo, save_image, square, use_tiny

BOXES = ((84, 16, 120, 48), (24, 32, 60, 64), (60, 40, 96, 80))  # bright, x0 y0 x1 y1


@pytest.fixture
def tiny_labeler(monkeypatch, tmp_path):
    """``tiny_labeler(seed=0, facet=..., **settings)`` on a 12x12 grid."""

    def make(seed=0, **options):
        (tmp_path / f"weights{seed}").mkdir(exist_ok=True)
        weights = use_tiny(monkeypatch, tmp_path / f"weights{seed}", seed)
        options = {"backbone": "tiny", "weights": weights, "grid": 12, "stride": 2, **options}
        return ProMergeLabeler.from_preset("release", **options)

    return make


@pytest.fixture
def labelled(tmp_path):
    """Three photos with a bright object each; the folder, and the COCO file beside it."""
    images = []
    for number, box in enumerate(BOXES):
        save_image(tmp_path / "photos" / f"{number}.png", photo(box=box, seed=number))
        images.append((f"{number}.png", 96, 144, [square(96, 144, *box)]))
    return tmp_path / "photos", coco_json(tmp_path / "truth.json", images)
