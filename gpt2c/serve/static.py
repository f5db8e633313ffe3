"""The page's files, which are in the package."""

from __future__ import annotations

from importlib import resources

from fastapi import APIRouter
from fastapi.responses import Response

from gpt2c.serve.errors import ApiError

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


def router() -> APIRouter:
    routes = APIRouter()

    @routes.get("/")
    async def page() -> Response:
        return _file("index.html")

    @routes.get("/web/{name}")
    async def file(name: str) -> Response:
        return _file(name)

    return routes


def _file(name: str) -> Response:
    folder = resources.files("gpt2c") / "serve" / "web"
    if name not in {path.name for path in folder.iterdir()}:
        raise ApiError(404, f"there is no file {name!r}")
    return Response((folder / name).read_bytes(), media_type=TYPES[name.rpartition(".")[2]])
