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
    return write_gallery(tmp_path / "pages", "labels.json", ["5 images, 4 masks"], images)


def test_a_picture_an_image(page):
    pictures = sorted(page.parent.glob("*.jpg"))
    assert [picture.name for picture in pictures] == [f"{n:05d}.jpg" for n in range(5)]
    with Image.open(pictures[3]) as large, Image.open(pictures[0]) as small:
        assert (large.size, small.size) == ((320, 640), (144, 96))
        drawn = np.asarray(small).astype(int)
    assert abs(drawn[20:44, 90:115] - photo()[20:44, 90:115]).mean() > 10  # tinted
    assert abs(drawn[:, :70] - photo()[:, :70]).mean() < 10


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
