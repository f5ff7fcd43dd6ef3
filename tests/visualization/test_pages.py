from html.parser import HTMLParser

from promerge_d2.visualization.pages import Gallery, Table, metrics_rows, write_page


class Page(HTMLParser):
    """What a browser would see."""

    VOID = ("meta", "img", "link", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.files, self.tags = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        self.files += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1] != "style":
            self.texts.append(data.strip())


def report(path, **changes):
    content = {
        "title": "A run",
        "summary": ["First paragraph.", "Second paragraph."],
        "warning": "Believe nothing.",
        "tables": [
            Table("Figures", ["data", "AP"], [["photos", 1.25], ["scenes", 30]], "In per cent."),
            Table("Times", ["step", "seconds"], [["label", 7.0]]),
        ],
        "figures": [("Losses", "pictures/losses.png")],
        "galleries": [
            Gallery("Test", ["truth", "found"], [("a.jpg", ["p/a0.png", "p/a1.png"])], "A note."),
            Gallery("Train", ["truth"], [("b.jpg", ["p/b0.png"]), ("c.jpg", ["p/c0.png"])]),
        ],
    }
    content |= changes
    write_page(path, "report.html", **content)
    return Page(path.read_text(encoding="utf-8"))


def test_everything_is_on_the_page(tmp_path):
    page = report(tmp_path / "report.html")
    assert page.open == []  # every tag is closed
    for text in (
        *("A run", "First paragraph.", "Second paragraph.", "Believe nothing."),
        *("Figures", "data", "AP", "photos", "1.2", "scenes", "30.0", "In per cent."),
        *("Times", "step", "seconds", "label", "7.0", "Losses"),
        *("Test", "A note.", "truth", "found", "a.jpg", "Train", "b.jpg", "c.jpg"),
    ):
        assert text in page.texts
    assert [tag for tag, _ in page.tags].count("table") == 2
    assert [tag for tag, _ in page.tags].count("tr") == 2 + 1 + 1 + 1  # heads and rows
    assert ("p", {"class": "warning"}) in page.tags
    assert page.texts.count("A run") == 2  # window title and heading


def test_columns_of_numbers_are_set_to_the_right(tmp_path):
    rows = [["photos", 1.255, "kept"], ["scenes", "-", "gone"]]
    page = report(tmp_path / "r.html", tables=[Table("T", ["data", "AP", "why"], rows, "", 2)])
    cells = [(tag, attrs.get("class")) for tag, attrs in page.tags if tag in ("th", "td")]
    for line in range(3):
        assert [kind for _, kind in cells[3 * line : 3 * line + 3]] == [None, "number", None]
    assert "1.25" in page.texts


def test_pictures_are_named_as_they_were_given(tmp_path):
    page = report(tmp_path / "run" / "report.html")  # relative to the page, so a folder can move
    gallery = ["p/a0.png", "p/a1.png", "p/b0.png", "p/c0.png"]
    shown = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert shown == ["pictures/losses.png", *gallery]
    assert [attrs["href"] for tag, attrs in page.tags if tag == "a"] == gallery


def test_it_needs_nothing_from_elsewhere(tmp_path):
    report(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "://" not in text
    assert "<script" not in text


def test_pictures_have_words_for_those_who_do_not_see_them(tmp_path):
    page = report(tmp_path / "report.html")
    words = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert words == [
        "Losses",
        "truth of a.jpg",
        "found of a.jpg",
        "truth of b.jpg",
        "truth of c.jpg",
    ]


def test_names_are_escaped(tmp_path):
    evil = "<b>\"&'</b>"
    page = report(
        tmp_path / "report.html",
        title=evil,
        summary=[evil],
        warning=evil,
        tables=[Table(evil, [evil], [[evil]], evil)],
        figures=[(evil, f"{evil}.png")],
        galleries=[Gallery(evil, [evil], [(evil, [f"{evil}.png"])], evil)],
    )
    assert page.open == []
    assert not [tag for tag, _ in page.tags if tag == "b"]
    assert "".join(page.texts).count(evil) == 13
    assert set(page.files) == {f"{evil}.png"}
    assert "<b>" not in (tmp_path / "report.html").read_text()


def test_braces_are_no_placeholders(tmp_path):
    page = report(tmp_path / "report.html", title="{body}", warning="{0} {x}")
    assert "{body}" in page.texts
    assert "{0} {x}" in page.texts


def test_a_page_without_tables_and_pictures(tmp_path):
    page = report(tmp_path / "report.html", tables=[], figures=[], galleries=[])
    assert page.files == []
    assert "Believe nothing." in page.texts


def test_rows_of_metrics():
    def figures(kind, *values):
        return dict(
            zip((f"{kind}.{m}" for m in ("AP", "AP50", "AP75", "AR100")), values, strict=True)
        )

    results = {
        "photos": {
            "labels": figures("segm", 1, 2, 3, 4) | figures("bbox", 5, 6, 7, 8),
            "detector": figures("bbox", 9, 10, 11, 12) | {"bbox.APs": -1},
        },
        "scenes": {"labels": figures("segm", 13, 14, 15, 16)},
    }
    assert metrics_rows(results) == [
        ["photos", "labels", "mask", 1, 2, 3, 4],
        ["scenes", "labels", "mask", 13, 14, 15, 16],
        ["photos", "labels", "box", 5, 6, 7, 8],
        ["photos", "detector", "box", 9, 10, 11, 12],
    ]
