import gzip
import io
import json
import os
import tarfile

import pytest
from matplotlib.figure import Figure
from PIL import Image

from promerge_d2.pseudo_labels import list_images
from promerge_d2.pseudo_labels.inputs import find_image
from promerge_d2.utils.errors import UserError
from promerge_d2.visualization.figures import save_figure
from promerge_d2.visualization.overlay import is_drawing
from tests.helpers import photo
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
    assert found.root / "deep/a.jpg" == photos / "deep" / "a.jpg"


def test_a_list_counts_from_its_own_folder(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(os.sep)
    listing = tmp_path / "list.txt"
    listing.write_text("photos/deep/a.jpg\n\n# photos/left_out.jpg\n  photos/b.jpg  \n")
    found = list_images(listing)
    assert found.names == ("b.jpg", "deep/a.jpg")
    assert (found.root / "b.jpg").samefile(photos / "b.jpg")


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
    with pytest.raises(UserError, match=r"list\.txt .*UTF-8"):
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
    with pytest.raises(UserError, match=rf"list\.txt .*{twice}"):
        list_images(listing)


def test_nothing_to_label(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match=r"empty .*\.jpg"):
        list_images(tmp_path / "empty")
    with pytest.raises(UserError, match=r"list\.txt"):
        list_images(tmp_path / "list.txt")
    with pytest.raises(UserError, match=r"\*\.jpg"):
        list_images(f"{tmp_path}/*.jpg")
    with pytest.raises(UserError, match=r"gone\b"):
        list_images(tmp_path / "gone")


# What is found, and what is left out


def test_folders_behind_links_are_searched_and_loops_are_harmless(photos, tmp_path, caplog):
    (tmp_path / "elsewhere" / "below").mkdir(parents=True)
    (tmp_path / "elsewhere" / "below" / "e.jpg").write_bytes(b"x")
    (photos / "a_link").symlink_to(tmp_path / "elsewhere")
    (photos / "b_link").symlink_to(photos / "deep")  # its photographs are there already
    (tmp_path / "elsewhere" / "loop").symlink_to(photos)
    (photos / "deep" / "loop").symlink_to(".")
    expected = ("a.PNG", "a_link/below/e.jpg", "b.jpg", "deep/a.jpg", "deep/er/c.webp")
    assert list_images(photos).names == expected
    assert "3 links to folders that are searched already" in caplog.text
    assert list_images(f"{photos}/**/*.*").names == expected


def save(path, format_="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo(8, 8, (0, 0, 4, 4))).save(path, format=format_)


def test_images_of_all_kinds_are_found_and_what_is_left_out_is_said(tmp_path, caplog):
    folder = tmp_path / "photos"
    save(folder / "a.avif", "AVIF")
    save(folder / "b.jfif", "JPEG")
    save(folder / "without", "JPEG")
    save(folder / "._x.jpg")
    save(folder / ".ipynb_checkpoints" / "x.jpg")
    for name in ("c.heic", "notes.txt", "more.txt", "README"):
        (folder / name).write_text("text")
    assert list_images(folder).names == ("a.avif", "b.jfif", "without")
    (message,) = [m for m in caplog.messages if m.startswith("left out of ")]
    assert set(message.partition(": ")[2].split(", ")) == {
        *("1 hidden folders", "1 hidden files", "1 files .heic", "2 files .txt"),
        "1 files without suffix that are no image",
    }
    caplog.clear()
    assert list_images(f"{folder}/*").names == ("a.avif", "b.jfif", "without")
    assert "2 files .txt" in caplog.text
    labels = tmp_path / "labels.json"
    assert label(tiny_labeler(), folder, labels).failures == []


def test_pictures_that_were_drawn_here_are_no_photographs(tmp_path, caplog):
    folder = save_photos(tmp_path / "photos", 3)
    label(tiny_labeler(), folder, tmp_path / "l.json", overlays=folder / "drawn")
    figure = Figure()
    save_figure(figure, folder / "figure.png")
    assert len(list((folder / "drawn").iterdir())) == 3
    assert list_images(folder).names == ("0000.png", "0001.png", "0002.png")
    assert "4 pictures that promerge_d2 drew" in caplog.text
    assert is_drawing(folder / "drawn" / "0000.png.png")
    assert not is_drawing(folder / "0000.png")


def test_brackets_and_number_signs(tmp_path):
    for name in ("[2024] trip/a.jpg", "#1.jpg", "b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert list_images(f"{tmp_path}/[2024] trip/*.jpg").names == ("a.jpg",)
    assert list_images(f"{tmp_path}/[ab].jpg").names == ("b.jpg",)
    assert list_images(f"{tmp_path}/[[]2024] trip/*.jpg").names == ("a.jpg",)
    (tmp_path / "list.txt").write_text("#1.jpg\n# a remark\nb.jpg\n")
    assert list_images(tmp_path / "list.txt").names == ("#1.jpg", "b.jpg")


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz"])
def test_compressed_tars_are_folders_too(tmp_path, suffix):
    folder = save_photos(tmp_path / "photos", 6)
    (folder / ".DS_Store").write_text("")
    (folder / "0000.json").write_text("")
    for name, mode in (("in.tar", "w"), (f"in{suffix}", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as tar:
            tar.add(folder, ".")
    found = [list_images(tmp_path / name) for name in ("in.tar", f"in{suffix}")]
    assert found[1].names == tuple(f"in{suffix}/{n:04d}.png" for n in range(6))
    for plain, packed in zip(*(images.files for images in found), strict=True):
        expected = plain.under(tmp_path).open().read()
        assert packed.under(tmp_path).open().read() == expected
        assert find_image(tmp_path, packed.name).open().read() == expected
    (tmp_path / f"in{suffix}").write_bytes((tmp_path / f"in{suffix}").read_bytes()[:-40])
    with pytest.raises(UserError, match=rf"in{suffix}"):
        list_images(tmp_path / f"in{suffix}")


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
    images = [{"id": "x", "file_name": "deep/a.jpg"}, {"id": 2**64, "file_name": "a.PNG"}]
    listing = tmp_path / "instances.json"
    listing.write_text(json.dumps({"info": {}, "images": images, "annotations": []}))
    found = list_images(listing, photos)
    assert [(file.id, file.name, file.size) for file in found.files] == [
        (2**64, "a.PNG", 1),
        ("x", "deep/a.jpg", 1),
    ]
    assert found.root == photos
    with pytest.raises(UserError, match=r"a\.PNG.*--image-root"):
        list_images(listing)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"annotations": []}, "i.json .*'images'"),
        ({"images": [{"id": [3], "file_name": "a"}]}, r"images\[0\] \(id \[3\]\)"),
        ({"images": [{"id": 1, "file_name": n} for n in "ab"]}, r"images\[1\] .id 1."),
        ({"images": [{"id": n, "file_name": "a"} for n in (1, 2)]}, r"\ba\b"),
    ],
)
def test_bad_coco_files_are_refused(tmp_path, content, message):
    (tmp_path / "i.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        list_images(tmp_path / "i.json")


def test_an_image_root_belongs_to_a_list(photos, tmp_path):
    (tmp_path / "list.txt").write_text("b.jpg\n")
    assert list_images(tmp_path / "list.txt", photos).root == photos
    with pytest.raises(UserError, match=r"\.txt or \.json"):
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
    with pytest.raises(UserError, match=r"x\.tar: .*\.tar\.gz"):
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
