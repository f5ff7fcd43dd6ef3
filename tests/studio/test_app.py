"""Routes, and requests that are not the page's."""

import http.client
import json
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from promerge_d2.studio.app import build_app
from promerge_d2.studio.guard import MAX_BODY, Guard
from tests.studio.conftest import PORT, TOKEN


def test_the_page_and_its_files(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for name in ("main.js", "grid.js", "large.js", "stages.js", "api.js", "masks.js", "studio.css"):
        answer = client.get(f"/static/{name}")
        assert answer.status_code == 200
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_from_the_first_view_to_a_new_file(client, labels):
    about = client.get("/api/file").json()
    assert (about["photographs"], about["masks"], about["edits"]) == (6, 15, 0)
    found = client.get("/api/photographs", params={"score": 0.45, "order": "worst"}).json()
    assert found["numbers"] == [5, 4, 3, 2, 1, 0]
    cards = client.get("/api/cards", params={"n": [0, 5]}).json()
    assert [len(card["masks"]) for card in cards] == [3, 0]
    picture = client.get("/api/photographs/0/small.jpg")
    assert picture.headers["content-type"] == "image/jpeg"

    edit = {"action": "merge", "masks": [0, 1]}
    after = client.post("/api/photographs/0/edits", json=edit).json()
    states = {mask["number"]: mask["state"] for mask in after["photograph"]["masks"]}
    assert states == {0: "merged", 1: "merged", 2: "open", 3: "accepted"}
    assert after["history"]["can_undo"] is True
    assert client.post("/api/undo", json={}).json()["photograph"]["number"] == 0
    redone = client.post("/api/redo", json={}).json()
    assert redone["photograph"] == after["photograph"]
    saved = client.post("/api/save", json={"score": 0.4, "best": 2}).json()
    assert (
        len(json.loads(labels.with_name("labels.edited.json").read_text())["annotations"])
        == (saved["masks"])
    )
    assert client.get("/api/save").json() == {"written": 6, "photographs": 6}


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/api/photographs/6", None, 404),
        ("GET", "/api/photographs/-1", None, 404),
        ("GET", "/api/photographs/99999999999999999999", None, 404),
        ("GET", "/api/photographs/x", None, 422),
        ("GET", "/api/photographs/6/small.jpg", None, 404),
        ("GET", "/api/photographs/0/huge.jpg", None, 422),
        ("GET", "/api/cards?n=6", None, 404),
        ("GET", "/api/cards?n=-1", None, 422),
        ("GET", "/api/cards?" + "&".join(["n=0"] * 121), None, 422),
        ("GET", "/api/photographs?least=x", None, 422),
        ("GET", "/api/photographs?score=nan", None, 422),
        ("GET", "/api/photographs?order=random", None, 422),
        ("GET", "/api/photographs?path=/etc/passwd", None, 422),
        ("GET", "/static/../session.py", None, 404),
        ("GET", "/static/..%2fsession.py", None, 404),
        ("GET", "/static/%2e%2e/%2e%2e/version.py", None, 404),
        ("GET", "/static//etc/passwd", None, 404),
        ("GET", "/etc/passwd", None, 404),
        ("GET", "/docs", None, 404),
        ("GET", "/openapi.json", None, 404),
        ("POST", "/api/photographs/6/edits", {"action": "accept", "masks": [0]}, 404),
        ("POST", "/api/photographs/0/edits", {"action": "accept", "masks": [77]}, 404),
        ("POST", "/api/photographs/0/edits", {"action": "accept", "masks": [-1]}, 422),
        ("POST", "/api/photographs/0/edits", {"action": "accept", "masks": "all"}, 422),
        ("POST", "/api/photographs/0/edits", {"action": "delete", "masks": [0]}, 422),
        ("POST", "/api/photographs/0/edits", {"action": "merge", "masks": [0]}, 400),
        ("POST", "/api/photographs/0/edits", {"action": "accept", "masks": [0], "x": 1}, 422),
        ("POST", "/api/photographs/0/edits", [], 422),
        ("POST", "/api/photographs/0/stages", {"settings": {"tau_b": 0.5}}, 400),
        ("POST", "/api/save", {"file": "/tmp/x.json"}, 422),
        ("POST", "/api/save", {"score": "high"}, 422),
        ("POST", "/api/undo", {}, 400),
        ("PUT", "/api/save", {}, 405),
        ("DELETE", "/api/photographs/0", None, 405),
        ("OPTIONS", "/api/save", None, 405),
    ],
)
def test_requests_that_ask_for_what_there_is_not(client, session, method, path, body, status):
    answer = client.request(method, path, json=body)
    assert answer.status_code == status
    assert "detail" in answer.json()
    assert "content-security-policy" in answer.headers
    assert session.log.entries == 0
    assert not session.log.edits.can_undo


