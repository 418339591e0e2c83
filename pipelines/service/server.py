"""The service's HTTP interface: submit, look, cancel, follow; one token, loopback unless told otherwise."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

from pydantic import Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from pipelines.service.jobs import OPEN, JobRecord
from pipelines.service.service import RefusedError, Service
from wsi.config import Config, first_mistake
from wsi.errors import WsiError

LARGEST_REQUEST = 20_000  # bytes
EVENT_S = 0.5  # between two looks for an event
RETRY_S = 60
API = 1  # version of the interface; a client of another one is refused


class Submission(Config):
    """What a caller submits.

    Attributes:
        slide: path on the server's machine.
        within_s: seconds from now to the deadline; None with ``by`` None: there is none.
        by: the deadline, seconds since 1970, instead of ``within_s``.
        or_later: whether it is taken without a promise where the deadline cannot be kept.
        mpp: um per pixel; None: the file states it.
    """

    slide: str = Field(min_length=1, max_length=4096)
    within_s: Annotated[float, Field(gt=0, le=1e8)] | None = None
    by: Annotated[float, Field(gt=0, le=1e11)] | None = None
    or_later: bool = False
    mpp: Annotated[float, Field(gt=0, le=100)] | None = None


def application(service: Service, token: str, hosts: frozenset[str] | None) -> Starlette:
    """The web application.

    Args:
        service: does the work.
        token: of the header ``Authorization: Bearer``; whoever does not know it learns no more than that it runs.
        hosts: values of the header Host that are answered; None: any, for servers that others may reach.
    """

    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        return _refusal(request, token, hosts) or await call_next(request)

    answers = _Answers(service)
    routes = [
        Route("/health", answers.health),
        Route("/openapi.json", answers.openapi),
        Route("/metrics", answers.metrics),
        Route("/api/jobs", answers.jobs),
        Route("/api/jobs", answers.submit, methods=["POST"]),
        Route("/api/jobs/{id}", answers.job),
        Route("/api/jobs/{id}", answers.cancel, methods=["DELETE"]),
        Route("/api/jobs/{id}/events", answers.events),
    ]
    return Starlette(routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=guard)])


class _Answers:
    """The answer to each kind of request."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def health(self, request: Request) -> Response:  # it answers also while all threads plan slides
        return JSONResponse({"state": "ok", "api": API})

    def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi())

    def metrics(self, request: Request) -> Response:
        return PlainTextResponse(metrics(self._service), media_type="text/plain; version=0.0.4")

    def jobs(self, request: Request) -> Response:
        wanted = request.query_params.get("state", "")
        expected = self._service.expected()
        records = self._service.store.all(OPEN if wanted == "open" else (), most=10_000)
        return JSONResponse(
            {"now": self._service.clock(), "jobs": [self._shown(r, expected) for r in records]}
        )

    def _shown(self, record: JobRecord, expected: dict[str, float]) -> dict[str, Any]:
        return record.public() | {
            "expected": expected.get(record.id),
            "progress": self._service.progress(record.id),
        }

    async def submit(self, request: Request) -> Response:
        if request.headers.get("content-type") != "application/json":
            return JSONResponse({"error": "send application/json"}, 415)
        if int(request.headers.get("content-length") or LARGEST_REQUEST + 1) > LARGEST_REQUEST:
            return JSONResponse({"error": "the request is too long"}, 413)
        body = await request.body()
        return await run_in_threadpool(self._submit, body)

    def _submit(self, body: bytes) -> Response:
        try:
            asked = Submission.model_validate_json(body)
        except ValidationError as error:
            return JSONResponse({"error": f"the request is not understood ({first_mistake(error)})"}, 422)
        if asked.by is not None and asked.within_s is not None:
            return JSONResponse({"error": "give by or within_s, not both"}, 422)
        deadline = asked.by if asked.within_s is None else self._service.clock() + asked.within_s
        try:
            record, is_new = self._service.submit(
                asked.slide, deadline=deadline, or_later=asked.or_later, mpp=asked.mpp
            )
        except RefusedError as error:
            headers = {"Retry-After": str(RETRY_S)} if error.status == 429 else None
            return JSONResponse({"error": str(error), "earliest": error.earliest}, error.status, headers)
        except WsiError as error:  # the disk is full
            return JSONResponse({"error": str(error)}, 507)
        return JSONResponse(self._shown(record, self._service.expected()), 201 if is_new else 200)

    def job(self, request: Request) -> Response:
        try:
            record = self._service.store.get(request.path_params["id"])
        except KeyError:
            return JSONResponse({"error": "there is no such job"}, 404)
        return JSONResponse(self._shown(record, self._service.expected()))

    def cancel(self, request: Request) -> Response:
        try:
            return JSONResponse(self._service.cancel(request.path_params["id"]).public())
        except KeyError:
            return JSONResponse({"error": "there is no such job"}, 404)

    async def events(self, request: Request) -> Response:
        key = request.path_params["id"]
        try:
            self._service.store.get(key)
        except KeyError:
            return JSONResponse({"error": "there is no such job"}, 404)

        async def lines() -> AsyncIterator[str]:
            before = ""
            while True:
                record = await run_in_threadpool(self._service.store.get, key)
                shown = self._shown(record, self._service.expected())
                del shown["expected"]  # it changes with every look
                text = json.dumps(shown)
                if text != before:
                    yield f"data: {text}\n\n"
                    before = text
                if record.state not in OPEN or await request.is_disconnected():
                    return
                await asyncio.sleep(EVENT_S)

        return StreamingResponse(lines(), media_type="text/event-stream")


