import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, features

from promerge_d2.utils.image import ImageError, image_size, load_image, resize_image
from tests.helpers import exif_of, stored_pixels


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


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize(
    ("samples", "wanted"),
    [
        ([0, 100, 255], [0, 100, 255]),  # 8 bits in more
        ([0, 1, 90], [0, 1, 90]),
        ([0, 256, 512, 1023], [0, 64, 128, 255]),  # 10 bits: 63.8, 127.6
        ([0, 1000, 4000], [0, 62, 249]),  # 12 bits: 62.3, 249.1
        ([0, 8192, 16383], [0, 128, 255]),  # 14 bits: 127.5
        ([0, 32768, 65535], [0, 128, 255]),  # 16 bits
    ],
)
def test_samples_are_scaled_by_what_they_hold(tmp_path, dtype, samples, wanted):
    path = tmp_path / "deep.tif"
    Image.fromarray(np.array([samples], dtype)).save(path)
    loaded = load_image(path)
    assert loaded.dtype == np.uint8
    assert loaded[0].tolist() == [[value] * 3 for value in wanted]
    with Image.open(path) as opened:
        assert np.array_equal(load_image(opened), loaded)


def test_floats_up_to_one_are_shares(tmp_path):
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)).save(tmp_path / "f.tif")
    assert load_image(tmp_path / "f.tif")[0, :, 0].tolist() == [0, 128, 255]
    Image.fromarray(np.array([[0.0, 0.5, 255.4]], np.float32)).save(tmp_path / "f.tif")
    assert load_image(tmp_path / "f.tif")[0, :, 0].tolist() == [0, 0, 64]  # of 10 bits


def save_deep(path, rgb, compression=1):
    """Write (H, W, 3 or 4) uint16 RGB, which Pillow cannot."""
    order = [2, 1, 0, 3][: rgb.shape[2]]
    tiff = [cv2.IMWRITE_TIFF_COMPRESSION, compression] if path.suffix == ".tif" else []
    assert cv2.imwrite(str(path), rgb[..., order], tiff)
    return path


@pytest.mark.parametrize(
    ("name", "compression"), [("d.png", 1), ("d.tif", 1), ("lzw.tif", 5), ("zip.tif", 8)]
)
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("top", [255, 4095, 65535])
def test_deep_colours_are_scaled_by_what_they_hold(tmp_path, name, compression, channels, top):
    samples = np.random.default_rng(0).integers(0, top + 1, (8, 12, channels)).astype(np.uint16)
    samples[0, 0, :3] = 0, 1, top
    path = save_deep(tmp_path / name, samples, compression)
    loaded = load_image(path)
    assert np.array_equal(loaded, np.floor(samples[..., :3] * (255 / top) + 0.5))
    with Image.open(path) as opened:
        assert np.array_equal(load_image(opened), loaded)


def deep_tiff(rgb, orientation, order):
    """Bytes of a TIFF of (H, W, 3) uint16 RGB, in the order of bytes ``<`` or ``>``."""
    height, width, _ = rgb.shape
    data = rgb.astype(order + "u2").tobytes()
    bits = struct.pack(order + "3H", 16, 16, 16)
    entries = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2)),
        *((273, 4, 1, 14), (274, 3, 1, orientation), (277, 3, 1, 3), (278, 4, 1, height)),
        (279, 4, 1, len(data)),
    ]
    content = struct.pack(order + "HI", 42, 14 + len(data)) + bits + data
    content += struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        short = kind == 3 and count == 1
        packed = struct.pack(order + ("HH" if short else "I"), *([value, 0] if short else [value]))
        content += struct.pack(order + "HHI", tag, kind, count) + packed
    return {"<": b"II", ">": b"MM"}[order] + content + bytes(4)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_colours_are_turned_too(tmp_path, orientation, order):
    upright = np.random.default_rng(0).integers(0, 4096, (8, 12, 3)).astype(np.uint16)
    upright[0, 0, 0] = 4095
    path = tmp_path / "deep.tif"
    path.write_bytes(deep_tiff(stored_pixels(upright, orientation), orientation, order))
    assert np.array_equal(load_image(path), np.floor(upright * (255 / 4095) + 0.5))
    assert image_size(path) == (12, 8)


