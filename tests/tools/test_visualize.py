import os

import numpy as np
import pytest
from PIL import Image

from tests.helpers import photo, run_tool, save_image, use_tiny

FAST = ["--grid", "12", "--refine", "none"]


@pytest.fixture
def draw(tmp_path, monkeypatch, capsys):
    """``draw([image, ...], output, ...)``: exit code, standard output, standard error."""
    weights = use_tiny(monkeypatch, tmp_path)

    def run(images, output, *more):
        capsys.readouterr()
        how = ["--output", output, "--backbone", "tiny", "--weights", weights, *FAST]
        code = run_tool(monkeypatch, "visualize.py", "--stages", *images, *how, *more)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def photos(tmp_path):
    return [
        save_image(tmp_path / "photos" / f"{name}.png", photo(seed=seed))
        for seed, name in enumerate("ab")
    ]


def test_one_image_to_one_file(draw, photos, tmp_path):
    file = tmp_path / "made" / "on the way" / "sheet.png"
    code, out, _ = draw(photos[:1], file, "--set", "stride=2")
    assert code == 0
    assert out == f"1 mask: {file}\n"
    with Image.open(file) as picture:
        assert picture.format == "PNG"
        assert picture.size[0] > 2000
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 1000
    first = file.read_bytes()
    draw(photos[:1], file, "--set", "stride=2")
    assert file.read_bytes() == first
    draw(photos[:1], file, "--set", "stride=3")
    assert file.read_bytes() != first


def test_a_name_that_is_not_utf8(draw, tmp_path):
    image = save_image(tmp_path / os.fsdecode(b"caf\xe9.png"), photo())
    code, _, err = draw([image], tmp_path / "sheet.png")
    assert code == 0, err


def test_several_images_to_a_folder(draw, photos, tmp_path):
    code, out, _ = draw(photos, tmp_path / "sheets")
    assert code == 0
    assert sorted(p.name for p in (tmp_path / "sheets").iterdir()) == ["a.png.png", "b.png.png"]
    assert [line.split(": ")[1] for line in out.splitlines()] == [
        str(tmp_path / "sheets" / name) for name in ("a.png.png", "b.png.png")
    ]


def test_the_other_labeler(draw, photos, tmp_path):
    draw(photos[:1], tmp_path / "promerge.png")
    code, out, _ = draw(photos[:1], tmp_path / "maskcut.png", "--preset", "maskcut")
    assert code == 0
    assert out.endswith(f": {tmp_path / 'maskcut.png'}\n")
    with (
        Image.open(tmp_path / "promerge.png") as nine,
        Image.open(tmp_path / "maskcut.png") as four,
    ):
        assert four.size[0] < nine.size[0]  # four panels are one row
        assert four.size[1] < nine.size[1]


def test_an_image_without_masks_says_why(draw, photos, tmp_path):
    code, out, _ = draw(photos[:1], tmp_path / "a.png", "--set", "tau_f=-1")
    assert code == 0
    first, why = out.splitlines()
    assert first == f"0 masks: {tmp_path / 'a.png'}"
    assert "all_pruned" in why
    assert (tmp_path / "a.png").exists()


def test_unreadable_images_are_named_and_the_others_drawn(draw, photos, tmp_path):
    (tmp_path / "text.jpg").write_text("this is a text\n")
    images = [tmp_path / "gone.jpg", photos[0], tmp_path / "text.jpg", photos[1]]
    code, out, err = draw(images, tmp_path / "sheets")
    assert code == 2
    assert sorted(p.name for p in (tmp_path / "sheets").iterdir()) == ["a.png.png", "b.png.png"]
    *_, count, gone, text = out.splitlines()
    assert count == "2 images failed:"
    assert gone == f"  cannot read the image {tmp_path / 'gone.jpg'}: No such file or directory"
    assert text.startswith(f"  cannot read the image {tmp_path / 'text.jpg'}: cannot identify")
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("sheets.png", "sheets.png"),
        ("sheets.jpg", "sheets.jpg"),
        ("file/sheets", "file"),
        ("file", "file"),
    ],
)
def test_places_that_cannot_be_written_are_refused(draw, photos, tmp_path, output, message):
    (tmp_path / "file").write_text("in the way")
    code, out, err = draw(photos, tmp_path / output)
    assert code == 3
    assert message in err
    assert out == ""
    assert (tmp_path / "file").read_text() == "in the way"


def test_images_of_one_name_are_refused(draw, photos, tmp_path):
    twin = save_image(tmp_path / "other" / "a.png", photo())
    code, _, err = draw([*photos, twin], tmp_path / "sheets")
    assert code == 3
    assert str(tmp_path / "sheets" / "a.png.png") in err
    assert not (tmp_path / "sheets").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "tau_bb=0.3"], "tau_bb"),
        (["--preset", "relase"], "relase"),
    ],
)
def test_misspelt_requests_are_refused(draw, photos, tmp_path, more, message):
    code, out, err = draw(photos, tmp_path / "sheets", *more)
    assert code == 3
    assert message in err
    assert out == ""
