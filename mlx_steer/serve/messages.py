"""What passes between the routes and the scheduler: asks go in, events come out; plain data."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from mlx_steer.conditions import Condition
from mlx_steer.engine.jobs import Sampling
from mlx_steer.serve.problems import Problem
from mlx_steer.words import FinishReason


@dataclass(frozen=True, eq=False)
class Ask:
    """One response that is wanted.

    Attributes:
        ids: The prompt's token ids, generation prompt included.
        condition: What steers; its system prompt is in `ids` already.
        sampling: How its tokens are chosen.
        logprobs: How many alternatives each token is given with; None without log-probabilities.
        projections: Whether each token comes with its hidden state's projection on the vector.
    """

    ids: tuple[int, ...]
    condition: Condition
    sampling: Sampling
    logprobs: int | None = None
    projections: bool = False


@dataclass(frozen=True)
class Begun:
    """The prompt is read, and its gates are decided.

    Attributes:
        cached: How many of the prompt's tokens did not have to be read again.
        gates: Score minus threshold of each gate.
        steered: Whether the gates let the interventions act.
    """

    cached: int = 0
    gates: tuple[float, ...] = ()
    steered: bool = True


@dataclass(frozen=True)
class Token:
    """One token of the response.

    Attributes:
        id: The token.
        text: What it adds to the text; often nothing until a character is whole.
        thinking: Whether that text belongs to the thinking before the answer.
        logprob: Log-probability under the steered model, before sampling options; None if not
            asked for.
        top: Alternatives with theirs, the best first.
        projection: Of the hidden state at the first steered layer, plan included, at the position
            that predicts the token, on the vector's direction; None if not asked for.
    """

    id: int
    text: str
    thinking: bool = False
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    projection: float | None = None


@dataclass(frozen=True)
class Ended:
    """The response is over.

    Attributes:
        reason: Why the model ended it.
        text: What it ends with beyond its tokens' texts: a character that was never finished.
        problem: Why it could not be finished.
    """

    reason: FinishReason = "stop"
    text: str = ""
    problem: Problem | None = None


Event = Begun | Token | Ended


class Ticket(Protocol):
    """One response on its way."""

    def events(self) -> AsyncIterator[Event]:
        """`Begun`, then tokens, then `Ended`; the last one always comes."""

    def cancel(self, reason: str = "cancelled") -> None:
        """Nobody waits for it any more; its place is free from the next step on."""


@dataclass(frozen=True)
class Load:
    """How busy the scheduler is."""

    running: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    response_tokens: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    finished: dict[str, int] = field(default_factory=dict)


class Live(Protocol):
    """The living batch."""

    def submit(self, ask: Ask) -> Ticket:
        """Queue a response.

        Raises:
            Problem: 429 or 503 where it cannot be taken now, with the time to wait.
        """

    def load(self) -> Load:
        """How busy it is, and what it has done since it began."""

    @property
    def alive(self) -> bool:
        """Whether it still takes steps."""
