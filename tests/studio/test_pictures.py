"""Thumbnails: upright, made once, and of nothing outside the folder."""

import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from promerge_d2.studio.pictures import PictureMissing, Pictures
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.image import ImageError
from tests.helpers import exif_of, photo, save_image


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "photos").mkdir()
    return Pictures(tmp_path / "photos", tmp_path / "small")


def test_upright_and_no_larger_than_asked(pictures):
    pixels = photo(400, 1000, (0, 0, 500, 400))  # bright on the left
    save_image(pictures.root / "turned.jpg", pixels, exif=exif_of(6))  # a quarter, clockwise
    with Image.open(pictures.jpeg("turned.jpg", "small")) as small:
        assert small.size == (144, 360)
        bright = np.asarray(small).mean(axis=(1, 2))
    assert bright[:150].min() > 200 > 60 > bright[210:].max()
    with Image.open(pictures.jpeg("turned.jpg", "large")) as large:
        assert large.size == (400, 1000)  # as it is


def test_made_once_until_the_photograph_changes(pictures, monkeypatch):
    file = save_image(pictures.root / "a.png", photo(seed=1))
    first = pictures.jpeg("a.png", "small")
    with monkeypatch.context() as patch:
        patch.setattr(Pictures, "_make", None)
        assert pictures.jpeg("a.png", "small") == first
    save_image(file, photo(seed=2))
    os.utime(file, ns=(1, 1))
    assert pictures.jpeg("a.png", "small") != first


def test_of_a_tar(pictures, tmp_path):
    file = save_image(tmp_path / "b.png", photo())
    with tarfile.open(pictures.root / "x.tar", "w") as tar:
        tar.add(file, "b.png")
    with Image.open(pictures.jpeg("x.tar/b.png", "small")) as small:
        assert small.size == (144, 96)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "a/../../secret.png", "C:\\x"])
def test_nothing_outside_the_folder(pictures, tmp_path, name):
    save_image(tmp_path / "secret.png", photo())
    with pytest.raises(UserError, match="leads out of the image folder"):
        pictures.jpeg(name, "small")


def test_missing_or_broken(pictures):
    with pytest.raises(PictureMissing, match=r"none\.jpg"):
        pictures.jpeg("none.jpg", "small")
    (pictures.root / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        pictures.jpeg("broken.jpg", "small")
