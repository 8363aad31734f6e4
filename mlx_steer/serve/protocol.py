"""Requests: the OpenAI API's fields as far as they are served, and `steering` beside them.

Fields nobody here knows are ignored, as clients send many; fields that would change the answer and
are not served are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from mlx_steer.words import Operator, Scope

MOST_CHOICES = 8
MOST_STOPS = 8
LONGEST_STOP = 256
MOST_MESSAGES = 1000
MOST_VECTORS = 16
MOST_TOOLS = 128
MOST_LOGPROBS = 20

_NOT_SERVED: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "echo": (None, False),
    "suffix": (None, ""),
    "best_of": (None, 1),
}


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Steer(_Body):
    """One vector that acts on a request.

    Attributes:
        vector: A name the server was started with.
        layer: The steered layer, 0-based; may be left out if the vectors have one layer only.
        strength: The factor on the raw vector.
        dose: The relative dose, instead of the strength: strength x norm / mean hidden-state norm.
        operator: `add`, `ablate` or `clamp`.
        scope: The positions it acts on.
        gate: A gate of the same vectors: all that steers acts only if it opens.
    """

    vector: Annotated[str, Field(min_length=1, max_length=200)]
    layer: Annotated[int, Field(ge=-10_000, le=10_000)] | None = None
    strength: Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)] | None = None
    dose: Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)] | None = None
    operator: Operator = "add"
    scope: Scope = "all"
    gate: Annotated[str, Field(min_length=1, max_length=200)] | None = None

    @model_validator(mode="after")
    def _one_measure(self) -> Self:
        if self.strength is not None and self.dose is not None:
            raise ValueError("give strength or dose, not both")
        return self


class StreamOptions(_Body):
    """What a stream says beside the text."""

    include_usage: bool = False


class _Sampled(_Body):
    """What both kinds of completion have in common."""

    model: Annotated[str, Field(max_length=500)] = ""
    steering: Annotated[tuple[Steer, ...], Field(max_length=MOST_VECTORS)] | None = None
    preset: Annotated[str, Field(max_length=200)] | None = None
    projections: bool = False
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stop: tuple[Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)], ...] = ()
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _served(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name, idle in _NOT_SERVED.items():
                if name in data and data[name] not in idle:
                    raise ValueError(f"{name} is not served; leave it out")
        return data

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        listed = () if value is None else (value,) if isinstance(value, str) else value
        if isinstance(listed, list | tuple) and len(listed) > MOST_STOPS:
            raise ValueError(f"at most {MOST_STOPS} stop strings are served")
        return listed


class TextPart(_Body):
    """A part of a message's content; text is all that is served."""

    type: Literal["text"]
    text: str


class ChatMessage(_Body):
    """One message of a conversation; `developer` is another word for `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | tuple[TextPart, ...] | None = None
    name: str | None = None
    tool_calls: tuple[dict[str, JsonValue], ...] | None = None
    tool_call_id: str | None = None

    def rendered(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        parts = self.content if isinstance(self.content, tuple) else ()
        text = self.content if isinstance(self.content, str) else "".join(p.text for p in parts)
        found: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": text,
        }
        more = {"tool_calls": self.tool_calls, "tool_call_id": self.tool_call_id, "name": self.name}
        return found | {key: value for key, value in more.items() if value is not None}


class ToolFunction(BaseModel):
    """A tool; what else it says is for the template."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())
    name: Annotated[str, Field(min_length=1, max_length=200)]


class ToolOffer(BaseModel):
    """A tool that the model may call."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())
    type: Literal["function"] = "function"
    function: ToolFunction


class ChatRequest(_Sampled):
    """The body of /v1/chat/completions."""

    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1, max_length=MOST_MESSAGES)]
    tools: Annotated[tuple[ToolOffer, ...], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: JsonValue = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None

    @property
    def wanted_logprobs(self) -> int | None:
        """How many alternatives each token is given with; None without log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def longest(self) -> int | None:
        """Response tokens at most, if that is said."""
        return self.max_completion_tokens or self.max_tokens


class TextRequest(_Sampled):
    """The body of /v1/completions."""

    prompt: str
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _single(cls, value: Any) -> Any:
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
            return value[0]
        if isinstance(value, list):
            raise ValueError("must be one text; send a request for each prompt")
        return value

    @property
    def wanted_logprobs(self) -> int | None:
        """How many alternatives each token is given with; None without log-probabilities."""
        return self.logprobs

    @property
    def longest(self) -> int | None:
        """Response tokens at most, if that is said."""
        return self.max_tokens
