"""Routes: what the page asks, checked by its types, answered by a ``Session``."""

from __future__ import annotations

import functools
import importlib.resources
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from promerge_d2.studio.catalog import Keep, Wanted
from promerge_d2.studio.edits import UnknownId
from promerge_d2.studio.pictures import PictureMissing
from promerge_d2.studio.session import Session
from promerge_d2.utils.errors import UserError

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
_CARDS = 120  # photographs that are described in one answer

Number = Annotated[int, Field(ge=0, le=10**9)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class KeepQuery(_Body):
    """See ``Keep``."""

    score: float = 0.0
    best: Number | None = None

    def keep(self) -> Keep:
        """Return it as the catalog takes it."""
        return Keep(self.score, self.best)


class FindQuery(KeepQuery):
    """See ``Keep`` and ``Wanted``."""

    text: str = Field("", max_length=300)
    reason: str = Field("", max_length=300)
    least: Number = 0
    most: Number | None = None
    size: Literal["", "small", "medium", "large"] = ""
    low: float | None = None
    high: float | None = None
    status: Literal["any", "todo", "edited", "reviewed"] = "any"
    order: Literal["file", "name", "most", "fewest", "best", "worst"] = "file"

    def wanted(self) -> Wanted:
        """Return it as the session takes it."""
        return Wanted(**self.model_dump(exclude={"score", "best"}))


class Edit(_Body):
    """A decision on masks of a photograph, see ``Edits.do``."""

    action: Literal["accept", "reject", "reopen", "merge", "finish", "only"]
    masks: list[Number] = Field(max_length=5000)


class SaveRequest(KeepQuery):
    """What goes into the new file."""

    accepted_only: bool = False


class Settings(_Body):
    """Settings of the labeler, by name."""

    settings: dict[str, float] = Field(default_factory=dict, max_length=50)


def build_app(session: Session) -> FastAPI:
    """Build the application of a session; who may ask it is the guard's to say.

    Args:
        session: what answers.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_errors(app)
    static = _read_static()

    def page(name: str) -> Response:
        if name not in static:
            raise UnknownId(f"there is no {name}")
        media_type = _TYPES[name.rpartition(".")[2]]
        return Response(static[name], media_type=media_type, headers={"cache-control": "no-cache"})

    app.add_api_route("/", functools.partial(page, "index.html"), methods=["GET"])
    app.add_api_route("/static/{name}", page, methods=["GET"])

    @app.get("/api/file")
    def overview() -> dict[str, Any]:
        return {**session.overview(), "stages": session.stages.describe()}

    @app.get("/api/photographs")
    def find(query: Annotated[FindQuery, Query()]) -> dict[str, Any]:
        return session.find(query.keep(), query.wanted())

    @app.get("/api/cards")
    def cards(n: Annotated[list[Number], Query(max_length=_CARDS)]) -> list[dict[str, Any]]:
        return [session.photograph(number, "small") for number in n]

    @app.get("/api/photographs/{number}")
    def photograph(number: int) -> dict[str, Any]:
        return session.photograph(number, "large")

    @app.get("/api/photographs/{number}/{side}.jpg")
    def picture(number: int, side: Literal["small", "large"]) -> Response:
        if not 0 <= number < len(session.catalog):
            raise UnknownId(f"there is no photograph {number}")
        path = session.pictures.jpeg(session.catalog.names[number], side)
        headers = {"cache-control": "private, max-age=86400"}
        return FileResponse(path, media_type="image/jpeg", headers=headers)

    @app.post("/api/photographs/{number}/edits")
    def edit(number: int, body: Edit) -> dict[str, Any]:
        session.edit(number, body.action, body.masks)
        return _after(session, number)

    @app.post("/api/undo")
    def undo() -> dict[str, Any]:
        return _after(session, session.undo())

    @app.post("/api/redo")
    def redo() -> dict[str, Any]:
        return _after(session, session.redo())

    @app.post("/api/photographs/{number}/stages")
    def stages(number: int, body: Settings) -> dict[str, Any]:
        return session.run_stages(number, body.settings)

    @app.post("/api/photographs/{number}/labels")
    def labels(number: int, body: Settings) -> dict[str, Any]:
        session.replace(number, body.settings)
        return _after(session, number)

    @app.get("/api/save")
    def saving() -> dict[str, int]:
        return session.saving()

    @app.post("/api/save")
    def save(body: SaveRequest) -> dict[str, Any]:
        return session.save(body.keep(), body.accepted_only)

    return app


def _after(session: Session, place: int) -> dict[str, Any]:
    """Describe the photograph that something was done to."""
    return {"photograph": session.photograph(place, "large"), "history": session.history()}


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(UserError)
    def user_error(request: Request, error: UserError) -> JSONResponse:
        missing = isinstance(error, UnknownId | PictureMissing)
        return JSONResponse({"detail": str(error)}, 404 if missing else 400)

    @app.exception_handler(RequestValidationError)
    def not_valid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]  # FastAPI's own answer would repeat what was sent
        place = ".".join(map(str, first["loc"]))
        return JSONResponse({"detail": f"{place}: {first['msg']}"}, 422)


def _read_static() -> dict[str, bytes]:
    """Read the page's files, so that no name in a request ever becomes a path."""
    folder = importlib.resources.files("promerge_d2.studio") / "static"
    return {
        file.name: file.read_bytes()
        for file in folder.iterdir()
        if file.name.rpartition(".")[2] in _TYPES
    }
