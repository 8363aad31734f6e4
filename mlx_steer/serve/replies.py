"""Responses in the OpenAI API's shape, whole and as chunks of a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from mlx_steer.serve.calls import Json
from mlx_steer.serve.choices import Choice
from mlx_steer.serve.messages import Token


@dataclass(frozen=True)
class Envelope:
    """What all responses to one request repeat.

    Attributes:
        chat: Whether it is a chat completion.
        model: The request's model id.
        prompt_tokens: Tokens of the prompt.
    """

    chat: bool
    model: str
    prompt_tokens: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, chunk: bool) -> Json:
        """Id, kind, time and model."""
        kind = "chat.completion" if self.chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}",
            "object": f"{kind}.chunk" if chunk and self.chat else kind,
            "created": self.created,
            "model": self.model,
        }

    def usage(self, choices: Sequence[Choice]) -> Json:
        """Tokens read and written."""
        made = sum(len(choice.tokens) for choice in choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self.prompt_tokens + made,
            "prompt_tokens_details": {"cached_tokens": max(c.begun.cached for c in choices)},
        }


def chat_choice(index: int, choice: Choice, logprobs: Json | None) -> Json:
    """One choice of a whole chat completion."""
    message: Json = {"role": "assistant", "content": choice.text}
    if choice.thinking:
        message["reasoning_content"] = choice.thinking
    if choice.tool_calls:
        message |= {
            "content": choice.text or None,
            "tool_calls": [_without_index(call) for call in choice.tool_calls],
        }
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": choice.finish_reason,
    }


def _without_index(call: Json) -> Json:
    return {name: value for name, value in call.items() if name != "index"}


def text_choice(index: int, choice: Choice, logprobs: Json | None) -> Json:
    """One choice of a whole text completion."""
    return {
        "index": index,
        "text": choice.text,
        "logprobs": logprobs,
        "finish_reason": choice.finish_reason,
    }


def chunk_choice(
    index: int,
    kind: Literal["chat", "text"],
    delta: Json,
    logprobs: Json | None = None,
    finish_reason: str | None = None,
) -> Json:
    """One choice of a chunk; `delta` is a chat delta, or has the text under `content`."""
    body: Json = {"delta": delta} if kind == "chat" else {"text": delta.get("content", "")}
    return {"index": index, **body, "logprobs": logprobs, "finish_reason": finish_reason}


def chat_logprobs(tokens: Iterable[Token], names: dict[int, str]) -> Json:
    """Log-probabilities as chat completions give them."""

    def entry(token: int, value: float) -> Json:
        text = names[token]
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    return {
        "content": [
            {
                **entry(t.id, t.logprob or 0.0),
                "top_logprobs": [entry(token, value) for token, value in t.top],
            }
            for t in tokens
        ]
    }


def text_logprobs(tokens: Sequence[Token], names: dict[int, str]) -> Json:
    """Log-probabilities as text completions give them."""
    offsets: list[JsonValue] = []
    place = 0
    for token in tokens:
        offsets.append(place)
        place += len(token.text)
    return {
        "tokens": [names[t.id] for t in tokens],
        "token_logprobs": [t.logprob for t in tokens],
        "top_logprobs": [{names[token]: value for token, value in t.top} for t in tokens],
        "text_offset": offsets,
    }


def event(body: Json) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, allow_nan=False)}\n\n"


DONE = "data: [DONE]\n\n"
