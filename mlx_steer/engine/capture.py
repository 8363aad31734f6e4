"""Hidden states of responses at some layers, batched; shared beginnings are computed once.

Stops at the highest layer asked for and never makes logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_steer.engine.caches import join, make_room, take_rows
from mlx_steer.engine.forward import Ids
from mlx_steer.engine.guard import forward_of
from mlx_steer.engine.limits import TOKENS_AT_ONCE, tokens_per_pass
from mlx_steer.engine.prefill import Prefill, common_head
from mlx_steer.model.load import Model

TOKENS_PER_PASS = tokens_per_pass(mx.metal.is_available())
# What a pass costs beside its tokens, in tokens (measured on two CPU cores).
_PASS_COST = 32


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
    out: list[list[dict[int, NDArray[np.float32]]]] = [[{} for _ in r] for r in responses]
    costs = [len(p) + sum(map(len, r)) for p, r in zip(prompts, responses, strict=True)]
    with forward_of(model.network) as forward:
        prefill = Prefill(forward)
        shared = common_head(prompts, spare=1)
        head = prefill.run([prompts[0][:shared]], top=top) if shared else None
        for chunk in batches(costs, TOKENS_AT_ONCE, pass_cost=TOKENS_AT_ONCE):
            # Prompts and responses are each run among their like in length.
            order: list[int] = []
            parts: list[list[Any]] = []
            for some in batches([len(prompts[i]) - shared for i in chunk], TOKENS_PER_PASS):
                members = [chunk[k] for k in some]
                start = head.rows([0] * len(members)) if head else None
                done = prefill.run([prompts[i][shared:] for i in members], start=start, top=top)
                order += members
                parts.append(done.caches)
            base = join(parts)
            make_room(base, max(len(text) for i in order for text in responses[i]))
            texts = [(i, k) for i in order for k in range(len(responses[i]))]
            for some in batches([len(responses[i][k]) for i, k in texts], TOKENS_PER_PASS):
                rows = [order.index(texts[n][0]) for n in some]
                start = [take_rows(c, rows) for c in base]
                wanted = [responses[i][k] for i, k in (texts[n] for n in some)]
                done = prefill.run(wanted, layers, start=start, top=-1)
                arrays = {k: np.array(v.astype(mx.float32)) for k, v in done.hidden.items()}
                for row, n in enumerate(some):
                    i, k = texts[n]
                    length = done.lengths[row]
                    out[i][k] = {layer: v[row, :length] for layer, v in arrays.items()}
    return out


def batches(lengths: Sequence[int], limit: int, pass_cost: int = _PASS_COST) -> Iterator[list[int]]:
    """Indices in batches of like length, so that padding and the number of batches cost least.

    Args:
        lengths: Tokens of each row; a batch is padded to its longest.
        limit: Padded tokens of a batch at most (or one row).
        pass_cost: What a batch costs beside its tokens, in tokens.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    # By number of rows, shortest first: the least cost of their batches, and where the last begins.
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(order) + 1):
        longest = max(1, lengths[order[end - 1]])
        most = max(1, limit // longest)
        best.append(
            min(
                (best[start][0] + (end - start) * longest + pass_cost, start)
                for start in range(max(0, end - most), end)
            )
        )
    ends = [len(order)]
    while ends[-1]:
        ends.append(best[ends[-1]][1])
    for end, start in reversed(list(pairwise(ends))):
        yield order[start:end]


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
    with forward_of(model.network) as forward:
        prefill = Prefill(forward)
        shared = common_head(prompts, spare=1)
        head = prefill.run([prompts[0][:shared]], top=max(layers)) if shared else None
        for batch in batches([len(p) - shared for p in prompts], TOKENS_PER_PASS):
            start = head.rows([0] * len(batch)) if head else None
            rest = [prompts[i][shared:] for i in batch]
            done = prefill.run(rest, layers, start=start, top=-1)
            last = mx.array([n - 1 for n in done.lengths])[:, None, None]
            for layer, hidden in done.hidden.items():
                taken = mx.take_along_axis(hidden, last, axis=1)[:, 0]
                states[layer][batch] = np.array(taken.astype(mx.float32))
    return states
