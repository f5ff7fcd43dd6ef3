import io

import numpy as np
import pytest
from PIL import Image

from promerge_d2.utils.image import ImageError, load_image, resize_image


def photo(height=8, width=12, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, image, **options):
    Image.fromarray(image).save(path, **options)
    return path


def test_missing_file(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.jpg: No such file"):
        load_image(tmp_path / "gone.jpg")


def test_folder(tmp_path):
    with pytest.raises(ImageError, match=r": Is a directory"):
        load_image(tmp_path)


def test_truncated_jpeg(tmp_path):
    path = save(tmp_path / "cut.jpg", photo(200, 300))
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(ImageError, match=r"cut\.jpg: .*truncated"):
        load_image(path)


def test_truncated_jpeg_opened_by_the_caller(tmp_path):
    path = save(tmp_path / "cut.jpg", photo(200, 300))
    path.write_bytes(path.read_bytes()[:4000])
    with Image.open(path) as opened, pytest.raises(ImageError, match=r"the PIL image: .*truncated"):
        load_image(opened)


@pytest.mark.parametrize(
    "content", [b"just some text\n", b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]
)
def test_no_image_at_all(tmp_path, content):
    path = tmp_path / "text.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"text\.jpg: "):
        load_image(path)


@pytest.mark.parametrize("kind", ["path", "str", "pil", "array"])
def test_every_way_in_gives_the_same(tmp_path, kind):
    pixels = photo()
    path = save(tmp_path / "a.png", pixels)
    ways = {"path": path, "str": str(path), "pil": Image.fromarray(pixels), "array": pixels}
    loaded = load_image(ways[kind])
    assert loaded.dtype == np.uint8
    assert np.array_equal(loaded, pixels)


def test_one_pixel(tmp_path):
    path = save(tmp_path / "dot.png", np.array([[[1, 2, 3]]], np.uint8))
    assert load_image(path).tolist() == [[[1, 2, 3]]]


def test_grey_and_grey_with_alpha(tmp_path):
    grey = photo()[..., 0]
    path = save(tmp_path / "grey.png", grey)
    assert np.array_equal(load_image(path), np.repeat(grey[..., None], 3, axis=2))
    alpha = np.stack([grey, np.zeros_like(grey)], axis=2)
    Image.fromarray(alpha, "LA").save(tmp_path / "la.png")
    assert np.array_equal(load_image(tmp_path / "la.png"), np.repeat(grey[..., None], 3, axis=2))


def test_one_bit(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bit.png")
    assert load_image(tmp_path / "bit.png").tolist() == [[[255] * 3, [0] * 3]]


def test_alpha_is_dropped_not_blended(tmp_path):
    rgba = np.dstack([photo(), np.zeros((8, 12), np.uint8)])
    Image.fromarray(rgba, "RGBA").save(tmp_path / "rgba.png")
    assert np.array_equal(load_image(tmp_path / "rgba.png"), rgba[..., :3])


@pytest.mark.parametrize("transparent", [False, True])
def test_palette(tmp_path, transparent):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", **({"transparency": 1} if transparent else {}))
    assert load_image(tmp_path / "p.png").tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_cmyk(tmp_path):
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    inks.save(tmp_path / "cmyk.jpg", quality=95)
    loaded = load_image(tmp_path / "cmyk.jpg")
    assert loaded.shape == (16, 16, 3)
    assert np.abs(loaded.astype(int) - [255, 0, 0]).max() <= 4


def test_sixteen_bits_are_scaled(tmp_path):
    values = np.array([[0, 128, 129, 257, 32768, 65278, 65407, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    loaded = load_image(tmp_path / "deep.png")
    assert loaded[0, :, 0].tolist() == [0, 0, 1, 1, 128, 254, 255, 255]
    assert (loaded == loaded[..., :1]).all()


def test_samples_of_unknown_range_are_refused(tmp_path):
    Image.fromarray(np.array([[70000]], np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(ImageError, match=r"i\.tif .*65535"):
        load_image(tmp_path / "i.tif")
    Image.fromarray(np.array([[0.5]], np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ImageError, match=r"f\.tif .*floating-point"):
        load_image(tmp_path / "f.tif")


def oriented(path, orientation):
    """A JPEG of four flat quarters, all of other colours, with an EXIF orientation."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :24] = (250, 0, 0)
    pixels[:16, 24:] = (0, 250, 0)
    pixels[16:, :24] = (0, 0, 250)
    pixels[16:, 24:] = (250, 250, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, quality=95, subsampling=0)
    return path


UPRIGHT = {  # what has to be done with the stored rows, by the EXIF standard
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations(tmp_path, orientation):
    path = oriented(tmp_path / "turned.jpg", orientation)
    with Image.open(path) as opened:
        stored = np.array(opened)
        from_pil = load_image(opened)
    loaded = load_image(path)
    assert np.array_equal(loaded, UPRIGHT[orientation](stored))
    assert np.array_equal(from_pil, loaded)
    assert np.array_equal(load_image(path, apply_exif=False), stored)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_as_detectron2_shows_it(tmp_path, orientation):
    detection_utils = pytest.importorskip("detectron2.data.detection_utils")
    path = oriented(tmp_path / "turned.jpg", orientation)
    shown = detection_utils.read_image(str(path), format="RGB")
    assert np.array_equal(load_image(path), shown)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK"])
def test_modes_as_detectron2_shows_them(tmp_path, mode):
    detection_utils = pytest.importorskip("detectron2.data.detection_utils")
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(photo(20, 30)).convert(mode).save(path)
    assert np.array_equal(load_image(path), detection_utils.read_image(str(path), format="RGB"))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12"])
def test_broken_exif_is_no_obstacle(tmp_path, exif):
    pixels = photo(16, 16)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as opened:
        stored = np.array(opened)
    assert np.array_equal(load_image(tmp_path / "a.jpg"), stored)


def test_panorama(tmp_path):
    pixels = np.zeros((40, 12000, 3), np.uint8)
    pixels[:, 6000:] = 200
    path = save(tmp_path / "wide.png", pixels)
    loaded = load_image(path)
    assert loaded.shape == (40, 12000, 3)
    squashed = resize_image(loaded, 16, 16)
    assert squashed.shape == (16, 16, 3)
    assert squashed[:, :5].max() <= 1  # Lanczos rings a little
    assert squashed[:, 11:].min() >= 199


def test_large_images_are_read_without_a_warning(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = save(tmp_path / "large.png", photo(10, 15))  # over the warning, under the bomb
    assert load_image(path).shape == (10, 15, 3)
    assert not [w for w in recwarn if issubclass(w.category, Image.DecompressionBombWarning)]
    path = save(tmp_path / "bomb.png", photo(20, 15))
    with pytest.raises(ImageError, match=r"bomb\.png: "):
        load_image(path)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.int64),
    ],
)
def test_arrays_of_another_form(array):
    with pytest.raises(ImageError) as caught:
        load_image(array)
    assert f"(H, W, 3) uint8, not {array.shape} {array.dtype}" in str(caught.value)


def test_resize_is_lanczos_and_leaves_fitting_images_alone():
    pixels = photo(9, 14)
    assert resize_image(pixels, 9, 14) is pixels
    resized = resize_image(pixels, 5, 20)
    expected = Image.fromarray(pixels).resize((20, 5), Image.Resampling.LANCZOS)
    assert np.array_equal(resized, np.asarray(expected))


def test_stream_is_not_a_path_but_a_pil_image_of_it_is_fine():
    stream = io.BytesIO()
    Image.fromarray(photo()).save(stream, "PNG")
    stream.seek(0)
    assert np.array_equal(load_image(Image.open(stream)), photo())
