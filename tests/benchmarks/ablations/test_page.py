import re

import pytest

from benchmarks.ablations.page import write_markdown, write_page
from benchmarks.ablations.results import Results
from benchmarks.ablations.sweep import FIGURES

RUN = {
    "labeler": "promerge",
    "preset": "release",
    "settings": {"grid": (12, 10)},
    "backbone": {"name": "tiny", "facet": "key"},
    "description": "made for a test <b>",
    "data": {"images": 3, "iou_type": "segm"},
}


@pytest.fixture
def folder(tmp_path):
    """The table of ``merging``: 5x5 points, whose figures follow from the first column alone."""
    results = Results(tmp_path, "merging", RUN)
    for ioa in range(5):
        for feature in range(5):
            figures = {name: "" if name == "precision" else f"{ioa}.1234" for name in FIGURES}
            figures["seconds"] = f"0.{feature}"
            results.add({"tau_merge_ioa": f"0.{ioa}", "tau_merge_f": f"0.{feature}", **figures})
    return tmp_path


def test_markdown_leaves_a_long_table_to_its_plot(folder):
    (folder / "doc.md").write_text("<!-- merging: begin --><!-- merging: end -->")
    assert write_page(folder, "merging") == ["merging"]
    write_markdown(folder, ["merging"], folder / "doc.md")
    text = (folder / "doc.md").read_text()
    assert "promerge release, grid 12x10; tiny, facet key; masks of 3 images." in text
    assert "(images/ablate_merging.png)" in text
    assert (folder / "images" / "ablate_merging.png").stat().st_size > 1000
    assert "|" not in text


def test_markdown_has_the_rows_of_a_short_table(tmp_path):
    results = Results(tmp_path, "prompts", RUN)
    figures = {name: "" if name == "AR100" else "1.1234" for name in FIGURES}
    for stride in range(2, 12):
        results.add({"stride": str(stride), "prompts": "9", **figures})
    (tmp_path / "doc.md").write_text("<!-- prompts: begin --><!-- prompts: end -->")
    write_page(tmp_path, "prompts")
    write_markdown(tmp_path, ["prompts"], tmp_path / "doc.md")
    text = (tmp_path / "doc.md").read_text()
    rows = re.findall(r"^\| (\d+) \| 9 \| (\S+) \|", text, re.MULTILINE)
    assert rows == [(str(stride), "1.12") for stride in range(2, 12)]
    assert "| – |" in text  # the empty AR100
    assert re.search(
        r"^\| stride \| prompts \| masks \| empty \| AP \| AR100 \| seconds\* \|$", text, re.M
    )


def test_the_page_says_what_it_holds(folder):
    write_page(folder, "merging")
    page = (folder / "index.html").read_text()
    assert "Of the rows with different figures" in page
    assert "made for a test &lt;b&gt;" in page
    assert "the one column that differs from run to run" in page
    assert page.count("<tr>") == 1 + 5


def test_other_plots_are_left_alone(folder):
    write_page(folder, "merging")
    (folder / "merging.png").write_bytes(b"kept")
    write_page(folder, "prompts")
    assert (folder / "merging.png").read_bytes() == b"kept"
    write_page(folder, "merging")
    assert (folder / "merging.png").stat().st_size > 1000
