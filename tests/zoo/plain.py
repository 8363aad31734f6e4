"""The plainest way to run a row: mlx-lm's own caches, one call for the prompt and one a token.

Nothing of the package's engine is used: blocks are changed by a wrapper around their class's call,
and operators are as their definitions say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from mlx_steer.conditions import Intervention


@dataclass(frozen=True)
class Read:
    """What a row gave, position by position.

    Attributes:
        logits: After each token from the last prompt token on: (positions, vocabulary).
        hidden: By layer: after each token, (positions, hidden_size).
    """

    logits: np.ndarray
    hidden: dict[int, np.ndarray]


class Plain:
    """One row of a network.

    Args:
        network: An mlx-lm network.
        stream: Of several streams of hidden states the one that is read; None for one stream.
    """

    def __init__(self, network: nn.Module, stream: int | None = None) -> None:
        self.network = network
        self.stream = stream

    def greedy(
        self, prompt: Sequence[int], acts: Sequence[Intervention], tokens: int, stops: Sequence[int]
    ) -> tuple[list[int], float]:
        """The row's response, and its smallest margin between the two best tokens."""
        response: list[int] = []
        least = np.inf
        for logits in self._steps(prompt, acts):
            order = np.argsort(logits)[-2:]
            least = min(least, float(logits[order[1]] - logits[order[0]]))
            if int(order[1]) in stops:
                break
            response.append(int(order[1]))
            if len(response) == tokens:
                break
            self._next = int(order[1])
        return response, least

    def read(
        self, prompt: Sequence[int], rest: Sequence[int], acts: Sequence[Intervention] = ()
    ) -> Read:
        """The row read to its end, its response being given."""
        logits: list[np.ndarray] = []
        steps = self._steps(prompt, acts)
        self._seen: dict[int, list[np.ndarray]] = {}
        for token in [*rest, None]:
            logits.append(next(steps))
            self._next = token or 0
        return Read(np.stack(logits), {k: np.concatenate(v) for k, v in self._seen.items()})

    def call(self, ids: Sequence[int], acts: Sequence[Intervention]) -> np.ndarray:
        """One call over all tokens, without caches; what acts acts everywhere."""
        with self._changed(acts, "all"):
            return np.array(self.network(mx.array([list(ids)])))[0]

    def _steps(self, prompt: Sequence[int], acts: Sequence[Intervention]) -> Iterator[np.ndarray]:
        cache = make_prompt_cache(self.network)
        self._seen = {}
        if len(prompt) > 1:
            with self._changed(acts, "prompt"):
                mx.eval(self.network(mx.array([list(prompt[:-1])]), cache=cache))
        self._next = prompt[-1]
        while True:
            with self._changed(acts, "generated"):
                logits = self.network(mx.array([[self._next]]), cache=cache)[0, -1]
                yield np.array(logits.astype(mx.float32))

    @contextmanager
    def _changed(self, acts: Sequence[Intervention], scope: str) -> Iterator[None]:
        blocks = list(self.network.layers)
        here = {id(block): layer for layer, block in enumerate(blocks)}
        acting = [a for a in acts if scope == "all" or a.scope in ("all", scope)]
        kinds = {type(block): type(block).__call__ for block in blocks}
        plain = self

        def wrapped(original: Any) -> Any:
            def call(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
                out = original(block, *args, **kwargs)
                layer = here.get(id(block))
                if layer is None:
                    return out
                hidden = out[0] if isinstance(out, tuple) else out
                hidden = _acted(hidden, [a for a in acting if a.layer == layer])
                plain._note(layer, hidden)
                return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

            return call

        try:
            for kind, original in kinds.items():
                kind.__call__ = wrapped(original)
            yield
        finally:
            for kind, original in kinds.items():
                kind.__call__ = original

    def _note(self, layer: int, hidden: mx.array) -> None:
        row = hidden[0] if self.stream is None else hidden[self.stream, 0]
        self._seen.setdefault(layer, []).append(np.array(row.astype(mx.float32)))

    _seen: dict[int, list[np.ndarray]]
    _next: int


def _acted(hidden: mx.array, acts: Sequence[Intervention]) -> mx.array:
    out = hidden
    for act in acts:
        vector = mx.array(act.vector)
        unit = vector / mx.linalg.norm(vector)
        projection = (hidden @ unit)[..., None] * unit
        out = (
            out
            + {
                "add": act.strength * vector,
                "ablate": -act.strength * projection,
                "clamp": act.strength * unit - projection,
            }[act.operator]
        )
    return out
