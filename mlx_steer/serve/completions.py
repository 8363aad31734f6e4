"""One request from its body to its response: asks to the living batch, events back as JSON."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import JsonValue

from mlx_steer.engine.jobs import Sampling
from mlx_steer.errors import SteerError
from mlx_steer.model.chat import ChatFormat
from mlx_steer.serve.calls import Calls, Json
from mlx_steer.serve.catalog import Catalog, Resolved
from mlx_steer.serve.choices import LOST, Choice
from mlx_steer.serve.messages import Ask, Event, Live, Ticket, Token
from mlx_steer.serve.problems import Problem, invalid
from mlx_steer.serve.protocol import ChatRequest, TextRequest
from mlx_steer.serve.replies import (
    DONE,
    Envelope,
    chat_choice,
    chat_logprobs,
    chunk_choice,
    event,
    text_choice,
    text_logprobs,
)
from mlx_steer.serve.stops import Stops

DEFAULT_TOKENS = 512


@dataclass(frozen=True)
class Service:
    """What routes need.

    Attributes:
        live: The living batch.
        chat: Tokenizer and chat template.
        catalog: Vectors and presets.
        context: The longest sequence the model computes correctly; None if unknown.
    """

    live: Live
    chat: ChatFormat
    catalog: Catalog
    context: int | None


@dataclass(frozen=True, eq=False)
class Order:
    """A request that was understood.

    Attributes:
        asks: One for each choice.
        envelope: What its responses repeat.
        resolved: What steers.
        stop: Its stop strings.
        tools: The tools that are offered.
        usage: Whether a stream ends with a chunk of usage.
    """

    asks: tuple[Ask, ...]
    envelope: Envelope
    resolved: Resolved
    stop: tuple[str, ...]
    tools: tuple[dict[str, JsonValue], ...]
    usage: bool

    @property
    def kind(self) -> Literal["chat", "text"]:
        """Which API it came by."""
        return "chat" if self.envelope.chat else "text"

    def choices(self, chat: ChatFormat) -> list[Choice]:
        """Its responses before they begin."""
        return [
            Choice(Stops(self.stop), Calls(chat, self.tools) if self.tools else None)
            for _ in self.asks
        ]


def understood(service: Service, request: ChatRequest | TextRequest) -> Order:
    """A request as asks to the living batch.

    Raises:
        Problem: If a name is unknown, the template cannot render the messages, or the prompt and
            what may follow it exceed the model's context.
    """
    resolved = service.catalog.resolve(request.model, request.preset, request.steering)
    ids = _ids(service.chat, request)
    if len(ids) < 2:
        raise invalid("the prompt needs at least two tokens", "messages")
    limit = service.context
    asked = request.longest
    if limit is not None and len(ids) + (asked or 1) > limit:
        raise Problem(
            400,
            f"the prompt has {len(ids)} tokens; {asked or 1} more exceed the {limit} that the "
            "model computes correctly; shorten the conversation or lower max_tokens",
            "messages",
            "context_length_exceeded",
        )
    longest = asked or min(DEFAULT_TOKENS, limit - len(ids) if limit else DEFAULT_TOKENS)
    seed = request.seed if request.seed is not None else secrets.randbits(32)
    # The API's default temperature is 1.
    temperature = 1.0 if request.temperature is None else request.temperature
    asks = tuple(
        Ask(
            ids,
            resolved.condition,
            Sampling(
                longest,
                temperature,
                seed + i,
                1.0 if request.top_p is None else request.top_p,
                request.top_k or 0,
                request.min_p or 0.0,
            ),
            request.wanted_logprobs,
            request.projections,
        )
        for i in range(request.n or 1)
    )
    options = request.stream_options
    model = request.model or service.catalog.offered.model
    envelope = Envelope(isinstance(request, ChatRequest), model, len(ids))
    usage = bool(options and options.include_usage)
    return Order(asks, envelope, resolved, request.stop, _tools(request), usage)


async def whole(service: Service, order: Order) -> Json:
    """The response to a request that is not streamed."""
    choices = order.choices(service.chat)
    tickets = _submitted(service.live, order)
    try:
        async with asyncio.TaskGroup() as group:
            for ticket, choice in zip(tickets, choices, strict=True):
                group.create_task(_gather(ticket, choice))
    except* Problem as problems:
        raise problems.exceptions[0] from None
    finally:
        for ticket in tickets:
            ticket.cancel()
    make = chat_choice if order.envelope.chat else text_choice
    found = [make(i, c, _logprobs(service, order, c.tokens)) for i, c in enumerate(choices)]
    told = _told(order, choices[0])
    if order.asks[0].projections:
        told["projections"] = [[t.projection for t in choice.tokens] for choice in choices]
    return {
        **order.envelope.head(chunk=False),
        "choices": list(found),
        "usage": order.envelope.usage(choices),
        "steering": told,
    }


async def streamed(service: Service, order: Order) -> AsyncGenerator[str, None]:
    """The response as server-sent events, each choice's tokens as they come.

    Raises:
        Problem: If it is refused before the first event; later ones are events themselves.
    """
    choices = order.choices(service.chat)
    tickets = _submitted(service.live, order)
    queue: asyncio.Queue[tuple[int, Event | None]] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(i, ticket, queue)) for i, ticket in enumerate(tickets)]
    said_any = False
    try:
        while any(choice.finish_reason is None for choice in choices):
            index, happened = await queue.get()
            choice = choices[index]
            if choice.finish_reason is not None:
                continue
            if happened is None:
                raise LOST
            for body in _chunks(service, order, index, choice, happened):
                yield event({**order.envelope.head(chunk=True), **body})
                said_any = True
            if choice.finish_reason is not None:
                tickets[index].cancel("stop")
        if order.usage:
            usage = order.envelope.usage(choices)
            yield event({**order.envelope.head(chunk=True), "choices": [], "usage": usage})
        yield DONE
    except Problem as problem:
        if not said_any:
            raise
        yield event(problem.body())
    finally:
        for pump in pumps:
            pump.cancel()
        for ticket in tickets:
            ticket.cancel()


def _chunks(
    service: Service, order: Order, index: int, choice: Choice, happened: Event
) -> list[Json]:
    """What one event adds to a stream."""
    kind = order.kind
    added = choice.take(happened)
    if added.begun:
        first: Json = {"role": "assistant", "content": ""}
        return [{"choices": [chunk_choice(index, kind, first)], "steering": _told(order, choice)}]
    found: list[Json] = []
    logprobs = _logprobs(service, order, [added.token] if added.token else [])
    delta: Json = {"content": added.text} if added.text else {}
    if added.thinking:
        delta["reasoning_content"] = added.thinking
    if added.calls:
        delta["tool_calls"] = list(added.calls)
    projection = added.token.projection if added.token else None
    if delta or (added.token and (logprobs is not None or projection is not None)):
        body: Json = {"choices": [chunk_choice(index, kind, delta, logprobs)]}
        if projection is not None:
            body["projection"] = projection
        found.append(body)
    if choice.finish_reason is not None:
        found.append({"choices": [chunk_choice(index, kind, {}, None, choice.finish_reason)]})
    return found


def _submitted(live: Live, order: Order) -> list[Ticket]:
    """All of a request's choices, or none."""
    tickets: list[Ticket] = []
    try:
        for ask in order.asks:
            tickets.append(live.submit(ask))
    except Problem:
        for ticket in tickets:
            ticket.cancel()
        raise
    return tickets


