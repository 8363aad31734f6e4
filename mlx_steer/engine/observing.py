"""Log-probabilities and projections of tokens, for the rows that ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx
import numpy as np

from mlx_steer.engine.batch import Flight, Row, Seen, Watch


def watched_layers(rows: Sequence[Row]) -> list[int]:
    """The layers whose outputs are projected for some row."""
    return sorted({row.watch.layer for row in rows if row.watch and row.watch.unit is not None})


def observed(
    rows: Sequence[Row], logits: mx.array, hidden: Mapping[int, mx.array]
) -> tuple[mx.array | None, mx.array | None]:
    """Log-probabilities and projections at one step, lazily (see `Flight`).

    Args:
        rows: The rows of the step.
        logits: Float32, shape (rows, vocabulary).
        hidden: Of the watched layers: shape (rows, 1, hidden_size).
    """
    logprobs = projections = None
    if any(row.watch is not None and row.watch.top is not None for row in rows):
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    for layer, states in hidden.items():
        nothing = mx.zeros((states.shape[-1],))
        units = mx.stack([_unit(row.watch, layer, nothing) for row in rows])
        along = mx.sum(states[:, -1].astype(mx.float32) * units, axis=-1)
        projections = along if projections is None else projections + along
    return logprobs, projections


def seen(flight: Flight, row: int, token: int, watch: Watch) -> Seen:
    """What a step that was computed showed of one row's token."""
    logprob, projection = None, None
    top: tuple[tuple[int, float], ...] = ()
    if watch.top is not None and flight.logprobs is not None:
        every = np.array(flight.logprobs[row])
        logprob = float(every[token])
        best = np.argpartition(-every, watch.top)[: watch.top] if watch.top else np.array([], int)
        top = tuple((int(i), float(every[i])) for i in best[np.argsort(-every[best])])
    if watch.unit is not None and flight.projections is not None:
        projection = float(np.array(flight.projections[row]))
    return Seen(logprob, top, projection)


def _unit(watch: Watch | None, layer: int, nothing: mx.array) -> mx.array:
    if watch is None or watch.unit is None or watch.layer != layer:
        return nothing
    return watch.unit
