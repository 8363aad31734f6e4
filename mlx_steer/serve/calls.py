"""Tool calls in a stream of text, in the form that the model's own template writes them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import JsonValue

from mlx_steer.model.chat import ChatFormat
from mlx_steer.serve.stops import Stops

Json = dict[str, JsonValue]


class Calls:
    """Takes the calls out of a stream; what cannot be read as one stays text.

    Args:
        chat: Whose tokenizer knows the marks around calls, and mlx-lm's parser for what is between;
            where it knows none they are Hermes', in which tools are offered then.
        tools: The tools that were offered.
    """

    def __init__(self, chat: ChatFormat, tools: Sequence[Mapping[str, JsonValue]]) -> None:
        """See the class."""
        known = chat.tokenizer.has_tool_calling
        self._start = str(chat.tokenizer.tool_call_start) if known else "<tool_call>"
        self._end = str(chat.tokenizer.tool_call_end or "") if known else "</tool_call>"
        self._parse = chat.tokenizer.tool_parser if known else None
        self._tools = list(tools)
        self._before: Stops | None = Stops([self._start])
        self._held = ""
        self.found: list[Json] = []

    def feed(self, text: str) -> str:
        """What is text for sure; calls that are whole are added to `found`."""
        said = ""
        while text:
            if self._before is not None:
                said += self._before.feed(text)
                if not self._before.stopped:
                    return said
                text, self._before = self._before.after, None
            self._held += text
            inside, mark, after = self._held.partition(self._end) if self._end else ("", "", "")
            if not mark:
                return said
            said += self._called(inside, mark)
            text, self._held, self._before = after, "", Stops([self._start])
        return said

    def rest(self) -> str:
        """What is left, now that no more text comes."""
        if self._before is not None:
            return self._before.rest()
        # Some templates end a call with the response.
        held, self._held = self._held, ""
        return self._called(held, "")

    def _called(self, inside: str, mark: str) -> str:
        try:
            parsed: Any = self._parse(inside, self._tools) if self._parse else json.loads(inside)
            every = parsed if isinstance(parsed, list) else [parsed]
            self.found += [self._call(call, i) for i, call in enumerate(every)]
        except Exception:  # whatever a parser says to text that a model wrote
            return self._start + inside + mark
        return ""

    def _call(self, call: Mapping[str, Any], place: int) -> Json:
        arguments = call.get("arguments", call.get("parameters", {}))
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        return {
            "index": len(self.found) + place,
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": str(call["name"]), "arguments": text},
        }
