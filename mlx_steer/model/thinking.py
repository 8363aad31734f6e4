"""Where a response's thinking ends and its answer begins, in token ids, as each family marks it.

Most open their thinking with one token and end it with another (Qwen3's <think>). gpt-oss writes
messages into channels instead: analysis is thinking, final is the answer, and a message to a tool
is a call. Knows nothing about templates or text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

Ids = Sequence[int]

# What gpt-oss (its format is called Harmony) begins its answer with, and its thinking.
FINAL, ANALYSIS, MESSAGE_END = (
    "<|channel|>final<|message|>",
    "<|channel|>analysis<|message|>",
    "<|end|>",
)

# Tokens that may stand in front of what opens the thinking, such as a line break (GLM).
_BEFORE = 2
_CALL = re.compile(r"to=functions\.(?P<name>[\w.-]+).*?<\|message\|>(?P<arguments>.*)", re.S)


@dataclass(frozen=True)
class Marks:
    """How a family marks its thinking.

    Attributes:
        start: The tokens that open it.
        end: Those that end it; the answer begins after them.
        close: Those that end the answer inside a response; empty if only the response's end does.
        always: Whether a response thinks unless the prompt ends with `end`; otherwise it does where
            the prompt or itself opens the thinking.
    """

    start: tuple[int, ...]
    end: tuple[int, ...]
    close: tuple[int, ...] = ()
    always: bool = False

    def opened(self, ids: Ids) -> bool:
        """Whether a prompt leaves the response in its thinking."""
        if self.always:
            return tuple(ids[-len(self.end) :]) != self.end
        return _last(ids, self.start) > _last(ids, self.end)

    def parts(self, ids: Ids, tokens: Ids) -> tuple[list[int], list[int]]:
        """The thinking and the answer of a response, without the marks around them.

        Args:
            ids: The prompt.
            tokens: The response; if it is cut off while it thinks there is no answer.
        """
        begin = _first(tokens[: len(self.start) + _BEFORE], self.start)
        if begin < 0 and not self.opened(ids):
            thinking, answer = [], list(tokens)
        else:
            own = tokens[begin + len(self.start) :] if begin >= 0 else tokens
            at = _first(own, self.end)
            thinking = list(own if at < 0 else own[:at])
            answer = [] if at < 0 else list(own[at + len(self.end) :])
        closed = _first(answer, self.close) if self.close else -1
        return thinking, answer if closed < 0 else answer[:closed]


def call_in(response: str) -> str | None:
    """A call in gpt-oss's form, special tokens included, in the form of Hermes; None without one.

    Judges of text know that form, and gpt-oss has only tokens for its own.
    """
    found = _CALL.search(response)
    if found is None:
        return None
    arguments = found["arguments"].partition("<|")[0].strip()
    return f'<tool_call>{{"name": "{found["name"]}", "arguments": {arguments}}}</tool_call>'


def _first(ids: Ids, part: Ids) -> int:
    wanted, size = tuple(part), len(part)
    places = (i for i in range(len(ids) - size + 1) if tuple(ids[i : i + size]) == wanted)
    return next(places, -1)


def _last(ids: Ids, part: Ids) -> int:
    wanted, size = tuple(part), len(part)
    places = (i for i in range(len(ids) - size, -1, -1) if tuple(ids[i : i + size]) == wanted)
    return next(places, -1)
