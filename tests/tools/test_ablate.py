import csv
import json
import re

import pytest
from PIL import Image

from benchmarks.ablations import experiments
from promerge_d2.features import registry
from tests.helpers import (
    TINY,
    coco_json,
    photo,
    run_tool,
    save_image,
    save_random_vit,
    square,
    use_tiny,
)

NAMES = ["prompts", "filters", "tau_b", "merging", "facets", "backbones", "background"]
BOXES = ((84, 16, 120, 48), (24, 32, 60, 64))


@pytest.fixture
def ablate(monkeypatch, tmp_path, capsys):
    """``ablate(experiment, *more)``: exit code, standard output, standard error."""
    weights = use_tiny(monkeypatch, tmp_path)
    monkeypatch.setattr(experiments, "STRIDES", (2, 4))
    monkeypatch.setattr(experiments, "TAU_B", ("0.20", "0.90"))
    monkeypatch.setattr(experiments, "TAU_MERGE", ("0.50", "0.95"))
    monkeypatch.setattr(experiments, "CASES", dict(list(experiments.CASES.items())[:2]))
    images = []
    for number, box in enumerate(BOXES):
        save_image(tmp_path / "photos" / f"{number}.png", photo(box=box, seed=number))
        images.append((f"{number}.png", 96, 144, [square(96, 144, *box)]))
    coco_json(tmp_path / "truth.json", images)

    def run(name, *more, data=True, grid_only=False):
        where = ["--images", tmp_path / "photos", "--annotations", tmp_path / "truth.json"]
        code = run_tool(
            monkeypatch,
            "ablate.py",
            name,
            *(where if data else []),
            *("--output", tmp_path / "out", "--backbone", "tiny", "--weights", weights),
            *("--grid", "12", "--set", "refine=none"),
            *([] if grid_only else ["--set", "stride=2"]),
            *("--scenes", "1", "--backbones", f"tiny:{weights}", *more),
        )
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    run.weights = weights
    run.output = tmp_path / "out"
    return run


def rows_of(ablate, name):
    with open(ablate.output / f"{name}.csv") as file:
        return list(csv.DictReader(file))


def test_all_experiments_give_tables_plots_and_a_page(ablate, tmp_path):
    marks = "".join(f"## {n}\n<!-- {n}: begin -->\nold\n<!-- {n}: end -->\n" for n in NAMES[:3])
    (tmp_path / "doc.md").write_text(f"# Mine\n{marks}Kept.\n")
    code, out, _ = ablate("all", "--markdown", tmp_path / "doc.md")
    assert code == 0
    assert out == f"{ablate.output / 'index.html'}\n"
    rows = {name: rows_of(ablate, name) for name in NAMES}
    assert {name: len(found) for name, found in rows.items()} == {
        **{"prompts": 2, "filters": 4, "tau_b": 2, "merging": 4, "facets": 4},
        **{"backbones": 1, "background": 2},
    }
    assert [(row["stride"], row["prompts"]) for row in rows["prompts"]] == [("2", "36"), ("4", "9")]
    assert [row["filter"] for row in rows["filters"]] == ["cascade", "ioa", "feature", "none"]
    assert [row["facet"] for row in rows["facets"]] == ["key", "query", "value", "token"]
    assert rows["backbones"][0]["backbone"] == "tiny"
    assert [row["case"] for row in rows["background"]] == ["away", "texture"]
    assert rows["filters"][0]["recall"] == rows["facets"][0]["recall"] == "100.00"
    # the same setting in three experiments: the same figures
    same = [rows[name][0] for name in ("prompts", "filters", "facets")]
    assert len({(row["AP"], row["AR100"], row["precision"]) for row in same}) == 1

    page = (ablate.output / "index.html").read_text()
    for name in NAMES:
        assert experiments.EXPERIMENTS[name].title in page
        assert f'src="{name}.png"' in page
        with Image.open(ablate.output / f"{name}.png") as plot:
            assert min(plot.size) > 200
    assert "random weights, for tests" in page
    assert "http" not in page

    text = (tmp_path / "doc.md").read_text()
    assert text.startswith("# Mine\n## prompts\n<!-- prompts: begin -->\n\n![")
    assert text.endswith("<!-- tau_b: end -->\nKept.\n")
    assert "old" not in text
    assert "facet |" not in text  # no marks, no block
    plots = re.findall(r"\((images/.*)\)", text)
    assert len(plots) == 3
    assert all((tmp_path / plot).is_file() for plot in plots)


