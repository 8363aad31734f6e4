"""The routes: the OpenAI API, presets, health, metrics and the playground page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from pydantic import BaseModel, Field, JsonValue, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from mlx_steer.behaviors import list_behaviors, load_behavior
from mlx_steer.serve.catalog import Preset
from mlx_steer.serve.completions import Service, streamed, understood, whole
from mlx_steer.serve.guard import LARGEST_BODY, Access, Guard
from mlx_steer.serve.problems import Problem, from_validation
from mlx_steer.serve.protocol import ChatRequest, Steer, TextRequest
from mlx_steer.serve.telemetry import prometheus

_T = TypeVar("_T")
_Body = TypeVar("_Body", bound=BaseModel)
# A client may be slow, but not for ever.
_BODY_SECONDS = 30


class PresetRequest(BaseModel):
    """The body of /v1/presets."""

    name: str = Field(max_length=200)
    steering: tuple[Steer, ...] = Field(min_length=1)


def make_app(service: Service, access: Access) -> Guard:
    """The server's application.

    Args:
        service: What it serves.
        access: Who may ask.
    """
    routes = _Routes(service)
    app = Starlette(
        routes=[
            Route("/", routes.page),
            Route("/health", routes.health),
            Route("/metrics", routes.metrics),
            Route("/v1/models", routes.models),
            Route("/v1/models/{model:path}", routes.model),
            Route("/v1/vectors", routes.vectors),
            Route("/v1/presets", routes.add_preset, methods=["POST"]),
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/completions", routes.text, methods=["POST"]),
        ],
        exception_handlers={
            Problem: _told,
            HTTPException: _http,
            ClientDisconnect: _gone,
            Exception: _broken,
        },
    )
    return Guard(app, access)


class _Routes:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._tokenising = asyncio.Lock()
        self._page = resources.files("mlx_steer.serve").joinpath("playground.html")

    async def page(self, request: Request) -> Response:
        """The playground."""
        # One self-contained page: nothing from elsewhere may run in it.
        policy = (
            "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        headers = {"content-security-policy": policy, "referrer-policy": "no-referrer"}
        return HTMLResponse(self._page.read_text(encoding="utf-8"), headers=headers)

    async def health(self, request: Request) -> Response:
        """Whether it takes steps."""
        alive = self._service.live.alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    async def metrics(self, request: Request) -> Response:
        """Counters for Prometheus."""
        return PlainTextResponse(
            prometheus(self._service.live.load()), media_type="text/plain; version=0.0.4"
        )

    async def models(self, request: Request) -> Response:
        """The base model, and each preset as `model+preset`."""
        catalog = self._service.catalog
        base = catalog.offered.model
        entries = [_entry(base)]
        entries += [_entry(f"{base}+{p.name}", p) for p in list(catalog.presets.values())]
        return JSONResponse({"object": "list", "data": entries})

    async def model(self, request: Request) -> Response:
        """One of them."""
        catalog, wanted = self._service.catalog, request.path_params["model"]
        base = catalog.offered.model
        if wanted == base:
            return JSONResponse(_entry(base))
        preset = catalog.presets.get(wanted.removeprefix(f"{base}+"))
        if preset is None or wanted != f"{base}+{preset.name}":
            raise Problem(404, f"there is no model {wanted[:80]!r}", "model", "model_not_found")
        return JSONResponse(_entry(wanted, preset))

    async def vectors(self, request: Request) -> Response:
        """The vectors by name: layers, doses, gates and evidence."""
        catalog = self._service.catalog
        found: dict[str, JsonValue] = {}
        for name, vectors in catalog.vectors.items():
            measured = catalog.measured(name)
            found[name] = {
                "behavior": vectors.metadata.behavior,
                "title": _title(vectors.metadata.behavior),
                "layers": {
                    str(layer): {
                        "norm": vector.norm,
                        "dose_per_strength": vector.relative_dose(1.0),
                    }
                    for layer, vector in vectors.items()
                },
                "gates": [gate.name for gate in vectors.gates],
                "measured": None if measured is None else measured.told(),
            }
        presets = {p.name: _steering(p) for p in list(catalog.presets.values())}
        return JSONResponse({"model": catalog.offered.model, "vectors": found, "presets": presets})

    async def add_preset(self, request: Request) -> Response:
        """Offer a condition under a name, until the server stops."""
        body = await _read(request, PresetRequest)
        preset = self._service.catalog.add_preset(body.name, body.steering)
        return JSONResponse({"name": preset.name, "steering": _steering(preset)}, 201)

    async def chat(self, request: Request) -> Response:
        """A chat completion."""
        return await self._complete(request, await _read(request, ChatRequest))

    async def text(self, request: Request) -> Response:
        """A text completion."""
        return await self._complete(request, await _read(request, TextRequest))

    async def _complete(self, request: Request, body: ChatRequest | TextRequest) -> Response:
        # Long prompts are tokenised beside the event loop, one at a time.
        async with self._tokenising:
            order = await asyncio.to_thread(understood, self._service, body)
        if not body.stream:
            return JSONResponse(await _unless_gone(request, whole(self._service, order)))
        stream = streamed(self._service, order)
        # The first event is waited for, so that what is refused has its own status.
        first = await _unless_gone(request, _next(stream))

        async def all_events() -> AsyncIterator[str]:
            async with aclosing(stream):
                yield first
                async for one in stream:
                    yield one

        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(all_events(), media_type="text/event-stream", headers=headers)


async def _next(stream: AsyncIterator[str]) -> str:
    return await anext(stream)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of some work, which is given up when the client hangs up.

    Raises:
        ClientDisconnect: If it did.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_gone_from(request))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone_from(request: Request) -> None:
    # The body has been read: what comes now can only say that nobody waits any more.
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _bytes_of(request: Request) -> bytes:
    """A request's body, of bounded size whatever its header says, and in bounded time."""
    data = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                data += part
                if len(data) > LARGEST_BODY:
                    raise Problem(413, f"the body is larger than {LARGEST_BODY} bytes; send less")
    except TimeoutError:
        raise Problem(408, f"the body did not come within {_BODY_SECONDS} s") from None
    return bytes(data)


