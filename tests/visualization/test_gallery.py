"""The page is looked at in a headless Chromium where there is one."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from promerge_d2.visualization.gallery import Labelled, write_gallery
from tests.helpers import photo, square

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def page(tmp_path):
    mask = square(96, 144, 84, 16, 120, 48)
    images = [
        Labelled("a & <b>.png", photo(), [mask], [0.25]),
        Labelled("two.png", photo(), [mask, ~mask], [0.5, 0.75]),
        Labelled("unscored.png", photo(), [mask], [None]),
        Labelled("none.png", np.full((2000, 1000, 3), 90, np.uint8), [], [], "no_foreground"),
        Labelled("small.png", photo(), [], [], "small_background"),
    ]
    bars = [("0", 2), ("1-2", 30)]
    return write_gallery(tmp_path / "pages", "labels.json", ["5 images, 4 masks"], bars, images)


def test_a_picture_an_image(page):
    pictures = sorted(page.parent.glob("*.jpg"))
    assert [picture.name for picture in pictures] == [f"{n:05d}.jpg" for n in range(5)]
    with Image.open(pictures[3]) as large, Image.open(pictures[0]) as small:
        assert (large.size, small.size) == ((320, 640), (144, 96))
        plain = np.asarray(small).astype(int)
    assert abs(plain - photo()).mean() < 10


def test_masks_are_outlines_over_the_picture(tmp_path):
    hole = square(96, 144, 84, 16, 120, 48)
    hole[24:40, 96:108] = False
    small = square(96, 144, 0, 0, 4, 4)
    image = Labelled("a.png", photo(), [small, hole], [0.25, 0.5])
    text = write_gallery(tmp_path, "t", [], [], [image]).read_text()
    assert '<svg viewBox="0 0 144 96">' in text
    assert re.findall(r'data-rank="(\d)"', text) == ["0", "1"]  # the larger below
    assert re.findall("<title>(mask.*?)</title>", text) == [
        "mask 1, score 0.5",
        "mask 2, score 0.25",
    ]
    first, second = re.findall(r' d="(.*?)"', text)
    assert first.startswith("M84.5,16.5L84.5,47.5L119.5,47.5L119.5,16.5zM")
    assert first.count("M") == 2  # with the hole
    assert second == "M0.5,0.5L0.5,3.5L3.5,3.5L3.5,0.5z"


def test_bars_are_as_high_as_their_counts(page):
    bars = re.findall(
        r'<span title="(\d+) images"><i style="height: (\d+)px"></i>(.*?)<', page.read_text()
    )
    assert bars == [("2", "4", "0"), ("30", "60", "1-2")]


def test_names_are_text(page):
    text = page.read_text()
    assert "a &amp; &lt;b&gt;.png" in text
    assert "<b>.png" not in text


def shown(page, address=""):
    """What Chromium shows: the names and the count."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={page.parent}/profile", f"{page.as_uri()}{address}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    figures = re.findall(r"<figure([^>]*)>.*?<figcaption>(.*?)<br>", done.stdout, re.DOTALL)
    names = [name for attributes, name in figures if "hidden" not in attributes]
    shown.paths = len(re.findall(r"<path(?![^>]*hidden)", done.stdout))
    return names, re.search(r"<output>(.*?)</output>", done.stdout)[1]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("", ["a &amp; &lt;b&gt;.png", "two.png", "unscored.png", "none.png", "small.png"]),
        ("#reason=no_foreground", ["none.png"]),
        ("#masks=1-1", ["a &amp; &lt;b&gt;.png", "unscored.png"]),
        ("#score=0.5", ["two.png"]),
        ("#masks=0-0&reason=small_background", ["small.png"]),
    ],
)
def test_the_page_is_narrowed(page, address, names):
    assert shown(page, address) == (names, f"{len(names)} of 5 shown")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_only_the_best_masks_are_drawn(page):
    assert shown(page, "#best=1&masks=2-2")[0] == ["two.png"]
    assert shown.paths == 3  # of three pictures; the second mask of one of them is hidden