def test_a_second_run_computes_nothing(ablate, monkeypatch):
    ablate("filters")
    before = (ablate.output / "filters.csv").read_bytes()
    monkeypatch.setattr("benchmarks.ablations.sweep._label", None)
    assert ablate("filters")[0] == 0
    assert (ablate.output / "filters.csv").read_bytes() == before


def test_other_settings_in_the_same_place_are_refused(ablate):
    ablate("filters")
    code, _, err = ablate("filters", "--grid", "10", "--count", "1")
    assert code == 3
    assert "something else: settings.grid was [12, 12], now [10, 10]; data.images was 2" in err
    assert ablate("tau_b", "--grid", "10")[0] == 0  # its own table is not there yet


def test_backbones_of_other_weights_are_rows_of_their_own(ablate, tmp_path):
    other = save_random_vit(TINY, tmp_path / "other.pth", seed=1)
    assert ablate("backbones")[0] == 0
    assert ablate("backbones", "--backbones", f"tiny:{ablate.weights}", f"tiny:{other}")[0] == 0
    rows = rows_of(ablate, "backbones")
    assert [row["backbone"] for row in rows] == ["tiny", "tiny"]
    assert rows[0]["weights"] != rows[1]["weights"]


def test_backbones_by_default_are_those_on_this_machine(ablate, monkeypatch, tmp_path):
    monkeypatch.setenv("PROMERGE_D2_CACHE", str(tmp_path / "cache"))
    assert "dino_vits16" not in experiments.offline_backbones()
    url = registry.get_backbone("dino_vits16").url
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / url.rsplit("/", 1)[1]).write_bytes(b"weights")
    here = experiments.offline_backbones()
    assert "dino_vits16" in here
    assert "tiny" not in here  # a local file only


def test_background_needs_no_data_set(ablate):
    code, _, _ = ablate("background", data=False)
    assert code == 0
    assert rows_of(ablate, "background")[0]["recall"]
    assert (ablate.output / "background" / "texture" / "000.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["filters"], "--annotations"),
        (["all"], "--annotations"),
        (["nothing"], "invalid choice: 'nothing'"),
        (["background", "--scenes", "0"], "--scenes is 0; it takes 1 or more"),
        (["background", "--workers", "-1"], "--workers is -1; it takes 0 or more"),
        (["background", "--backbones", "dino"], "'dino'"),
        (["background", "--set", "tau_c=1"], "'tau_c'"),
        (["background", "--markdown", "."], "write .:"),
        (["tau_b", "--preset", "best"], "promerge"),
    ],
)
def test_refuses(ablate, arguments, message):
    code, _, err = ablate(*arguments, data=False)
    assert code == 3
    assert message in err
    assert not list(ablate.output.glob("*.csv"))


def test_refuses_a_markdown_file_with_half_a_mark(ablate, tmp_path):
    (tmp_path / "doc.md").write_text("<!-- background: end -->\n")
    code, _, err = ablate("background", "--markdown", tmp_path / "doc.md", data=False)
    assert code == 3
    assert "doc.md" in err
    assert "<!-- background: begin -->" in err


def test_all_of_another_labeler_are_those_that_go_with_it(ablate):
    code, *_ = ablate("all", "--preset", "best", grid_only=True)
    assert code == 0
    tables = {file.stem for file in ablate.output.glob("*.csv")}
    assert tables == {"facets", "backbones", "background", "candidates"}
    assert json.loads((ablate.output / "facets.json").read_text())["labeler"] == "regions"
