import os

import pytest

from promerge_d2.pseudo_labels import list_images
from promerge_d2.utils.errors import UserError


@pytest.fixture
def photos(tmp_path):
    for name in ("b.jpg", "a.PNG", "deep/er/c.webp", "deep/a.jpg", "notes.txt", "deep/d.jpg.bak"):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return tmp_path / "photos"


def test_a_folder_is_searched_at_any_depth(photos):
    found = list_images(photos)
    assert found.root == photos
    assert found.names == ("a.PNG", "b.jpg", "deep/a.jpg", "deep/er/c.webp")
    assert found.path("deep/a.jpg") == photos / "deep" / "a.jpg"


def test_a_list_counts_from_its_own_folder(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(os.sep)
    listing = tmp_path / "list.txt"
    listing.write_text("photos/deep/a.jpg\n\n# photos/left_out.jpg\n  photos/b.jpg  \n")
    found = list_images(listing)
    assert found.names == ("b.jpg", "deep/a.jpg")
    assert found.path("b.jpg").samefile(photos / "b.jpg")


def test_a_list_may_hold_absolute_paths_and_missing_files(photos, tmp_path):
    listing = tmp_path / "list.txt"
    listing.write_text(f"{photos}/deep/gone.jpg\n{photos}/a.PNG\n")
    found = list_images(listing)
    assert found.names == ("a.PNG", "deep/gone.jpg")


def test_a_list_written_by_notepad_has_a_byte_order_mark(photos):
    listing = photos / "list.txt"
    listing.write_bytes("\ufeffb.jpg\r\ndeep/a.jpg\r\n".encode())
    assert list_images(listing).names == ("b.jpg", "deep/a.jpg")


def test_a_list_that_is_no_text_is_refused(photos):
    listing = photos / "list.txt"
    listing.write_bytes(b"caf\xe9.jpg\n")
    with pytest.raises(UserError, match=r"list\.txt is not UTF-8 text: .*save it as UTF-8"):
        list_images(listing)


def test_globs(photos, monkeypatch):
    assert list_images(f"{photos}/*").names == ("a.PNG", "b.jpg")
    everything = list_images(f"{photos}/**/*")
    assert everything.names == list_images(photos).names
    below = list_images(f"{photos}/deep/**/*.*")
    assert below.names == ("a.jpg", "er/c.webp")  # their common folder is photos/deep
    monkeypatch.chdir(photos)
    assert list_images("**/a.*").names == ("a.PNG", "deep/a.jpg")


def test_one_image(photos):
    found = list_images(photos / "deep" / "a.jpg")
    assert (found.root, found.names) == (photos / "deep", ("a.jpg",))


@pytest.mark.parametrize(
    ("lines", "twice"),
    [("b.jpg\na.PNG\nb.jpg\n", "b.jpg"), ("deep/../b.jpg\n./b.jpg\n", "b.jpg")],
)
def test_duplicates_are_refused(photos, lines, twice):
    listing = photos / "list.txt"
    listing.write_text(lines)
    with pytest.raises(UserError, match=rf"list\.txt names {twice} twice; list each image once"):
        list_images(listing)


def test_nothing_to_label(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match=r"the folder .*empty holds no image \(\.jpg, "):
        list_images(tmp_path / "empty")
    with pytest.raises(UserError, match=r"list\.txt names no image"):
        list_images(tmp_path / "list.txt")
    with pytest.raises(UserError, match="matches no image; put it in quotes"):
        list_images(f"{tmp_path}/*.jpg")
    with pytest.raises(UserError, match=r"the input .*gone does not exist"):
        list_images(tmp_path / "gone")
