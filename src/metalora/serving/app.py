"""The app: paths, errors in one form, the documentation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from pydantic.json_schema import models_json_schema
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from metalora.learner.learner import MetaLearner
from metalora.serving.config import ServingConfig
from metalora.serving.errors import ServiceError
from metalora.serving.free_memory import returning_free_memory
from metalora.serving.middleware import RequestFrame
from metalora.serving.page.page import add_page
from metalora.serving.readaptation import readapting
from metalora.serving.routes import about, predictions, tasks
from metalora.serving.schemas import InputsRequest, LabelledRequest, PreviewRequest, TaskRequest
from metalora.serving.service import Service
from metalora.serving.store import Store, StoreFailure

BODIES = (TaskRequest, LabelledRequest, InputsRequest, PreviewRequest)
TITLE = "metalora"
ABOUT = "Tasks of many tenants on one frozen network: a few labelled examples make a task, which predicts at once."


def make_app(learners: Sequence[MetaLearner], store: Store, config: ServingConfig | None = None) -> FastAPI:
    """Return the service as an ASGI app; it closes the store when it stops.

    Args:
        learners: The learner that makes new tasks, then older ones, whose tasks are still served.
        store: The store of tenants and tasks.
        config: The settings; None: the defaults.

    Raises:
        ValueError: A learner takes arrays, or the learners take different inputs.
    """
    service = Service(learners, store, config or ServingConfig())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with readapting(service), returning_free_memory():
            yield
        await run_in_threadpool(service.close)

    app = FastAPI(
        title=TITLE, description=ABOUT, version=version("metalora"), docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.router.redirect_slashes = False
    app.state.service = service
    for router in (tasks.ROUTER, predictions.ROUTER, about.ROUTER):
        app.include_router(router)
    add_page(app)
    _answer_errors(app)
    _add_middleware(app, service)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _add_middleware(app: FastAPI, service: Service) -> None:
    """Add what surrounds the app; the last one is outermost."""
    app.add_middleware(RequestFrame, service=service)
    if service.config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.config.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "X-Request-Id"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )


def _answer_errors(app: FastAPI) -> None:
    """Give every error the one form."""

    @app.exception_handler(ServiceError)
    async def of_service(request: Request, error: ServiceError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, error.headers())

    @app.exception_handler(RequestValidationError)
    async def of_parameters(request: Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        name = str(problem["loc"][-1])
        return await of_service(request, ServiceError("invalid_input", f"{name}: {problem['msg']}", name))

    @app.exception_handler(StoreFailure)
    async def of_store(request: Request, error: StoreFailure) -> JSONResponse:
        return await of_service(request, ServiceError("unavailable", "the store does not work now", retry_after=1))

    @app.exception_handler(HTTPException)
    async def of_routing(request: Request, error: HTTPException) -> JSONResponse:
        code = "method_not_allowed" if error.status_code == 405 else "not_found"
        sentence = "this path takes another method" if error.status_code == 405 else "there is no such path"
        answer = ServiceError(code, sentence)
        return JSONResponse(answer.body(), answer.status, error.headers)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the documentation, with the schemas of the bodies, which are read by hand."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        template = "#/components/schemas/{model}"
        _, bodies = models_json_schema([(body, "validation") for body in BODIES], ref_template=template)
        schema["components"]["schemas"] |= bodies["$defs"]
        app.openapi_schema = schema
    return app.openapi_schema