@pytest.mark.parametrize("body", [b"{", b"", b"\xff\xfe", b"[" * 60000, b"nul", b'{"a":NaN}'])
def test_broken_json(client, body):
    headers = {"content-type": "application/json"}
    answer = client.post("/api/photographs/0/edits", content=body, headers=headers)
    assert answer.status_code in (400, 422)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
BODIES = JSON | st.fixed_dictionaries(
    {},
    optional={
        "action": st.sampled_from(["accept", "merge", "only", "finish"]) | JSON,
        "masks": st.lists(st.integers(-2, 9), max_size=4) | JSON,
        "settings": JSON,
        "score": JSON,
        "best": JSON,
        "accepted_only": JSON,
    },
)
POSTED = [f"photographs/{n}/{what}" for n in (0, 5, 6) for what in ("edits", "stages", "labels")]


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(path=st.sampled_from([*POSTED, "undo", "redo"]), body=BODIES, query=st.text(max_size=20))
def test_whatever_is_sent_is_answered_or_refused(client, path, body, query):
    """The client of the tests raises what the application does not catch."""
    sent = {"content": json.dumps(body), "headers": {"content-type": "application/json"}}
    assert client.post(f"/api/{path}", **sent).status_code in (200, 400, 404, 422)
    params = {"text": query, "reason": query, "score": query, "n": query}
    assert client.get("/api/photographs", params=params).status_code in (200, 422)
    assert client.get("/api/cards", params=params).status_code in (200, 404, 422)
    assert client.get(f"/static/{quote(query, safe='')}").status_code in (200, 404)


def test_bodies_that_are_too_large(client):
    headers = {"content-type": "application/json"}
    big = b" " * (MAX_BODY + 1)
    assert client.post("/api/undo", content=big, headers=headers).status_code == 413
    parts = (b" " * 1000 for _ in range(1 + MAX_BODY // 1000))  # no length is said
    assert (
        client.post("/api/photographs/0/edits", content=parts, headers=headers).status_code == 413
    )


def test_other_types_than_json(client):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = client.post("/api/undo", content=b"{}", headers={"content-type": kind})
        assert answer.status_code == 415


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": f"evil.example:{PORT}"},  # a name that resolves to 127.0.0.1
        {"host": "127.0.0.1:1"},
        {"host": f"127.0.0.1:{PORT}.evil.example"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": f"https://127.0.0.1:{PORT}"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_other_hosts_and_origins(client, headers):
    for method, path in (("GET", "/api/file"), ("GET", "/"), ("POST", "/api/undo")):
        answer = client.request(
            method, path, headers=headers, json={} if method == "POST" else None
        )
        assert answer.status_code == 403, (method, path)


def test_its_own_page_is_let_in(client):
    own = {"origin": f"http://127.0.0.1:{PORT}", "sec-fetch-site": "same-origin"}
    assert client.post("/api/save", json={}, headers=own).status_code == 200


def test_nothing_without_the_token(session):
    app = Guard(build_app(session), PORT, TOKEN)
    with TestClient(app, base_url=f"http://127.0.0.1:{PORT}") as client:
        for path in (
            "/",
            "/static/main.js",
            "/api/file",
            "/?token=wrong",
            "/?token=",
            "/?token=%ff",
        ):
            assert client.get(path).status_code == 403, path
        for cookie in (f"studio-{PORT}=wrong", f"studio-1={TOKEN}", "studio", f"x={TOKEN};;;=\0"):
            answer = client.get("/api/file", headers={"cookie": cookie})
            assert answer.status_code == 403, cookie
        answer = client.get(f"/?token={TOKEN}", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert {"HttpOnly", "SameSite=Strict"} <= set(answer.headers["set-cookie"].split("; "))
        assert client.get("/api/file").status_code == 200


def test_two_hosts_or_none_on_the_wire(server):
    """What a client library would put right."""
    port = int(server.url.split(":")[2].partition("/")[0])
    for hosts in ([], [f"127.0.0.1:{port}", "evil.example"]):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.putrequest("GET", "/api/file", skip_host=True)
        for host in hosts:
            connection.putheader("Host", host)
        connection.endheaders()
        assert connection.getresponse().status in (400, 403)
        connection.close()


def test_a_name_that_leads_out_of_the_folder(labels, client, session):
    session.catalog.names[0] = "../../etc/passwd"  # as a hostile label file has it
    assert client.get("/api/photographs/0/small.jpg").status_code == 400


def test_a_file_that_changes_meanwhile(labels, client):
    labels.write_text(labels.read_text() + " ")
    answer = client.get("/api/photographs/0")
    assert answer.status_code == 400
    assert str(labels) in answer.json()["detail"]