def _refusal(request: Request, token: str, hosts: frozenset[str] | None) -> Response | None:
    """Why a request is refused; None where it is answered."""
    if hosts is not None and request.headers.get("host", "") not in hosts:
        return JSONResponse({"error": "this server answers to its own address only"}, 400)
    if request.headers.get("origin") is not None:
        return JSONResponse({"error": "requests of pages are refused"}, 403)
    if request.url.path == "/health":
        return None
    if not hmac.compare_digest(request.headers.get("authorization", "").encode(), f"Bearer {token}".encode()):
        return JSONResponse(
            {"error": "the token is missing or wrong; wsi serve writes it to OUT/.service"}, 403
        )
    stated = request.headers.get("x-slidewright-api", str(API))
    if stated != str(API):
        return JSONResponse(
            {
                "error": f"the client speaks version {stated[:20]} of the interface, the server {API}; update one"
            },
            426,
        )
    return None


def metrics(service: Service) -> str:
    """What the service does, in the form that Prometheus reads."""
    pace = service.pace
    lines = [
        "# TYPE slidewright_jobs gauge",
        *(f'slidewright_jobs{{state="{state}"}} {n}' for state, n in sorted(service.store.counts().items())),
        "# TYPE slidewright_promised_open gauge",
        f"slidewright_promised_open {len(service.expected())}",
        "# TYPE slidewright_cells_total counter",
        f"slidewright_cells_total {service.cells}",
        "# TYPE slidewright_busy_seconds_total counter",
        f"slidewright_busy_seconds_total {service.busy_s:.3f}",
        "# TYPE slidewright_seconds_per_cell gauge",
        f"slidewright_seconds_per_cell {pace.cell_s:.6f}",
        "# TYPE slidewright_seconds_per_slide gauge",
        f"slidewright_seconds_per_slide {pace.slide_s:.3f}",
    ]
    return "\n".join(lines) + "\n"


def openapi() -> dict[str, Any]:
    """The description of the interface."""
    job = {
        "id": {"type": "string"},
        "name": {"type": "string", "description": "of the slide, and of its folder in the results"},
        "state": {"enum": ["waiting", "running", "done", "failed", "cancelled"]},
        "submitted": {"type": "number", "description": "seconds since 1970, as all times here"},
        "deadline": {"type": ["number", "null"]},
        "promised": {
            "type": ["number", "null"],
            "description": "when it was to end, as promised on submission",
        },
        "expected": {"type": ["number", "null"], "description": "when it is to end, as things stand"},
        "ended": {"type": ["number", "null"]},
        "cells": {"type": "integer"},
        "progress": {"type": ["array", "null"], "items": {"type": "integer"}},
        "reason": {"type": "string"},
    }
    answer = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Job"}}}}

    def said(**codes: str) -> dict[str, Any]:
        words = {code.removeprefix("s"): {"description": text} for code, text in codes.items()}
        return {code: words[code] | (answer if code in ("200", "201") else {}) for code in words}

    key = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    refused = {"s403": "the token is missing or wrong", "s404": "there is no such job"}
    submit = said(
        s200="the same file was submitted before; its job",
        s201="it is taken",
        s403="the token is missing or wrong",
        s409="the deadline cannot be kept; earliest says when it could be done",
        s413="the request is too long",
        s415="it is not JSON",
        s422="the slide cannot be read, or the request is not understood",
        s429="too many slides wait; see Retry-After",
        s507="the disk is full",
    )
    schema = Submission.model_json_schema()
    return {
        "openapi": "3.1.0",
        "info": {"title": "slidewright scoring service", "version": str(API)},
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Job": {"type": "object", "properties": job}, "Submission": schema},
        },
        "security": [{"token": []}],
        "paths": {
            "/health": {"get": {"security": [], "responses": {"200": {"description": "it runs"}}}},
            "/metrics": {"get": {"responses": {"200": {"description": "Prometheus' text"}}}},
            "/api/jobs": {
                "get": {
                    "parameters": [{"name": "state", "in": "query", "schema": {"enum": ["open"]}}],
                    "responses": {"200": {"description": "jobs, by submission"}},
                },
                "post": {
                    "requestBody": {
                        "required": True,
                        "content": {
                            "application/json": {"schema": {"$ref": "#/components/schemas/Submission"}}
                        },
                    },
                    "responses": submit,
                },
            },
            "/api/jobs/{id}": {
                "get": {"parameters": key, "responses": said(s200="the job", **refused)},
                "delete": {
                    "parameters": key,
                    "responses": said(s200="it is cancelled, or had ended", **refused),
                },
            },
            "/api/jobs/{id}/events": {
                "get": {
                    "parameters": key,
                    "responses": {"200": {"description": "server-sent events of its changes"}},
                }
            },
        },
    }
