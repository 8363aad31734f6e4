"""How much a server takes on: rows and memory at once, prompts that wait, and tokens at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlx.utils import tree_flatten

from mlx_steer.engine.memory import Workload, estimate
from mlx_steer.model.load import Model
from mlx_steer.model.machine import working_set
from mlx_steer.model.shape import Shape
from mlx_steer.model.size import ModelSize
from mlx_steer.serve.messages import Ask

# Of what the weights leave free, for conversations that may go on.
_KEPT_PART = 0.2


@dataclass(frozen=True)
class Limits:
    """What is taken on.

    Attributes:
        rows: Responses that are decoded at once.
        waiting: Responses that wait for a place.
        readings: Prompts, or groups of short ones, that are read at once, in turn.
        idle_piece: Prompt tokens that are read at once while nothing is decoded.
        busy_piece: The same while others wait for their next token.
    """

    rows: int = 64
    waiting: int = 256
    readings: int = 4
    idle_piece: int = 2048
    busy_piece: int = 256


class Memory:
    """Whether rows fit into memory; all rows take as much as the longest.

    Args:
        model: The model, loaded.
        limit: Bytes that may be used, weights included; what the machine has by default.
    """

    def __init__(self, model: Model, limit: int | None = None) -> None:
        """See the class."""
        parameters: Any = tree_flatten(dict(model.network.parameters()))  # type: ignore[no-untyped-call]
        weights = sum(value.nbytes for _, value in parameters)
        self._size = ModelSize(Shape.of(model.config), weights, model.dtype.size)
        self._limit = working_set() if limit is None else limit
        self.for_turns = int(_KEPT_PART * max(0, self._limit - weights))

    def fits(self, asks: Sequence[Ask]) -> bool:
        """Whether these can be decoded at once, beside the turns that are kept."""
        longest = max(len(ask.ids) + ask.sampling.max_tokens for ask in asks)
        prompt = max(len(ask.ids) for ask in asks)
        found = estimate(self._size, Workload(prompt, longest - prompt), len(asks))
        return found.fits(self._limit - self.for_turns)