@pytest.mark.parametrize(("top", "read"), [(65535, True), (4095, False)])
def test_deep_grey_with_alpha_is_read_where_its_higher_bytes_tell(tmp_path, top, read):
    # a PNG of grey with alpha, 16 bits each, all of one value
    row = b"\0" + struct.pack(">2H", top, 65535) * 3
    chunks = [
        (b"IHDR", struct.pack(">2I5B", 3, 1, 16, 4, 0, 0, 0)),
        (b"IDAT", zlib.compress(row)),
        (b"IEND", b""),
    ]
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        checked = struct.pack(">I", zlib.crc32(kind + data))
        content += struct.pack(">I", len(data)) + kind + data + checked
    (tmp_path / "la.png").write_bytes(content)
    if read:
        assert load_image(tmp_path / "la.png").tolist() == [[[255] * 3] * 3]
    else:
        with pytest.raises(ImageError, match=r"la\.png has LA samples of 16 bits"):
            load_image(tmp_path / "la.png")


@pytest.mark.parametrize(
    "samples",
    [
        np.array([[70000]], np.int32),
        np.array([[-1, 5]], np.int32),
        np.array([[-0.5, 0.5]], np.float32),
        np.array([[1e6]], np.float32),
        np.array([[np.nan, 0.5]], np.float32),
        np.array([[np.inf]], np.float32),
    ],
)
def test_samples_of_unknown_range_are_refused(tmp_path, samples):
    Image.fromarray(samples).save(tmp_path / "deep.tif")
    with pytest.raises(ImageError, match=r"deep\.tif .*65535"):
        load_image(tmp_path / "deep.tif")


FORMATS = {
    "a.jpg": {"quality": 95, "subsampling": 0},
    "a.png": {},
    "a.webp": {"lossless": True},
    "a.tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    **({"a.avif": {"quality": 100, "subsampling": "4:4:4"}} if features.check("avif") else {}),
}


def oriented(path, orientation):
    """A photograph of four flat quarters, all of other colours, with an EXIF orientation.

    Returns the file and the upright pixels.
    """
    upright = np.zeros((32, 48, 3) if orientation < 5 else (48, 32, 3), np.uint8)
    middle = upright.shape[0] // 2, upright.shape[1] // 2
    upright[: middle[0], : middle[1]] = (250, 0, 0)
    upright[: middle[0], middle[1] :] = (0, 250, 0)
    upright[middle[0] :, : middle[1]] = (0, 0, 250)
    upright[middle[0] :, middle[1] :] = (250, 250, 0)
    stored = stored_pixels(upright, orientation)
    assert stored.shape == (32, 48, 3)
    Image.fromarray(stored).save(path, exif=exif_of(orientation), **FORMATS[path.name])
    return path, upright


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright_once(tmp_path, name, orientation):
    path, upright = oriented(tmp_path / name, orientation)
    loss = 4 if name in ("a.jpg", "a.avif") else 0
    loaded = load_image(path)
    assert loaded.shape == upright.shape
    assert np.abs(loaded.astype(int) - upright).max() <= loss
    assert image_size(path) == (upright.shape[1], upright.shape[0])
    with open(path, "rb") as stream:
        assert image_size(stream) == image_size(path)
    with Image.open(path) as opened:
        assert np.array_equal(load_image(opened), loaded)
    with Image.open(path) as opened:
        opened.load()
        assert np.array_equal(load_image(opened), loaded)
    stored = load_image(path, apply_exif=False)
    assert np.array_equal(stored, stored_pixels(loaded, orientation))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_samples_are_turned_too(tmp_path, orientation):
    upright = np.array([[0, 1000, 4095], [4095, 4095, 0]], np.uint16)
    stored = np.ascontiguousarray(stored_pixels(upright[:, :, None], orientation)[:, :, 0])
    Image.fromarray(stored).save(tmp_path / "deep.tif", exif=exif_of(orientation))
    wanted = [[0, 62, 255], [255, 255, 0]]
    assert load_image(tmp_path / "deep.tif")[:, :, 0].tolist() == wanted
    with Image.open(tmp_path / "deep.tif") as opened:
        assert load_image(opened)[:, :, 0].tolist() == wanted
    assert image_size(tmp_path / "deep.tif") == (3, 2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_as_detectron2_shows_it(tmp_path, orientation):
    detection_utils = pytest.importorskip("detectron2.data.detection_utils")
    path, _ = oriented(tmp_path / "a.jpg", orientation)
    shown = detection_utils.read_image(str(path), format="RGB")
    assert np.array_equal(load_image(path), shown)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK"])
def test_modes_as_detectron2_shows_them(tmp_path, mode):
    detection_utils = pytest.importorskip("detectron2.data.detection_utils")
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(photo(20, 30)).convert(mode).save(path)
    assert np.array_equal(load_image(path), detection_utils.read_image(str(path), format="RGB"))


def directory(*entries):
    """EXIF of little-endian entries (tag, type, count, four bytes of value)."""
    packed = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4)