async def _gather(ticket: Ticket, choice: Choice) -> None:
    async for happened in ticket.events():
        choice.take(happened)
        if choice.finish_reason is not None:
            ticket.cancel("stop")
            return
    raise LOST


async def _pump(index: int, ticket: Ticket, queue: asyncio.Queue[tuple[int, Event | None]]) -> None:
    async for happened in ticket.events():
        await queue.put((index, happened))
    await queue.put((index, None))


def _ids(chat: ChatFormat, request: ChatRequest | TextRequest) -> tuple[int, ...]:
    if isinstance(request, TextRequest):
        own = str(chat.tokenizer.bos_token or "")
        bare = bool(own) and request.prompt.startswith(own)
        return tuple(chat.tokenizer.encode(request.prompt, add_special_tokens=not bare))
    messages: list[Any] = [message.rendered() for message in request.messages]
    try:
        return tuple(chat.conversation_ids(messages, _tools(request)))
    except SteerError as error:
        raise invalid(str(error), "messages") from error


def _tools(request: ChatRequest | TextRequest) -> tuple[dict[str, JsonValue], ...]:
    if isinstance(request, TextRequest) or request.tool_choice == "none":
        return ()
    return tuple(tool.model_dump() for tool in request.tools or ())


def _logprobs(service: Service, order: Order, tokens: Sequence[Token]) -> Json | None:
    if order.asks[0].logprobs is None or not tokens:
        return None
    every = {t.id for t in tokens} | {token for t in tokens for token, _ in t.top}
    names = {token: service.chat.decode([token]) for token in every}
    return chat_logprobs(tokens, names) if order.envelope.chat else text_logprobs(tokens, names)


def _told(order: Order, choice: Choice) -> Json:
    """What steered, for the response."""
    gates = [round(score, 4) for score in choice.begun.gates]
    return {**order.resolved.echo(), "gates": list(gates), "steered": choice.begun.steered}
