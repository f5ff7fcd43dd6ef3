import gzip
import io
import json
import os
import tarfile

import pytest

from promerge_d2.pseudo_labels import list_images
from promerge_d2.pseudo_labels.inputs import find_image
from promerge_d2.utils.errors import UserError
from tests.pseudo_labels.helpers import label, read, save_photos, tiny_labeler


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


# COCO files, ImageNet's folders, tars


def save_tar(path, names, prefix=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in names:
            data = name.encode() * 100
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_sizes_and_ids(photos):
    files = list_images(photos).files
    assert [(file.id, file.size) for file in files] == [(1, 1), (2, 1), (3, 1), (4, 1)]
    assert files[2].under(photos) == photos / "deep" / "a.jpg"


def test_a_coco_file_keeps_its_ids(photos, tmp_path):
    images = [{"id": 70, "file_name": "deep/a.jpg"}, {"id": 9, "file_name": "a.PNG"}]
    listing = tmp_path / "instances.json"
    listing.write_text(json.dumps({"info": {}, "images": images, "annotations": []}))
    found = list_images(listing, photos)
    assert [(file.id, file.name, file.size) for file in found.files] == [
        (9, "a.PNG", 1),
        (70, "deep/a.jpg", 1),
    ]
    assert found.root == photos
    with pytest.raises(UserError, match=r"none is there, such as .*a\.PNG; say with --image-root"):
        list_images(listing)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"annotations": []}, "i.json .*'images'"),
        ({"images": [{"id": "x", "file_name": "a"}]}, "a .id 'x'. has no integer id"),
        ({"images": [{"id": 1, "file_name": n} for n in "ab"]}, r"images\[1\] .id 1."),
        ({"images": [{"id": n, "file_name": "a"} for n in (1, 2)]}, "names a twice"),
    ],
)
def test_bad_coco_files_are_refused(tmp_path, content, message):
    (tmp_path / "i.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        list_images(tmp_path / "i.json")


def test_an_image_root_belongs_to_a_list(photos, tmp_path):
    (tmp_path / "list.txt").write_text("b.jpg\n")
    assert list_images(tmp_path / "list.txt", photos).path("b.jpg") == photos / "b.jpg"
    with pytest.raises(UserError, match=r"belongs to a \.txt or \.json input"):
        list_images(photos, photos)


def test_tars_are_folders(tmp_path):
    save_tar(tmp_path / "in" / "000.tar", ["b.jpg", "b.json", "a.JPG"], "./")
    save_tar(tmp_path / "in" / "deep" / "001.tar", ["c/d.png"])
    (tmp_path / "in" / "z.jpg").write_bytes(b"x")
    found = list_images(tmp_path / "in")
    assert found.names == ("000.tar/a.JPG", "000.tar/b.jpg", "deep/001.tar/c/d.png", "z.jpg")
    with found.files[1].under(found.root).open() as opened:
        assert (opened.read(), str(opened)) == (b"b.jpg" * 100, "000.tar/b.jpg")
    assert list_images(f"{tmp_path}/in/*.tar").names == ("000.tar/a.JPG", "000.tar/b.jpg")
    assert list_images(tmp_path / "in" / "000.tar").names == ("000.tar/a.JPG", "000.tar/b.jpg")
    member = find_image(tmp_path / "in", "deep/001.tar/c/d.png")
    assert member.open().read() == b"c/d.png" * 100
    assert find_image(tmp_path / "in", "z.jpg") == tmp_path / "in" / "z.jpg"
    assert find_image(tmp_path / "in", "000.tar/q.jpg") is None
    assert find_image(tmp_path / "in", "q.jpg") is None


def test_a_broken_or_compressed_tar_is_refused(tmp_path):
    (tmp_path / "x.tar").write_bytes(gzip.compress(b"0" * 2000))
    with pytest.raises(UserError, match=r"cannot read the tar .*x\.tar: .*whole and uncompressed"):
        list_images(tmp_path)


def test_labels_of_a_tar_are_those_of_its_folder(tmp_path):
    folder = save_photos(tmp_path / "photos", 6)
    (folder / "0002.png").write_text("no image")
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)
    labeler = tiny_labeler()
    label(labeler, folder, tmp_path / "a.json")
    overlays = tmp_path / "overlays"
    summary = label(labeler, tmp_path / "in.tar", tmp_path / "b.json", overlays=overlays)
    (failure,) = summary.failures
    assert failure["file_name"] == "in.tar/0002.png"
    assert failure["error"].startswith("cannot read the image in.tar/0002.png: ")
    ours, theirs = read(tmp_path / "a.json"), read(tmp_path / "b.json")
    assert len(ours["annotations"]) == 4
    assert theirs["annotations"] == ours["annotations"]
    for image in ours["images"]:
        image["file_name"] = f"in.tar/{image['file_name']}"
    assert theirs["images"] == ours["images"]
    assert (overlays / "in.tar" / "0000.png.png").is_file()


def test_ids_of_a_coco_file_reach_the_labels(tmp_path):
    folder = save_photos(tmp_path / "photos", 2)
    images = [{"id": 40 - n, "file_name": f"{n:04d}.png"} for n in range(2)]
    (folder / "list.json").write_text(json.dumps({"images": images}))
    label(tiny_labeler(), folder / "list.json", tmp_path / "l.json")
    content = read(tmp_path / "l.json")
    assert [image["id"] for image in content["images"]] == [40, 39]
    assert [a["image_id"] for a in content["annotations"]] == [40, 39]
