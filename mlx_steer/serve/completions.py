"""One request from its body to its response: asks to the living batch, events back as JSON."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlx_steer.errors import SteerError
from mlx_steer.model.chat import ChatFormat
from mlx_steer.serve.catalog import Catalog, Resolved
from mlx_steer.serve.live import Ask, Begun, Choosing, Ended, Event, Live, Ticket, Token
from mlx_steer.serve.problems import Problem, invalid
from mlx_steer.serve.protocol import ChatRequest, TextRequest
from mlx_steer.serve.replies import (
    DONE,
    Choice,
    Envelope,
    Json,
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
        usage: Whether a stream ends with a chunk of usage.
    """

    asks: tuple[Ask, ...]
    envelope: Envelope
    resolved: Resolved
    stop: tuple[str, ...]
    usage: bool

    @property
    def kind(self) -> Literal["chat", "text"]:
        """Which API it came by."""
        return "chat" if self.envelope.chat else "text"


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
            f"the prompt has {len(ids)} tokens; {asked or 1} more exceed the {limit} that the model "
            "computes correctly; shorten the conversation or lower max_tokens",
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
            Choosing(
                longest,
                temperature,
                1.0 if request.top_p is None else request.top_p,
                request.top_k or 0,
                request.min_p or 0.0,
                seed + i,
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
    return Order(asks, envelope, resolved, request.stop, usage)


async def whole(service: Service, order: Order) -> Json:
    """The response to a request that is not streamed."""
    choices = [Choice() for _ in order.asks]
    tickets = _submitted(service.live, order)
    try:
        async with asyncio.TaskGroup() as group:
            for ticket, choice in zip(tickets, choices, strict=True):
                group.create_task(_gather(ticket, choice, order.stop))
    except* Problem as problems:
        raise problems.exceptions[0] from None
    finally:
        for ticket in tickets:
            ticket.cancel()
    make = chat_choice if order.envelope.chat else text_choice
    found = [make(i, c, _logprobs(service, order, c.tokens)) for i, c in enumerate(choices)]
    return {
        **order.envelope.head(chunk=False),
        "choices": list(found),
        "usage": order.envelope.usage(choices),
        "steering": _told(order, choices[0]),
    }


async def streamed(service: Service, order: Order) -> AsyncIterator[str]:
    """The response as server-sent events, each choice's tokens as they come."""
    tickets = _submitted(service.live, order)
    choices = [Choice() for _ in tickets]
    queue: asyncio.Queue[tuple[int, Event | None]] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(i, ticket, queue)) for i, ticket in enumerate(tickets)]
    try:
        stops = [Stops(order.stop) for _ in tickets]
        open_choices = set(range(len(tickets)))
        while open_choices:
            index, happened = await queue.get()
            if index not in open_choices:
                continue
            choice, held = choices[index], stops[index]
            for body in _chunks(service, order, index, choice, held, happened):
                yield event({**order.envelope.head(chunk=True), **body})
            if choice.finish_reason is not None:
                open_choices.discard(index)
                tickets[index].cancel()
        if order.usage:
            usage = order.envelope.usage(choices)
            yield event({**order.envelope.head(chunk=True), "choices": [], "usage": usage})
        yield DONE
    except Problem as problem:
        yield event(problem.body())
    finally:
        for pump in pumps:
            pump.cancel()
        for ticket in tickets:
            ticket.cancel()


def _chunks(
    service: Service, order: Order, index: int, choice: Choice, stops: Stops, happened: Event | None
) -> list[Json]:
    """What one event adds to a stream."""
    kind = order.kind
    if isinstance(happened, Begun):
        choice.begun = happened
        first: Json = {"role": "assistant", "content": ""}
        return [{"choices": [chunk_choice(index, kind, first)], "steering": _told(order, choice)}]
    if isinstance(happened, Token):
        choice.tokens.append(happened)
        text = stops.feed(happened.text)
        choice.text += text
        found: list[Json] = []
        logprobs = _logprobs(service, order, [happened])
        if text or logprobs is not None or happened.projection is not None:
            body: Json = {"choices": [chunk_choice(index, kind, {"content": text}, logprobs)]}
            if happened.projection is not None:
                body["projection"] = happened.projection
            found.append(body)
        if stops.stopped:
            choice.finish_reason = "stop"
            found.append({"choices": [chunk_choice(index, kind, {}, None, "stop")]})
        return found
    if isinstance(happened, Ended) and happened.problem is None:
        choice.finish_reason = happened.reason
        rest = stops.rest()
        choice.text += rest
        delta: Json = {"content": rest} if rest else {}
        return [{"choices": [chunk_choice(index, kind, delta, None, happened.reason)]}]
    problem = happened.problem if isinstance(happened, Ended) else None
    raise problem or Problem(500, "the response was lost; send the request again")


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


async def _gather(ticket: Ticket, choice: Choice, stop: Sequence[str]) -> None:
    stops = Stops(stop)
    async for happened in ticket.events():
        if isinstance(happened, Begun):
            choice.begun = happened
        elif isinstance(happened, Token):
            choice.tokens.append(happened)
            choice.text += stops.feed(happened.text)
            if stops.stopped:
                choice.finish_reason = "stop"
                return
        elif happened.problem is not None:
            raise happened.problem
        else:
            choice.text += stops.rest()
            choice.finish_reason = happened.reason


async def _pump(index: int, ticket: Ticket, queue: asyncio.Queue[tuple[int, Event | None]]) -> None:
    async for happened in ticket.events():
        await queue.put((index, happened))
    await queue.put((index, None))


def _ids(chat: ChatFormat, request: ChatRequest | TextRequest) -> tuple[int, ...]:
    if isinstance(request, TextRequest):
        return tuple(chat.response_ids(request.prompt))
    messages: list[Any] = [message.rendered() for message in request.messages]
    try:
        tools = () if request.tool_choice == "none" else request.tools or ()
        return tuple(chat.conversation_ids(messages, tools))
    except SteerError as error:
        raise invalid(str(error), "messages") from error


def _logprobs(service: Service, order: Order, tokens: Sequence[Token]) -> Json | None:
    if order.asks[0].logprobs is None:
        return None
    every = {t.id for t in tokens} | {token for t in tokens for token, _ in t.top}
    names = {token: service.chat.decode([token]) for token in every}
    return chat_logprobs(tokens, names) if order.envelope.chat else text_logprobs(tokens, names)


def _told(order: Order, choice: Choice) -> Json:
    """What steered, for the response."""
    gates = [round(score, 4) for score in choice.begun.gates]
    return {**order.resolved.echo(), "gates": list(gates), "steered": choice.begun.steered}
