"""Log-probabilities of given responses under the unsteered model; each prompt is run once."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_steer.engine.forward import Forward, Ids
from mlx_steer.engine.limits import LOGITS_AT_ONCE
from mlx_steer.engine.prefill import Prefill, Prefilled
from mlx_steer.model.load import Model

Float64 = NDArray[np.float64]


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

    def log_probs(self, ids: Ids, responses: Sequence[Ids], head: int = 0) -> list[Float64]:
        """Log-probabilities of every token of a prompt's responses.

        Args:
            ids: The prompt's token ids.
            responses: Token ids, at least one each. The last digits depend on which are read
                together.
            head: So many of the prompt's first tokens are run once for all prompts that begin so.
                The last digits depend on it, too.

        Returns:
            For each response: shape (tokens,).
        """
        prefill, fresh = self._prefill, self._prefill.forward.fresh
        first = tuple(ids[: min(head, len(ids) - 2)]) if len(ids) > 1 else ()
        if first and first not in self._heads:
            self._heads[first] = prefill.run([first])
        start = self._heads[first].rows([0]) if first else None
        base = prefill.run([ids[len(first) : -1]], start=start) if len(ids) > 1 else None
        longest = max(map(len, responses), default=1)
        step = max(1, LOGITS_AT_ONCE // (longest * self._vocabulary))
        found: list[Float64] = []
        for i in range(0, len(responses), step):
            part = responses[i : i + step]
            start = base.rows([0] * len(part)) if base else fresh(len(part))
            logits = prefill.logits([(ids[-1], *tokens[:-1]) for tokens in part], start)
            found += chosen_log_probs(logits, part)
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
