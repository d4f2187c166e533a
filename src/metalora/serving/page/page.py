"""The routes of the web page, and the headers that keep foreign code out of it."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

STATIC = Path(__file__).parent / "static"

HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' blob:",  # blob: are the pictures that a person adds
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a browser asks whether a file has changed, and gets 304 if not
}


def add_page(app: FastAPI) -> None:
    """Serve the web page at `/` and its files below `/page`.

    Args:
        app: The service.

    Example:
        >>> from fastapi.testclient import TestClient
        >>> app = FastAPI()
        >>> add_page(app)
        >>> TestClient(app).get("/").headers["content-type"]
        'text/html; charset=utf-8'
    """
    files = _PageFiles(directory=STATIC)

    async def index(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    app.add_api_route("/", index, methods=["GET", "HEAD"], include_in_schema=False)
    app.mount("/page", files, name="page")


class _PageFiles(StaticFiles):
    """The files of the page, each with the headers of the page."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        if path.endswith(".js"):  # systems differ in it, and a browser runs no module of another type
            response.headers["Content-Type"] = "text/javascript; charset=utf-8"
        return response
