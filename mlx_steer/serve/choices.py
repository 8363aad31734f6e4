"""One response as far as it has come: events in, what its client is shown next out."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlx_steer.serve.calls import Calls, Json
from mlx_steer.serve.messages import Begun, Event, Token
from mlx_steer.serve.problems import Problem
from mlx_steer.serve.stops import Stops


@dataclass(frozen=True)
class Addition:
    """What an event adds to a response.

    Attributes:
        text: Of the answer.
        thinking: Of the thinking before it.
        calls: Tool calls that are whole now.
        token: The token that came.
        begun: Whether this is the beginning.
    """

    text: str = ""
    thinking: str = ""
    calls: tuple[Json, ...] = ()
    token: Token | None = None
    begun: bool = False


@dataclass
class Choice:
    """One response as far as it has come.

    Attributes:
        stops: Ends it at stop strings.
        calls: Finds its tool calls; None where no tools were offered.
        text: What may be shown of the answer.
        thinking: The thinking before it.
        tokens: Its tokens.
        begun: What was told when its prompt was read.
        finish_reason: Why it ended.
    """

    stops: Stops
    calls: Calls | None = None
    text: str = ""
    thinking: str = ""
    tokens: list[Token] = field(default_factory=list)
    begun: Begun = field(default_factory=Begun)
    finish_reason: str | None = None

    @property
    def tool_calls(self) -> list[Json]:
        """Its tool calls that are whole."""
        return self.calls.found if self.calls else []

    def take(self, event: Event) -> Addition:
        """Go on by an event; `finish_reason` is set at the end, or at a stop string.

        Raises:
            Problem: If the response could not be finished.
        """
        if isinstance(event, Begun):
            self.begun = event
            return Addition(begun=True)
        before = len(self.tool_calls)
        if isinstance(event, Token):
            self.tokens.append(event)
            if event.thinking:
                self.thinking += event.text
                return Addition(thinking=event.text, token=event)
            text = self._answer(self.stops.feed(event.text))
            if self.stops.stopped:
                text += self._end("stop")
            token: Token | None = event
        elif event.problem is not None:
            raise event.problem
        else:
            text, token = self._answer(self.stops.feed(event.text)), None
            reason = "stop" if self.stops.stopped else event.reason
            text += self._answer(self.stops.rest()) + self._end(reason)
        self.text += text
        return Addition(text, calls=tuple(self.tool_calls[before:]), token=token)

    def _answer(self, text: str) -> str:
        return self.calls.feed(text) if self.calls else text

    def _end(self, reason: str) -> str:
        text = self.calls.rest() if self.calls else ""
        self.finish_reason = "tool_calls" if self.tool_calls and reason == "stop" else reason
        return text


LOST = Problem(500, "the response was lost; send the request again")
