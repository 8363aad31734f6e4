"""Log-probabilities of given responses under the unsteered model; each prompt is run once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_steer.engine.forward import Forward, Ids
from mlx_steer.engine.limits import LOGITS_AT_ONCE, SCORED_TOGETHER
from mlx_steer.engine.prefill import Prefill, Prefilled
from mlx_steer.model.load import Model

Float64 = NDArray[np.float64]
_T = TypeVar("_T")
_K = TypeVar("_K")


def grouped(items: Iterable[_T], key: Callable[[_T], _K]) -> dict[_K, list[_T]]:
    """Items by what they have in common, in the order in which it first comes."""
    found: dict[_K, list[_T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def packed(groups: Iterable[Sequence[_T]]) -> list[list[_T]]:
    """Groups of responses, in their order, in units that are read together; none is divided.

    The last digits of what is read depend on its unit: it is to be read whole or not at all.
    """
    units: list[list[_T]] = []
    for group in groups:
        if not units or len(units[-1]) + len(group) > SCORED_TOGETHER:
            units.append([])
        units[-1] += group
    return units


class Likelihood:
    """Reads responses without making any.

    Args:
        model: The model.
        forward: Its network.
    """

    def __init__(self, model: Model, forward: Forward) -> None:
        """See the class."""
        self._prefill = Prefill(forward)
        self._vocabulary = int(model.config.get("vocab_size") or 50_000)
        self._heads: dict[Ids, Prefilled] = {}

    def log_probs(
        self, prompts: Sequence[Ids], responses: Sequence[Sequence[Ids]], head: int = 0
    ) -> list[list[Float64]]:
        """Log-probabilities of every token of some prompts' responses.

        Args:
            prompts: Token ids of each; of several, two at least each.
            responses: For each prompt: token ids, at least one each. The last digits depend on
                which are read together.
            head: So many of the prompts' first tokens are run once for all that begin so. The last
                digits depend on it, too.

        Returns:
            For each prompt and response: shape (tokens,).
        """
        prefill, fresh = self._prefill, self._prefill.forward.fresh
        shortest = min(map(len, prompts))
        first = tuple(prompts[0][: max(0, min(head, shortest - 2))])
        if first and first not in self._heads:
            self._heads[first] = prefill.run([first])
        start = self._heads[first].rows([0] * len(prompts)) if first else None
        rest = [ids[len(first) : -1] for ids in prompts]
        base = prefill.run(rest, start=start) if shortest > 1 else None
        rows = [(i, tokens) for i, own in enumerate(responses) for tokens in own]
        longest = max((len(tokens) for _, tokens in rows), default=1)
        step = max(1, LOGITS_AT_ONCE // (longest * self._vocabulary))
        found: list[list[Float64]] = [[] for _ in prompts]
        for k in range(0, len(rows), step):
            part = rows[k : k + step]
            start = base.rows([i for i, _ in part]) if base else fresh(len(part))
            sequences = [(prompts[i][-1], *tokens[:-1]) for i, tokens in part]
            logits = prefill.logits(sequences, start)
            read = chosen_log_probs(logits, [tokens for _, tokens in part])
            for (i, _), values in zip(part, read, strict=True):
                found[i].append(values)
        return found


def chosen_log_probs(logits: mx.array, responses: Sequence[Ids]) -> list[Float64]:
    """Log-probabilities of each response's tokens.

    Args:
        logits: Shape (responses, longest, vocabulary); at each position those of its own token.
        responses: Token ids of each.
    """
    longest = logits.shape[1]
    targets = mx.array([[*tokens, *[0] * (longest - len(tokens))] for tokens in responses])
    exact = logits.astype(mx.float32)
    chosen = mx.take_along_axis(exact, targets[..., None], axis=-1)[..., 0]
    values = np.array(chosen).astype(np.float64) - _log_sum_exp(exact)
    return [row[: len(tokens)] for row, tokens in zip(values, responses, strict=True)]


def _log_sum_exp(scores: mx.array) -> Float64:
    """log(sum(exp(scores))) over the last axis."""
    if mx.default_device() != mx.Device(mx.cpu):
        return np.array(mx.logsumexp(scores, axis=-1)).astype(np.float64)
    # MLX's exponential takes one number at a time on a CPU, numpy's some sixteen.
    values = np.array(scores, copy=False)
    top = values.max(axis=-1, keepdims=True)
    sums = np.exp(values - top).sum(axis=-1, dtype=np.float64)
    result: Float64 = np.log(sums) + top[..., 0]
    return result
