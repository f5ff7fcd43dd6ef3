import ast
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from promerge_d2.cli import command, label
from promerge_d2.cli.parser import find_config
from promerge_d2.features.weights import OFFLINE_BACKBONE, WeightsError
from promerge_d2.utils.errors import UserError
from promerge_d2.version import __version__
from tests.helpers import ROOT, photo, run_tool, save_image, use_tiny


def python(code, *options, script="promerge"):
    """Run code in a process whose program is called ``script``."""
    code = f"import sys\nsys.argv = [{script!r}, *sys.argv[1:]]\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code, *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_lists_the_commands_and_waits_for_no_library():
    done = python(
        """
import atexit
heavy = {"torch", "detectron2", "numpy", "matplotlib"}
atexit.register(lambda: print("loaded:", heavy & set(sys.modules)))
from promerge_d2.cli.command import run
run()
""",
        "--help",
    )
    assert done.returncode == 0, done.stderr
    for name in command.COMMANDS:
        assert f"\n  {name} " in done.stdout
    assert done.stdout.endswith("loaded: set()\n")


def test_what_only_reads_and_writes_files_waits_for_no_network():
    done = python("""
from promerge_d2.cli import export, import_labels, validate
print({"torch", "timm", "detectron2"} & set(sys.modules))
import promerge_d2.pseudo_labels as room
print(all(getattr(room, name).__name__ == name for name in room.__all__))
""")
    assert done.stdout == "set()\nTrue\n", done.stderr


def test_as_a_module_and_without_a_subcommand():
    call = [sys.executable, "-m", "promerge_d2"]
    told = subprocess.run([*call, "--version"], capture_output=True, text=True, cwd=ROOT)
    assert told.stdout == f"promerge_d2 {__version__}\n"
    told = subprocess.run(call, capture_output=True, text=True, cwd=ROOT)
    assert (told.returncode, told.stdout[:15]) == (0, "usage: promerge")


@pytest.mark.parametrize(("script", "waits"), [("/usr/bin/promerge", True), ("promerge.py", False)])
def test_the_command_registers_with_the_engine_and_a_script_at_once(script, waits):
    done = python(
        """
import promerge_d2
print("detectron2" not in sys.modules)
import promerge_d2.engine
from detectron2.data import DatasetCatalog
from detectron2.modeling import ROI_HEADS_REGISTRY
print("DropLossCascadeROIHeads" in ROI_HEADS_REGISTRY, "imagenet_promerge_train" in DatasetCatalog)
""",
        script=script,
    )
    assert done.stdout == f"{waits}\nTrue True\n", done.stderr


def test_every_subcommand_describes_itself():
    for name, (module, _) in command.COMMANDS.items():
        parser = command.importlib.import_module(f"promerge_d2.cli.{module}").make_parser()
        assert parser.prog == f"promerge {name}"


def test_what_follows_goes_to_the_subcommand(tmp_path):
    with pytest.raises(UserError, match=r"gone\.json"):
        command.main(["validate", str(tmp_path / "gone.json")])


@pytest.mark.parametrize("arguments", [["lable"], ["--version", "--typo"], ["--typo", "label"]])
def test_what_is_no_command_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    code, said = caught.value.code, capsys.readouterr()
    assert (code, said.out) == (0, f"promerge_d2 {__version__}\n") or (
        code == 3 and arguments[0] in said.err
    )


def test_a_missing_part_is_one_line():
    done = python(
        "sys.modules['detectron2'] = None\nfrom promerge_d2.cli.command import run\nrun()",
        *("train", "--help"),
    )
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "promerge train needs detectron2" in line
    assert "promerge env --install-detectron2" in line


@pytest.mark.parametrize("shell", command.SHELLS)
def test_completion_knows_commands_and_options(shell, capsys):
    assert command.main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert set(command.COMMANDS) == {name for name in command.COMMANDS if name in script}
    assert "retry-failed" in script  # of label


def test_a_config_is_a_file_or_one_of_the_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = ROOT / "configs" / "promerge_cascade.yaml"
    assert Path(find_config("promerge_cascade.yaml")) == shipped
    assert Path(find_config("semi_supervised/promerge_cascade_1perc.yaml")).is_file()
    Path("promerge_cascade.yaml").write_text("")
    assert find_config("promerge_cascade.yaml") == "promerge_cascade.yaml"
    assert [find_config(name) for name in ("gone.yaml", "")] == ["gone.yaml", ""]


# label with nothing but the photographs


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        save_image(Path("my photos") / f"{number}.png", photo(seed=number))
    return "my photos"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    weights = use_tiny(monkeypatch, tmp_path)
    return ["--backbone", "tiny", "--weights", str(weights), "--grid", "12", "--refine", "none"]


@pytest.mark.parametrize("gpu", [False, True])
def test_label_writes_beside_the_photographs(photos, tiny, tmp_path, capsys, monkeypatch, gpu):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert label.main([photos, *tiny]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "my photos.promerge"
    coco = json.loads((folder / "labels.json").read_text())
    assert coco["info"]["preset"] == "best"
    assert out.startswith(f"{len(coco['annotations'])} masks on 2 images: ")
    assert "no image failed" in out
    page = folder / "gallery" / "index.html"
    assert page.as_uri() in out
    assert "0.png" in page.read_text()
    assert "\nput them right: promerge studio 'my photos.promerge/labels.json'\n" in out
    (train,) = (line for line in out.splitlines() if line.startswith("train on them:  "))
    assert ("('mine',)" in train) == gpu  # the small config's own
    *_, config, key, entry = shlex.split(train.replace(" DATASETS.TRAIN \"('mine',)\"", ""))
    assert config == ("promerge_cascade.yaml" if gpu else "promerge_cascade_vit_small.yaml")
    assert key == "DATASETS.PROMERGE"
    assert ast.literal_eval(entry) == [["mine", "my photos.promerge/labels.json", "my photos"]]
    # once more: nothing is left to do, and what was written is no photograph
    assert label.main([".", "--output", "all.json", *tiny]) == 0
    names = [image["file_name"] for image in json.loads(Path("all.json").read_text())["images"]]
    assert names == ["my photos/0.png", "my photos/1.png"]
    assert "gallery" not in capsys.readouterr().out


def test_the_tool_has_the_preset_of_the_release(photos, tiny, monkeypatch):
    options = ["--input", photos, "--output", "l.json", *tiny, "--set", "stride=2"]
    assert run_tool(monkeypatch, "label_images.py", *options) == 0
    assert json.loads(Path("l.json").read_text())["info"]["preset"] == "release"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "IMAGES"),
        (["a", "--input", "b"], "IMAGES"),
    ],
)
def test_label_wants_the_images_once(arguments, named, capsys):
    with pytest.raises(SystemExit) as caught:
        label.main(arguments)
    assert caught.value.code == 3
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(("source", "named"), [("gone", "gone"), ("my photos/*.png", "--output")])
def test_label_names_an_input_without_a_place(photos, source, named):
    with pytest.raises(UserError, match=named):
        label.main([source])


def test_weights_that_cannot_be_fetched_leave_the_offline_ones(photos, monkeypatch, tmp_path):
    monkeypatch.setenv("PROMERGE_D2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("urllib.request.urlopen", raiser(OSError("no route to host")))
    with pytest.raises(WeightsError) as caught:
        label.main([photos])
    message = str(caught.value)
    for part in ("dino_vitb8", "no route", f"--backbone {OFFLINE_BACKBONE}", "saliency", "pip"):
        assert part in message


def raiser(error):
    def fail(*arguments, **options):
        raise error

    return fail
