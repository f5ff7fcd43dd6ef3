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


def test_markdown_has_the_plot(folder):
    (folder / "doc.md").write_text("<!-- merging: begin --><!-- merging: end -->")
    assert write_page(folder, "merging") == ["merging"]
    write_markdown(folder, ["merging"], folder / "doc.md")
    text = (folder / "doc.md").read_text()
    assert "(images/ablate_merging.png)" in text
    assert (folder / "images" / "ablate_merging.png").stat().st_size > 1000
    assert "|" not in text


def test_the_page_says_what_it_holds(folder):
    write_page(folder, "merging")
    page = (folder / "index.html").read_text()
    assert "Of the rows with different figures" in page
    assert "made for a test &lt;b&gt;" in page
    assert "promerge release, grid 12x10; tiny, facet key; masks of 3 images." in page
    assert "the one column that differs from run to run" in page
    assert page.count("<tr>") == 1 + 5


def test_other_plots_are_left_alone(folder):
    write_page(folder, "merging")
    (folder / "merging.png").write_bytes(b"kept")
    write_page(folder, "prompts")
    assert (folder / "merging.png").read_bytes() == b"kept"
    write_page(folder, "merging")
    assert (folder / "merging.png").stat().st_size > 1000
