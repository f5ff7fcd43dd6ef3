import json
import runpy
import sys

import pytest

from tests.helpers import ROOT

TOOL = ROOT / "datasets" / "prepare_coco_semi.py"


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """``draw(percentage, seed)``: exit code and the ids of the images that were kept."""
    folder = tmp_path / "coco" / "annotations"
    folder.mkdir(parents=True)
    data = {
        "images": [{"id": number, "width": 9, "height": 9} for number in range(200)],
        "annotations": [{"id": n, "image_id": n // 2, "bbox": [0, 0, 2, 2]} for n in range(400)],
        "categories": [{"id": 1}, {"id": 3}],
    }
    (folder / "instances_train2017.json").write_text(json.dumps(data))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))

    def run(percentage, seed=0):
        arguments = ["--percentage", str(percentage), "--seed", str(seed)]
        monkeypatch.setattr(sys, "argv", [str(TOOL), *arguments])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(TOOL), run_name="__main__")
        file = folder / f"{percentage}perc_instances_train2017.json"
        if not file.is_file():
            return caught.value.code, None
        share = json.loads(file.read_text())
        assert share["categories"] == data["categories"]
        ids = {image["id"] for image in share["images"]}
        assert len(share["annotations"]) == 2 * len(ids)
        assert {thing["image_id"] for thing in share["annotations"]} == ids
        return caught.value.code, ids

    return run


def test_shares_are_parts_of_larger_ones(draw):
    one, ten, other = draw(1), draw(10), draw(10, seed=1)
    assert one[0] == ten[0] == 0
    assert (len(one[1]), len(ten[1])) == (2, 20)
    assert one[1] < ten[1]
    assert other[1] != ten[1]
    assert draw(10) == ten


@pytest.mark.parametrize("percentage", [0, 100])
def test_impossible_shares(draw, percentage):
    assert draw(percentage) == (3, None)
