"""The page in a real browser: Debian's Chromium, driven by Playwright."""

import json
import shutil

import pytest

from tests.studio.conftest import MASKS

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium")
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)"
)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    """The studio's page, open; whatever the browser complains of fails the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    page = context.new_page()
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda line: line.type == "error" and complaints.append(line.text))
    page.goto(server.url)
    page.wait_for_selector("body[data-ready]")
    wait(page, "document.querySelectorAll('figure b').length > 0")
    yield page
    context.close()
    assert complaints == []


def wait(page, condition):
    page.wait_for_function(f"() => {condition}")  # a bare string would be evaluated by the page


def cards(page):
    return page.locator("#cards figure").count()


def open_first(page):
    page.keyboard.press("Enter")
    page.wait_for_selector("#masks li")


def check_states(page, expected):
    page.wait_for_function(
        """expected => JSON.stringify(Object.fromEntries([...document.querySelectorAll('#masks li')]
            .map(row => [row.dataset.mask, row.dataset.state]).sort())) === expected""",
        arg=json.dumps(expected, separators=(",", ":")),
    )


def test_the_address_does_not_keep_the_token(page):
    assert "token" not in page.url


def test_grid_filters_and_live_counts(page):
    assert cards(page) == 6
    wait(page, "document.querySelectorAll('figure path').length === 15")
    assert "15 of 15 masks" in page.inner_text("#kept")
    page.fill("#score", "0.45")
    wait(page, "document.querySelector('#kept').textContent.includes('6 of 15')")
    wait(page, "document.querySelectorAll('figure path').length === 6")
    page.fill("#best", "1")
    wait(page, "document.querySelector('#kept').textContent.includes('5 of 15')")
    page.keyboard.press("/")
    page.keyboard.type("A/3")
    wait(page, "document.querySelectorAll('#cards figure').length === 1")
    page.fill("#text", "nowhere")
    page.wait_for_selector("#nothing:not([hidden])")
    page.click("#clear-too")
    wait(page, "document.querySelectorAll('#cards figure').length === 6")
    page.select_option("#reason", "no_regions")
    wait(page, "document.querySelectorAll('#cards figure').length === 1")
    assert "no_regions" in page.inner_text("figure")


def test_put_right_by_keys_and_save(page, labels):
    open_first(page)
    page.keyboard.press("ArrowDown")  # the best one
    page.keyboard.press("a")
    check_states(page, {"0": "open", "1": "accepted", "2": "open"})
    page.keyboard.press("ArrowDown")  # the next
    page.keyboard.press("r")
    check_states(page, {"0": "open", "1": "accepted", "2": "rejected"})
    page.keyboard.press("u")
    check_states(page, {"0": "open", "1": "accepted", "2": "open"})
    page.keyboard.press("Control+y")
    check_states(page, {"0": "open", "1": "accepted", "2": "rejected"})
    page.keyboard.press("Enter")  # accept what is kept, on to the next
    wait(page, "document.querySelector('#name').textContent === 'a/1.jpg'")
    page.keyboard.press("Enter")
    wait(page, "document.querySelector('#name').textContent === 'a/2.jpg'")
    page.keyboard.press("Escape")
    wait(page, "document.querySelectorAll('figure .done:not([hidden])').length === 2")
    for number, count in ((0, 2), (1, 3), (2, 3)):
        card = page.locator(f"figure[data-number='{number}']")
        assert card.locator("path").count() == count
    page.click("#save")
    page.click("#save-accepted")
    page.click("#save-yes")
    wait(page, "document.querySelector('#toast').textContent.includes('saved 5 masks')")
    new = json.loads(labels.with_name("labels.edited.json").read_text())
    assert [each["image_id"] for each in new["annotations"]] == [1, 1, 2, 2, 2]


def test_merge_two_by_clicks(page):
    open_first(page)
    overlay = page.locator("#overlay").bounding_box()
    scale = min(overlay["width"] / 80, overlay["height"] / 60)
    left = overlay["x"] + (overlay["width"] - 80 * scale) / 2
    top = overlay["y"] + (overlay["height"] - 60 * scale) / 2

    def click(x, y, **more):
        page.locator("#stage").click(
            position={
                "x": left + x * scale - overlay["x"],
                "y": top + y * scale - overlay["y"],
            },
            **more,
        )

    assert page.is_disabled("#merge")
    click(17, 28)
    assert page.locator("#masks li.selected").get_attribute("data-mask") == "1"
    click(60, 35, modifiers=["Shift"])
    assert page.locator("#masks li.selected").count() == 2
    page.click("#merge")
    check_states(page, {"0": "open", "3": "accepted"})
    both = (MASKS[1][1] | MASKS[2][1]).mean()
    assert f"{100 * both:.0f} %" in page.inner_text("li.selected")
    click(2, 55)
    assert page.locator("#masks li.selected").count() == 0


def test_only_the_right_ones(page):
    open_first(page)
    page.keyboard.press("Shift+Enter")
    wait(page, "document.querySelector('#toast.on').textContent.includes('select')")
    page.locator("#masks li").nth(1).click()
    page.keyboard.press("Shift+Enter")
    wait(page, "document.querySelector('#name').textContent === 'a/1.jpg'")
    page.keyboard.press("ArrowLeft")
    check_states(page, {"0": "rejected", "1": "rejected", "2": "accepted"})


def test_masks_off_and_on(page):
    open_first(page)
    visible = "[...document.querySelectorAll('#overlay path')].filter(p => " + (
        "getComputedStyle(p).display !== 'none').length"
    )
    assert page.evaluate(visible) == 3
    page.keyboard.press("1")
    assert page.evaluate(visible) == 2
    page.keyboard.press("Space")
    assert page.evaluate(visible) == 0
    page.keyboard.press("Space")
    page.locator("#masks .eye").nth(0).click()
    assert page.evaluate(visible) == 3


def test_help_and_walking_through(page):
    page.keyboard.press("?")
    page.wait_for_selector("#keys[open]")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    wait(page, "document.querySelector('#name').textContent === 'a/1.jpg'")
    page.keyboard.press("ArrowRight")
    wait(page, "document.querySelector('#name').textContent === 'a/2.jpg'")
    page.reload()
    wait(page, "document.querySelector('#name').textContent === 'a/2.jpg'")
    page.keyboard.press("s")
    page.wait_for_selector("#stages:not([hidden])")
    assert "does not say which labeler" in page.inner_text("#stages-title")


def test_only_what_is_seen_is_there(page, session):
    """10,000 photographs in the list: a screenful in the document, whatever is scrolled to."""
    page.route(
        "**/api/photographs?*",
        lambda route: route.fulfill(
            json={
                **session.history(),
                "numbers": list(range(6)) * 2000,
                "masks": 0,
                "kept": 0,
                "with_masks": 0,
            }
        ),
    )
    page.select_option("#order", "name")
    wait(page, "document.querySelector('#cards').clientHeight > 100000")
    for place in (0, 0.5, 1):
        page.evaluate(f"const g = document.querySelector('#grid'); g.scrollTop = {place} * 1e9")
        page.wait_for_timeout(100)
        assert cards(page) <= 60


def test_another_page_gets_nothing(browser, server, page):
    """A page of another origin may neither read from the studio nor change anything."""
    context = browser.new_context()
    context.add_cookies(page.context.cookies())
    other = context.new_page()
    origin = server.url.partition("?")[0]
    other.route("http://evil.example/", lambda route: route.fulfill(body="<p>evil</p>"))
    other.goto("http://evil.example/")
    tries = f"""async () => {{
        const found = [];
        for (const [path, options] of [
            ["api/file", {{ credentials: "include" }}],
            ["api/undo", {{ method: "POST", body: "{{}}", credentials: "include",
                            headers: {{ "content-type": "application/json" }} }}],
            ["api/undo", {{ method: "POST", body: "{{}}", mode: "no-cors" }}],
        ]) {{
            try {{
                const answer = await fetch("{origin}" + path, options);
                found.push(answer.type + answer.status);
            }} catch (error) {{ found.push("refused"); }}
        }}
        const picture = new Image();
        await new Promise((done) => {{
            picture.onload = () => {{ found.push("picture"); done(); }};
            picture.onerror = () => {{ found.push("no picture"); done(); }};
            picture.src = "{origin}api/photographs/0/small.jpg";
        }});
        return found;
    }}"""
    found = other.evaluate(tries)
    context.close()
    assert found[:2] == ["refused", "refused"]
    assert found[2] in ("refused", "opaque0")
    assert found[3] == "no picture"
