"""What is finished is never lost: kills, damage, other settings, other processes."""

import functools
import json
import logging
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from promerge_d2.labeler import ProMergeLabeler
from promerge_d2.pseudo_labels import (
    LocalEngine,
    label_images,
    list_images,
    merge_labels,
    parts_of,
)
from promerge_d2.pseudo_labels.store import NotFinished, Store, locked
from promerge_d2.utils.errors import UserError
from tests.helpers import photo, save_image
from tests.pseudo_labels.helpers import (
    ON_A_DEVICE,
    in_a_fork,
    label,
    read,
    save_photos,
    tiny_labeler,
    wait_until,
    whole_lines,
)


@pytest.fixture(scope="module")
def labeler():
    return tiny_labeler()


@pytest.fixture
def photos(tmp_path):
    return save_photos(tmp_path / "photos", 10)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "labels.json"


def shard_files(output, kind):
    return sorted(parts_of(output).glob(f"shard-*/*.{kind}*"))


class Counting(ProMergeLabeler):
    """Counts the images that it is asked for."""

    calls = 0

    @staticmethod
    def grid_masks(features, config):
        Counting.calls += 1
        return ProMergeLabeler.grid_masks(features, config)


@pytest.fixture
def counting():
    Counting.calls = 0
    return tiny_labeler(Counting)


def kill_after(records, labeler, photos, output):
    """Label in a process that is killed once so many more records are on disk; whether it was."""
    before = whole_lines(output)
    process = in_a_fork(lambda: label(labeler, photos, output))
    if wait_until(lambda: whole_lines(output) >= before + records, process):
        return False
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return True


# Resume


def test_records_are_whole_and_checked(labeler, photos, output):
    label(labeler, photos, output)
    (records,) = shard_files(output, "records")
    assert records.name == "0001.records"  # closed
    run = Store(parts_of(output)).manifest.run
    line = records.read_text().splitlines()[0]
    checksum, own_run, place, content = line.split(" ", 3)
    assert (len(checksum), own_run, place) == (8, run, "0")
    record = json.loads(content)
    assert (record["id"], record["file_name"], record["width"]) == (1, "0000.png", 72)
    assert record["masks"][0]["score"] == 1.0
    (times,) = shard_files(output, "times")
    assert set(json.loads(times.read_text().splitlines()[0].split(" ", 3)[3])) == {
        *("decoding", "features", "masks", "refinement", "encoding")
    }


def test_the_same_command_again_does_nothing(counting, photos, output):
    label(counting, photos, output)
    first = output.read_bytes()
    output.unlink()
    assert Counting.calls == 10
    summary = label(counting, photos, output)
    assert Counting.calls == 10
    assert output.read_bytes() == first
    assert (summary.images, summary.masks) == (10, 8)
    assert sum(summary.seconds.values()) > 0


def test_killed_again_and_again_the_bytes_are_those_of_one_run(labeler, tmp_path, output):
    photos = save_photos(tmp_path / "photos", 40)
    label(labeler, photos, tmp_path / "whole.json")
    chance = random.Random(0)
    kills = sum(kill_after(chance.randint(1, 6), labeler, photos, output) for _ in range(5))
    assert kills >= 4
    assert not output.exists()
    label(labeler, photos, output)
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()


@pytest.mark.slow
def test_twenty_kills_over_two_hundred_images(labeler, tmp_path, output):
    photos = save_photos(tmp_path / "photos", 200)
    label(labeler, photos, tmp_path / "whole.json")
    chance = random.Random(1)
    for _ in range(20):
        assert kill_after(chance.randint(0, 15), labeler, photos, output)
    assert whole_lines(output) < 200
    label(labeler, photos, output)
    compared = subprocess.run(["cmp", output, tmp_path / "whole.json"], check=False)
    assert compared.returncode == 0


