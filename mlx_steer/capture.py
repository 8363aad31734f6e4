"""Hidden states of responses at some layers, batched; shared beginnings are computed once.

Stops at the highest layer asked for and never makes logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_steer.model import Model
from mlx_steer.prefill import Ids, Prefill, common_head
from mlx_steer.steering import steerable

TOKENS_AT_ONCE = 4096


def response_states(
    model: Model,
    prompts: Sequence[Ids],
    responses: Sequence[Sequence[Ids]],
    layers: Sequence[int],
) -> list[list[dict[int, NDArray[np.float32]]]]:
    """Hidden states of every response token at some layers.

    Args:
        model: The model.
        prompts: Token ids of each prompt.
        responses: For each prompt, the token ids of its responses, each at least one.
        layers: Layers, 0-based.

    Returns:
        For each prompt and response, by layer: float32, shape (response tokens, hidden_size).
    """
    top = max(layers)
    out: list[list[dict[int, NDArray[np.float32]]]] = [[] for _ in prompts]
    with steerable(model.network) as sites:
        prefill = Prefill(model.network, sites)
        shared = common_head(prompts, spare=1)
        head = prefill.run([prompts[0][:shared]], top=top) if shared else None
        for batch in batches(
            [len(p) + sum(map(len, r)) for p, r in zip(prompts, responses, strict=True)]
        ):
            start = head.rows([0] * len(batch)) if head else None
            base = prefill.run([prompts[i][shared:] for i in batch], start=start, top=top)
            owners = [i for i in batch for _ in responses[i]]
            rows = [batch.index(i) for i in owners]
            texts = [list(r) for i in batch for r in responses[i]]
            done = prefill.run(texts, layers, start=base.rows(rows), top=-1)
            arrays = {k: np.array(v.astype(mx.float32)) for k, v in done.hidden.items()}
            for row, (owner, length) in enumerate(zip(owners, done.lengths, strict=True)):
                out[owner].append({k: v[row, :length] for k, v in arrays.items()})
    return out


def batches(costs: Sequence[int], limit: int = TOKENS_AT_ONCE) -> Iterator[list[int]]:
    """Indices in batches of like cost, each batch costing at most `limit` (or one index)."""
    order = sorted(range(len(costs)), key=lambda i: costs[i])
    batch: list[int] = []
    for i in order:
        # Rows are padded to the longest, which in this order is the next one.
        if batch and (len(batch) + 1) * costs[i] > limit:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def prompt_states(
    model: Model, prompts: Sequence[Ids], layers: Sequence[int]
) -> dict[int, NDArray[np.float32]]:
    """Unsteered hidden states of each prompt's last token at some layers.

    Args:
        model: The model.
        prompts: Token ids of each prompt, generation prompt included.
        layers: Layers, 0-based.

    Returns:
        By layer: float32, shape (prompts, hidden_size).
    """
    states = {k: np.zeros((len(prompts), model.hidden_size), np.float32) for k in layers}
    with steerable(model.network) as sites:
        prefill = Prefill(model.network, sites)
        shared = common_head(prompts, spare=1)
        head = prefill.run([prompts[0][:shared]], top=max(layers)) if shared else None
        for batch in batches([len(p) - shared for p in prompts]):
            start = head.rows([0] * len(batch)) if head else None
            rest = [prompts[i][shared:] for i in batch]
            done = prefill.run(rest, layers, start=start, top=-1)
            last = mx.array([n - 1 for n in done.lengths])[:, None, None]
            for layer, hidden in done.hidden.items():
                taken = mx.take_along_axis(hidden, last, axis=1)[:, 0]
                states[layer][batch] = np.array(taken.astype(mx.float32))
    return states