async def _read(request: Request, kind: type[_Body]) -> _Body:
    """A request's body as what it should be."""
    data = await _bytes_of(request)
    try:
        value = json.loads(data)
        if b"\\ud" in data.lower():  # half a character, which no tokenizer can read
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise Problem(400, "the body is not JSON", None, "invalid_json") from None
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise from_validation(error) from None
    except RecursionError:
        raise Problem(400, "the body is nested too deeply", None, "invalid_json") from None


@cache
def _title(behavior: str) -> str | None:
    """What a shipped behavior is, in a few words."""
    return load_behavior(behavior).title if behavior in list_behaviors() else None


def _entry(model: str, preset: Preset | None = None) -> dict[str, JsonValue]:
    entry: dict[str, JsonValue] = {
        "id": model,
        "object": "model",
        "created": 0,
        "owned_by": "mlx-steer",
    }
    if preset is not None:
        entry["steering"] = _steering(preset)
        entry["evidence"] = None if preset.measured is None else preset.measured.told()
    return entry


def _steering(preset: Preset) -> list[JsonValue]:
    return [item.model_dump(exclude_none=True) for item in preset.steering]


async def _told(request: Request, error: Exception) -> Response:
    if not isinstance(error, Problem):
        raise error
    wait = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    return JSONResponse(error.body(), error.status, headers=wait)


async def _http(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    said = {404: "there is no such route", 405: "this route takes another method"}
    return JSONResponse(Problem(status, said.get(status, "refused")).body(), status)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse(Problem(500, "the server failed; its log says how").body(), 500)
