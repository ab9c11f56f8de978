"""The application: guard, API and page around one service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from .. import __version__
from ..errors import SplinterpError
from . import api, page
from .events import Streams
from .guard import Access, Guard
from .service import Service

STATIC = Path(__file__).parent / "static"


def make_app(service: Service, access: Access) -> FastAPI:
    """The ASGI application; its manager's loop runs while it does."""
    streams = Streams()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.manager.run()
        yield
        service.manager.close()

    # Its own documentation pages would fetch their scripts from another place.
    app = FastAPI(
        title="splinterp", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url="/api/openapi.json",
        description="The trainer as a service: jobs over a directory of stores and runs.",
    )  # fmt: skip
    app.state.streams = streams
    app.add_middleware(Guard, access=access)
    app.include_router(api.router(service, streams))
    app.include_router(page.router(service, access), include_in_schema=False)
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.exception_handler(SplinterpError)
    def refused(request: Request, error: SplinterpError) -> Response:
        if not request.url.path.startswith("/api/"):
            return page.problem(request, api.status_of(error), str(error))
        return JSONResponse({"detail": str(error)}, api.status_of(error))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        status = 400 if first["type"] == "json_invalid" else 422
        return JSONResponse({"detail": f"{where}: {first['msg']}"}, status)

    @app.exception_handler(HTTPException)
    async def missing(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404 and not request.url.path.startswith("/api/"):
            return page.problem(request, 404, "There is nothing here.")
        return await http_exception_handler(request, error)

    return app
