"""A label file of six small photographs, and a studio on it."""

import json
import threading

import pytest
from starlette.testclient import TestClient

from promerge_d2.studio.app import build_app
from promerge_d2.studio.guard import Guard
from promerge_d2.studio.server import Server, open_port
from promerge_d2.studio.session import Session
from tests.helpers import coco_json, photo, save_image, square

HEIGHT, WIDTH = 60, 80
# of every photograph with masks: half a percent, 5 and a quarter of it, in the file's order
MASKS = (
    (0.2, square(HEIGHT, WIDTH, 2, 2, 6, 8)),
    (0.9, square(HEIGHT, WIDTH, 10, 20, 25, 36)),
    (0.5, square(HEIGHT, WIDTH, 40, 20, 80, 50)),
)
TOKEN = "the-token"
PORT = 8765


def write_labels(folder):
    """a/0.jpg to a/4.jpg with the masks above and scores that fall by 0.1; b/5.jpg without one."""
    images = []
    for number in range(6):
        name = f"{'ab'[number == 5]}/{number}.jpg"
        save_image(folder / name, photo(HEIGHT, WIDTH, (10, 20, 25, 36), seed=number))
        objects = [{"mask": mask, "score": round(s - 0.1 * number, 2)} for s, mask in MASKS]
        images.append((name, HEIGHT, WIDTH, objects if number < 5 else []))
    path = coco_json(folder / "labels.json", images)
    content = json.loads(path.read_text())
    content["images"][5]["reason"] = "no_regions"
    path.write_text(json.dumps({"info": {"description": "made"}, **content}))
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMERGE_D2_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def labels(tmp_path):
    return write_labels(tmp_path / "data")


@pytest.fixture
def session(labels):
    session = Session(labels)
    yield session
    session.close()


@pytest.fixture
def client(session):
    """A browser that has opened the printed address."""
    app = Guard(build_app(session), PORT, TOKEN)
    with TestClient(app, base_url=f"http://127.0.0.1:{PORT}", follow_redirects=True) as client:
        assert client.get("/", params={"token": TOKEN}).status_code == 200
        yield client


@pytest.fixture
def server(session):
    """A studio on a port of its own."""
    server = Server(session, open_port(0))
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server
    server.stop()
    thread.join(timeout=20)
    assert not thread.is_alive()