def test_a_record_that_was_half_written_is_repeated(counting, photos, output, caplog):
    label(counting, photos, output)
    whole = output.read_bytes()
    (records,) = shard_files(output, "records")
    text = records.read_bytes()
    records.with_name("0001.records.open").write_bytes(text[:-20])  # as a kill leaves it
    records.unlink()
    output.unlink()
    with caplog.at_level(logging.WARNING):
        label(counting, photos, output)
    assert Counting.calls == 11
    assert output.read_bytes() == whole
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_shards_are_named_and_mended(counting, photos, output, caplog, damage):
    label(counting, photos, output)
    whole = output.read_bytes()
    (records,) = shard_files(output, "records")
    text = bytearray(records.read_bytes())
    if damage == "truncated":
        del text[-300:]
    else:
        text[len(text) // 2] ^= 4
    records.write_bytes(text)
    with pytest.raises(NotFinished) as caught:
        merge_labels(output)
    assert " of 10 images are not labelled yet: 00" in str(caught.value)
    assert f"{records}: line " in caplog.text
    assert " is damaged; it is taken for missing" in caplog.text
    missing = (parts_of(output) / "missing.txt").read_text().split()
    assert 1 <= len(missing) <= 3
    label(counting, photos, output)
    assert Counting.calls == 10 + len(missing)
    assert output.read_bytes() == whole


def test_a_run_may_go_on_in_other_shards(counting, photos, output, tmp_path):
    label(counting, photos, tmp_path / "whole.json")
    label(counting, photos, output, shard=1, shards=3)
    assert Counting.calls == 13
    assert not output.exists()
    label(counting, photos, output)
    assert Counting.calls == 20
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()


@pytest.mark.parametrize("shards", [3, 7])
def test_shards_give_the_bytes_of_one_run(labeler, photos, output, tmp_path, shards):
    label(labeler, photos, tmp_path / "whole.json")
    for shard in reversed(range(shards)):
        summary = label(labeler, photos, output, shard=shard, shards=shards)
        assert summary.images == len(range(shard, 10, shards))
        assert (parts_of(output) / f"shard-{shard}-of-{shards}" / "run.json").is_file()
    assert not output.exists()
    assert merge_labels(output).images == 10
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_missing_names_that_are_not_utf8_are_listed_as_they_are(labeler, photos, output):
    os.rename(photos / "0001.png", photos / os.fsdecode(b"0001 caf\xe9.png"))
    label(labeler, photos, output, shard=0, shards=2)
    with pytest.raises(NotFinished):
        merge_labels(output)
    assert b"0001 caf\xe9.png\n" in (parts_of(output) / "missing.txt").read_bytes()


def test_missing_shards_are_named(labeler, photos, output):
    label(labeler, photos, output, shard=0, shards=2)
    with pytest.raises(NotFinished) as caught:
        merge_labels(output)
    assert str(caught.value) == (
        "5 of 10 images are not labelled yet: 0001.png, 0003.png, 0005.png, 0007.png, 0009.png "
        f"(all in {parts_of(output)}/missing.txt); run the same labelling again"
    )
    assert caught.value.exit_code == 1


# Other settings, other images


def test_another_preset_or_backbone_is_refused(labeler, photos, output):
    label(labeler, photos, output)
    with pytest.raises(UserError) as caught:
        label(tiny_labeler(tau_b=0.3), photos, output)
    assert str(caught.value) == (
        f"{parts_of(output)} was begun otherwise: settings.tau_b was 0.2, is now 0.3; go on with "
        "what it was begun with, name another output, or delete that folder"
    )
    other = tiny_labeler()
    other.extractor.weights_sha256 = "7" * 64
    with pytest.raises(UserError, match=r"backbone\.weights_sha256 was .*, is now \"7777"):
        label(other, photos, output)


def test_another_version_is_refused(labeler, photos, output, monkeypatch):
    label(labeler, photos, output)
    monkeypatch.setattr("promerge_d2.labeler.base.__version__", "99")
    with pytest.raises(UserError, match=r'version was ".*", is now "99"'):
        label(labeler, photos, output)


def test_other_images_are_refused(labeler, photos, output, tmp_path):
    label(labeler, photos, output)
    save_image(tmp_path / "others" / "x.png", photo())
    with pytest.raises(UserError, match=r"\b1\b.*x\.png.*\b10\b"):
        label(labeler, tmp_path / "others", output)


def test_files_that_come_and_go_change_nothing_silently(labeler, photos, output, caplog):
    label(labeler, photos, output, shard=0, shards=2)  # the even ones
    save_image(photos / "00000.png", photo(seed=77))
    (photos / "0003.png").unlink()
    (photos / "0002.png").write_bytes(b"other")  # done before
    save_image(photos / "0005.png", photo(seed=5))
    summary = label(labeler, photos, output)
    assert "1 new (such as 00000.png), 1 gone (such as 0003.png), 2 changed (such as 0" in (
        caplog.text
    )
    failures = {failure["file_name"]: failure["error"] for failure in summary.failures}
    assert list(failures) == ["0003.png", "0005.png"]
    assert failures["0003.png"].endswith("No such file or directory")
    assert "0005.png has changed: it had " in failures["0005.png"]
    assert [image["id"] for image in read(output)["images"]] == [1, 2, 3, 5, 7, 8, 9, 10]


def test_the_list_is_that_of_the_manifest_while_files_come(counting, photos, output):
    images = list_images(photos)
    save_image(photos / "0000a.png", photo())
    label_images(images, output, counting, "release")
    assert [image["file_name"] for image in read(output)["images"]] == list(images.names)


def test_a_damaged_manifest_is_written_again(counting, photos, output):
    label(counting, photos, output)
    whole = output.read_bytes()
    manifest = parts_of(output) / "manifest.jsonl"
    text = bytearray(manifest.read_bytes())
    text[-5] ^= 1
    manifest.write_bytes(text)
    with pytest.raises(UserError, match=r"manifest\.jsonl"):
        label(counting, photos, output)
    manifest.unlink()
    label(counting, photos, output)
    assert Counting.calls == 10
    assert output.read_bytes() == whole


def test_records_of_another_output_are_refused(labeler, photos, output, tmp_path):
    label(labeler, photos, output)
    label(tiny_labeler(tau_b=0.3), photos, tmp_path / "other.json")
    (foreign,) = shard_files(tmp_path / "other.json", "records")
    shutil.copy(foreign, shard_files(output, "records")[0].with_name("0002.records"))
    with pytest.raises(UserError, match=r"0002\.records"):
        merge_labels(output)


def append(output, place, content, shard="shard-0-of-1"):
    """Add a record to a store by hand."""
    store = Store(parts_of(output))
    writer = store.writer(store.folder / shard)
    writer.append("records", place, content)
    writer.close()


def test_a_record_behind_the_last_image_is_refused(labeler, photos, output):
    label(labeler, photos, output)
    append(output, 10, {"id": 11, "file_name": "0010.png", "masks": []})
    with pytest.raises(UserError, match=r"0002\.records"):
        merge_labels(output)


@pytest.mark.parametrize("wrong", [{"id": 9}, {"file_name": "0002.png"}])
def test_a_record_of_another_image_in_its_place_is_refused(labeler, photos, output, wrong):
    label(labeler, photos, output)
    append(output, 3, {"id": 4, "file_name": "0003.png", "masks": [], **wrong})
    with pytest.raises(UserError) as caught:
        merge_labels(output)
    for named in (str(next(iter(wrong.values()))), "0003.png (id 4)", str(parts_of(output))):
        assert named in str(caught.value)


def test_of_two_records_the_later_counts_however_files_are_listed(
    labeler, photos, output, monkeypatch
):
    label(labeler, photos, output, shard=1, shards=2)
    label(labeler, photos, output)
    size = {"width": 72, "height": 48, "masks": []}
    append(output, 1, {"id": 2, "file_name": "0001.png", **size, "reason": "first"})
    # begun later, in a folder that sorts before
    later = {"id": 2, "file_name": "0001.png", **size, "reason": "second"}
    append(output, 1, later, shard="shard-0-of-1")
    append(output, 3, {"id": 4, "file_name": "0003.png", **size, "reason": "first"}, "shard-1-of-2")
    append(output, 3, {"id": 4, "file_name": "0003.png", **size, "reason": "second"})
    glob = Path.glob
    for reverse in (False, True):
        listed = functools.partial(sorted, reverse=reverse)
        monkeypatch.setattr(Path, "glob", lambda *a, listed=listed: iter(listed(glob(*a))))
        assert merge_labels(output).reasons["second"] == 2


# Failures


def test_failures_are_kept_and_not_tried_again_unless_asked(counting, photos, output):
    (photos / "0003.png").write_text("no image")
    for _ in range(2):
        summary = label(counting, photos, output)
        assert [failure["file_name"] for failure in summary.failures] == ["0003.png"]
        assert Counting.calls == 9
    (failures,) = shard_files(output, "failures")
    assert "cannot read the image" in failures.read_text()
    save_image(photos / "0003.png", photo())  # other bytes: taken as they are now
    summary = label(counting, photos, output, retry_failed=True)
    assert Counting.calls == 10
    assert summary.failures == merge_labels(output).failures == []
    assert read(output.with_suffix(".run.json"))["failures"] == []
    assert [image["id"] for image in read(output)["images"]] == list(range(1, 11))


def test_a_retried_failure_tells_its_new_reason(labeler, photos, output):
    (photos / "0003.png").write_text("no image")
    label(labeler, photos, output)
    (photos / "0003.png").unlink()
    summary = label(labeler, photos, output, retry_failed=True)
    assert [f["error"].rpartition(": ")[2] for f in summary.failures] == [
        "No such file or directory"
    ]


def test_tracebacks_of_surprises_are_kept(photos, output):
    class Surprised(ProMergeLabeler):
        @staticmethod
        def grid_masks(features, config):
            raise ZeroDivisionError("surprise")

    summary = label(tiny_labeler(Surprised), photos, output)
    assert len(summary.failures) == 10
    (failures,) = shard_files(output, "failures")
    assert "ZeroDivisionError: surprise" in failures.read_text()
    assert "in grid_masks" in failures.read_text()
    assert read(output)["images"] == []


# Other processes


def test_two_processes_on_one_shard(labeler, photos, output, tmp_path):
    folder = parts_of(output) / "shard-0-of-1"
    ready = tmp_path / "ready"

    def hold():
        with locked(folder / "lock", "it"):
            ready.touch()
            signal.pause()

    process = in_a_fork(hold)
    assert not wait_until(ready.exists, process)
    with pytest.raises(UserError) as caught:
        label(labeler, photos, output)
    assert str(caught.value).startswith(f"process {process} on ")
    assert f" is at work on shard 0 of 1 of {parts_of(output)}; wait" in str(caught.value)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    label(labeler, photos, output)  # the lock died with its process
    assert output.is_file()


def test_many_processes_begin_one_output(labeler, photos, output, tmp_path):
    label(labeler, photos, tmp_path / "whole.json")
    processes = [
        in_a_fork(lambda shard=shard: label(labeler, photos, output, shard=shard, shards=4))
        for shard in range(4)
    ]
    assert [os.waitpid(process, 0)[1] for process in processes] == [0] * 4
    merge_labels(output)
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()


# Signals and dead workers


@pytest.fixture
def heeded():
    """A shell's background job inherits an ignored SIGINT, which Python then leaves ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_after_the_images_in_hand(labeler, photos, output, tmp_path, number):
    label(labeler, photos, tmp_path / "whole.json")

    class Signalled(ProMergeLabeler):
        @staticmethod
        def grid_masks(features, config):
            if whole_lines(output) == 3:
                os.kill(os.getpid(), number)
            return ProMergeLabeler.grid_masks(features, config)

    with pytest.raises(NotFinished) as caught:
        label(tiny_labeler(Signalled), photos, output)
    assert str(caught.value) == (
        f"interrupted by {signal.Signals(number).name}; what is finished is kept: run the same "
        "command again"
    )
    assert whole_lines(output) == 5  # the fourth, and the fifth, which was in the network
    assert [file.name for file in shard_files(output, "records")] == ["0001.records"]
    assert read(parts_of(output) / "shard-0-of-1" / "status.json")["state"] == "stopped"
    label(labeler, photos, output)
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()


@pytest.mark.usefixtures("heeded")
def test_another_interrupt_does_not_wait(labeler, photos, output, tmp_path, capfd):
    label(labeler, photos, tmp_path / "whole.json")

    class Impatient(ProMergeLabeler):
        @staticmethod
        def grid_masks(features, config):
            if whole_lines(output) == 3:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return ProMergeLabeler.grid_masks(features, config)

    with pytest.raises(KeyboardInterrupt):
        label(tiny_labeler(Impatient), photos, output)
    assert "Ctrl-C again" in capfd.readouterr().err
    assert whole_lines(output) == 3
    label(labeler, photos, output)
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()


class DyingAtTheSixth(ProMergeLabeler):
    """Its process is ended as the kernel ends those that take too much memory."""

    calls = 0

    @staticmethod
    def grid_masks(features, config):
        DyingAtTheSixth.calls += 1
        if DyingAtTheSixth.calls == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return ProMergeLabeler.grid_masks(features, config)


@pytest.mark.slow
def test_a_run_outlives_its_workers(labeler, photos, output, tmp_path):
    label(labeler, photos, tmp_path / "whole.json")
    summary = label(tiny_labeler(DyingAtTheSixth), photos, output, engine=LocalEngine(1))
    assert summary.failures == []
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()


# Full and read-only disks


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KB; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_nothing(labeler, tmp_path, small_disk):
    photos = save_photos(tmp_path / "photos", 40)
    label(labeler, photos, tmp_path / "whole.json")
    output = small_disk / "labels.json"
    filler = small_disk / "filler"
    label(labeler, photos, output, shard=0, shards=10)
    filler.write_bytes(b"x" * 20_000)
    with pytest.raises(NotFinished) as caught:
        label(labeler, photos, output)
    assert "No space left on device; nothing that was finished is lost" in str(caught.value)
    done = whole_lines(output)
    assert done >= 4
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    label(labeler, photos, output)
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_a_read_only_disk_is_refused(labeler, tmp_path, small_disk):
    photos = save_photos(tmp_path / "photos", 3)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match=r"labels\.json: Read-only file system"):
        label(labeler, photos, small_disk / "labels.json")
    subprocess.run(["mount", "-o", "remount,rw,size=1m", str(small_disk)], check=True)
    label(labeler, photos, small_disk / "labels.json")


def test_a_line_that_does_not_fit_is_taken_back(labeler, photos, output, monkeypatch):
    real, writes = os.write, []

    def short(file, data):
        if data.startswith(b"stopping"):
            return real(file, data)
        writes.append(file)
        if len(writes) == 7:
            return real(file, data[:10])
        if len(writes) == 8:
            raise OSError(28, "No space left on device")
        return real(file, data)

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(NotFinished, match="No space left on device"):
        label(labeler, photos, output)
    monkeypatch.undo()
    (records,) = shard_files(output, "records")
    assert records.read_bytes().endswith(b"\n")
    assert whole_lines(output) == 3
    label(labeler, photos, output)
    assert [image["id"] for image in read(output)["images"]] == list(range(1, 11))


@pytest.mark.parametrize(("cls", "refine"), ON_A_DEVICE)
def test_on_a_device_killed_and_in_shards_the_bytes_are_the_same(tmp_path, cls, refine):
    """On torch's CPU device: masks must not depend on what went before."""
    devices = {"masks_device": "cpu", "refine_device": "cpu"}
    labeler = tiny_labeler(cls, refine=refine, refine_min_iou=0, **devices)
    photos = save_photos(tmp_path / "photos", 8)
    whole, output = tmp_path / "whole.json", tmp_path / "labels.json"
    label(labeler, photos, whole)
    process = in_a_fork(lambda: label(labeler, photos, output, shard=1, shards=2))
    if not wait_until(lambda: whole_lines(output) > 1, process):
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    for shard in (0, 1):
        label(labeler, photos, output, shard=shard, shards=2)
    merge_labels(output)
    assert len(read(whole)["annotations"]) > 3
    assert read(whole)["info"]["settings"].items() >= devices.items()
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "refine"), ON_A_DEVICE)
def test_on_a_device_workers_change_no_byte(tmp_path, cls, refine):
    labeler = tiny_labeler(cls, refine=refine, masks_device="cpu", refine_device="cpu")
    photos, outputs = save_photos(tmp_path / "photos", 8), []
    for workers in (0, 2):
        label(labeler, photos, tmp_path / f"{workers}.json", engine=LocalEngine(workers))
        outputs.append((tmp_path / f"{workers}.json").read_bytes())
    assert outputs[0] == outputs[1]