SHORT, ASCII, RATIONAL, TURNED = 3, 2, 5, (0x0112, 3, 1, b"\x06")
BROKEN = {
    "garbage": (b"Exif\0\0garbage", False),
    "cut": (b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12", False),
    "out of range": (directory((0x0112, SHORT, 1, b"\x09")), False),
    "zero": (directory((0x0112, SHORT, 1, b"\0")), False),
    "text": (directory((0x0112, ASCII, 2, b"6\0")), False),
    "nowhere": (directory((0x0112, RATIONAL, 1, b"\xff\xff\xff\x7f")), False),
    # an orientation can be read all the same: turned, as detectron2 does
    "two values": (directory((0x0112, SHORT, 2, b"\x06\0\x06\0")), True),
    "another tag": (directory((0x0100, SHORT, 1, b"\xff\xff"), TURNED), True),
    "a type": (directory(TURNED, (0x0213, ASCII, 4, b"abc\0")), True),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_broken_exif_is_no_obstacle(tmp_path, name, kind):
    detection_utils = pytest.importorskip("detectron2.data.detection_utils")
    exif, turned = BROKEN[kind]
    path = tmp_path / name
    Image.fromarray(photo(16, 24)).save(path, exif=exif, **FORMATS[name])
    with Image.open(path) as opened:
        stored = np.array(opened.convert("RGB"))
    wanted = np.rot90(stored, -1) if turned else stored
    assert np.array_equal(load_image(path), wanted)
    assert np.array_equal(detection_utils.read_image(str(path), "RGB"), wanted)
    assert image_size(path) == (wanted.shape[1], wanted.shape[0])


@pytest.mark.parametrize("value", [0, 9, 300])
def test_an_orientation_out_of_range_turns_no_tiff(tmp_path, value):
    pixels = photo(16, 24)
    save(tmp_path / "a.tif", pixels, exif=exif_of(value))
    assert np.array_equal(load_image(tmp_path / "a.tif"), pixels)
    assert image_size(tmp_path / "a.tif") == (24, 16)


@pytest.mark.parametrize("content", [b"just some text\n", b"", b"II*\0\x08\0\0\0\0\0"])
def test_no_size(tmp_path, content):
    (tmp_path / "no.tif").write_bytes(content)
    with pytest.raises(ImageError, match=r"no\.tif"):
        image_size(tmp_path / "no.tif")


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


def mutated(content, rng):
    """A file's bytes with a few changed, put in, or the end cut off."""
    changed = bytearray(content)
    place = int(rng.integers(len(changed)))
    match rng.integers(3):
        case 0:
            return bytes(changed[:place])
        case 1:
            changed[place:place] = rng.bytes(4)
        case _:
            for place in rng.integers(len(changed), size=4):
                changed[place] = rng.integers(256)
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMATS)
def test_broken_files_are_read_or_named(tmp_path, name):
    rng = np.random.default_rng(0)
    path, _ = oriented(tmp_path / name, 6)
    content, refused = path.read_bytes(), []
    for _ in range(60):
        path.write_bytes(mutated(content, rng))
        try:
            pixels = load_image(path)
        except ImageError as error:
            refused.append(str(error))
        else:
            assert image_size(path) == (pixels.shape[1], pixels.shape[0])
    assert refused
    assert all(str(path) in message for message in refused)
