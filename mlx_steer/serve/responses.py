"""A response that was taken on: where its events go, and what its client knows already."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mlx_steer.engine.batch import Row, Seen
from mlx_steer.serve.messages import Ask, Begun, Ended, Event, Token
from mlx_steer.serve.problems import Problem
from mlx_steer.serve.speech import Speech


class Listener(Protocol):
    """Whom a response's events go to.

    Attributes:
        gone: Why nobody waits for them any more, if so.
    """

    gone: str | None

    def deliver(self, events: Sequence[Event]) -> None:
        """Hand events over."""


class EventQueue:
    """A `messages.Ticket` on the event loop that asked.

    Args:
        wake: Called when nobody waits for it any more.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        """See the class."""
        self.gone: str | None = None
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    async def events(self) -> AsyncIterator[Event]:
        """See `messages.Ticket`."""
        while True:
            event = await self._events.get()
            yield event
            if isinstance(event, Ended):
                return

    def cancel(self, reason: str = "cancelled") -> None:
        """See `messages.Ticket`."""
        if self.gone is None:
            self.gone = reason
            self._wake()

    def deliver(self, events: Sequence[Event]) -> None:
        """Hand events over, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._put, list(events))
        except RuntimeError:  # the loop is closed: nobody can be told any more
            self.gone = self.gone or "cancelled"

    def _put(self, events: Sequence[Event]) -> None:
        for event in events:
            self._events.put_nowait(event)


@dataclass(eq=False)
class Seat:
    """A response that was taken on.

    Attributes:
        ask: What is wanted.
        ticket: Where its events go.
        speech: Its text.
        told: The tokens its client knows of. After a failure they are made again, and not told.
        begun: Whether its client knows that it has begun.
        heard: How many of its row's tokens were looked at.
    """

    ask: Ask
    ticket: Listener
    speech: Speech
    told: list[int] = field(default_factory=list)
    begun: bool = False
    heard: int = 0

    def begin(self, begun: Begun) -> None:
        """Tell that the prompt is read, unless that is known."""
        self.heard = 0
        if not self.begun:
            self.begun = True
            self.ticket.deliver([begun])

    def news(self, row: Row) -> list[Event]:
        """Events for the tokens that its row has got.

        Raises:
            Problem: If tokens that were made again came out otherwise.
        """
        events: list[Event] = []
        for place in range(self.heard, len(row.tokens)):
            token = row.tokens[place]
            if place < len(self.told):
                if self.told[place] != token:
                    raise Problem(500, "the response was lost; send the request again")
                continue
            self.told.append(token)
            thinking = self.speech.thinking
            text = self.speech.add(token)
            seen = row.seen[place] if row.watch is not None else Seen()
            events.append(Token(token, text, thinking, seen.logprob, seen.top, seen.projection))
        self.heard = len(row.tokens)
        return events

    def end(self, row: Row) -> Ended:
        """The last event of a row that is done."""
        full = len(row.tokens) >= row.sampling.max_tokens
        return Ended("length" if full else "stop", self.speech.rest())
