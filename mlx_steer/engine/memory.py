"""The memory that generation and extraction take, and how many rows fit.

The formulas follow the engine: keys and values are allocated for what a row will hold, and waves of
prompts are joined to the batch layer by layer. `scripts/bench_memory.py` checks them against MLX's
own peak.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_steer.config import BATCH_SIZE
from mlx_steer.model.machine import has_metal, too_large, working_set
from mlx_steer.model.shape import Shape

# A join or a growing cache is rewritten layer by layer, and some layers are under way at a time,
# the more since a step begins before the last one has ended.
_LAYERS_UNDER_WAY = 3
# What comes on top of the weights is known to within this part.
UNCERTAINTY = 0.3
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a batch takes; all but `peak` are parts of it at their own largest.

    Attributes:
        rows: Rows decoded at a time.
        weights: The model's weights.
        kv_cache: Keys and values of the batch, all rows at full length.
        shared: Keys, values and hidden states of prompts and heads kept for later rows.
        copies: Keys and values that exist twice while waves join the batch or the batch grows.
        activations: Of the larger of prefill and decoding.
        logits: Scores of the whole vocabulary, with the copies that choosing a token needs.
        peak: The most that is held at a time.
    """

    rows: int
    weights: int
    kv_cache: int
    shared: int
    copies: int
    activations: int
    logits: int
    peak: int

    @property
    def on_top(self) -> int:
        """What comes on top of the weights at the peak."""
        return self.peak - self.weights

    @property
    def most(self) -> int:
        """The peak where the estimate is short."""
        return int(self.weights + (1 + UNCERTAINTY) * self.on_top)

    def fits(self, limit: int) -> bool:
        """Whether it fits into so many bytes even where the estimate is short."""
        return self.most <= limit


def estimate(
    config: Mapping[str, Any],
    weight_bytes: int,
    dtype_bytes: int,
    rows: int,
    prompt_tokens: int,
    max_tokens: int,
    *,
    conditions: int = 1,
    replayed: int | None = None,
    metal: bool | None = None,
) -> MemoryEstimate:
    """The memory that `generate.completions` takes with a full batch.

    Args:
        config: The model's config.json.
        weight_bytes: See `weight_bytes_of`.
        dtype_bytes: Of a number in the hidden state, and so in keys and values.
        rows: Rows decoded at a time.
        prompt_tokens: Tokens of the longest prompt.
        max_tokens: Response tokens at most.
        conditions: Conditions that each prompt runs under; their shared heads are kept.
        replayed: How many of them first act at the same layer, and so go through the network
            together in prefill; a quarter by default.
        metal: Whether it runs on Metal, where attention is fused; by default what this machine has.

    Raises:
        ModelError: If the config lacks a value that is needed.
    """
    from mlx_steer.engine.jobs import PREFILL_TOKENS, SHORTEST_HEAD

    shape = Shape.of(config)
    # As `take_waves` does it: what the batch has room for, but all conditions of a prompt together.
    wave = min(rows, max(PREFILL_TOKENS // prompt_tokens, conditions))
    total = prompt_tokens + max_tokens
    on_metal = has_metal() if metal is None else metal

    def keys_and_values(count: float, tokens: int) -> int:
        return int(count * shape.kv_bytes(tokens, dtype_bytes))

    kv_cache = keys_and_values(rows, total)
    copies = _LAYERS_UNDER_WAY * kv_cache // shape.layers

    # The last wave's prompts, one head (about half a prompt), and a head for each steered
    # condition, of which only the layers above the steered one exist: about half.
    prompts = math.ceil(wave / conditions)
    heads = 1 + 0.5 * (conditions - 1)
    head = prompt_tokens // 2 if prompt_tokens // 2 >= SHORTEST_HEAD else 0
    states = min(conditions - 1, shape.layers) * prompts * prompt_tokens
    shared = (
        keys_and_values(prompts, prompt_tokens)
        + keys_and_values(heads, head)
        + (states + shape.layers * head) * shape.hidden * dtype_bytes
    )
    group = math.ceil(conditions / 4) if replayed is None else max(1, replayed)
    at_once = min(wave, prompts * group)
    prefill = shape.activation_bytes(at_once, prompt_tokens, prompt_tokens, dtype_bytes, on_metal)
    decode = shape.activation_bytes(rows, 1, total, dtype_bytes, on_metal)
    logits = rows * shape.vocabulary * _bytes_per_score(dtype_bytes)
    if dtype_bytes == 4:
        # A near tie in float32 is decided by running the row alone, with logits at every position.
        logits = max(logits, total * shape.vocabulary * dtype_bytes)
    # While the last prompts are read, about half of the batch's keys and values are there.
    on_top = shared + max(kv_cache + copies + decode + logits, kv_cache // 2 + prefill)
    return MemoryEstimate(
        rows=rows,
        weights=weight_bytes,
        kv_cache=kv_cache,
        shared=shared,
        copies=copies,
        activations=max(prefill, decode),
        logits=logits,
        peak=weight_bytes + on_top,
    )


def extraction_bytes(
    config: Mapping[str, Any],
    dtype_bytes: int,
    pairs: int,
    pair_tokens: int,
    top: int,
    *,
    metal: bool | None = None,
) -> int:
    """What extraction takes on top of the weights: prompts, and both responses of each.

    Args:
        config: The model's config.json.
        dtype_bytes: See `estimate`.
        pairs: Contrast pairs.
        pair_tokens: Tokens of a pair's prompt and both its responses.
        top: The highest layer, 0-based; layers above it are never run.
        metal: See `estimate`.
    """
    from mlx_steer.engine.capture import TOKENS_AT_ONCE, TOKENS_PER_PASS

    shape = Shape.of(config)
    held = max(1, min(pairs, TOKENS_AT_ONCE // max(1, pair_tokens)))
    at_once = max(1, min(pairs, TOKENS_PER_PASS // max(1, pair_tokens)))
    # The prompts of all pairs that are held, and copies of them for the responses of a pass.
    kept = (held + 2 * at_once) * shape.kv_bytes(pair_tokens, dtype_bytes)
    on_metal = has_metal() if metal is None else metal
    passing = shape.activation_bytes(at_once, pair_tokens, pair_tokens, dtype_bytes, on_metal)
    return kept * (top + 1) // shape.layers + passing


def scoring_bytes(
    config: Mapping[str, Any],
    dtype_bytes: int,
    prompt_tokens: int,
    max_tokens: int,
    conditions: int,
    *,
    metal: bool | None = None,
) -> int:
    """What perplexity takes on top of the weights: a prompt's responses, with logits everywhere.

    Args:
        config: The model's config.json.
        dtype_bytes: See `estimate`.
        prompt_tokens: Tokens of the longest prompt.
        max_tokens: Response tokens at most.
        conditions: Responses to each prompt.
        metal: See `estimate`.
    """
    from mlx_steer.engine.perplexity import LOGITS_AT_ONCE

    shape = Shape.of(config)
    total = prompt_tokens + max_tokens
    rows = min(conditions, max(1, LOGITS_AT_ONCE // (max_tokens * shape.vocabulary)))
    on_metal = has_metal() if metal is None else metal
    copies = 4 + (dtype_bytes if dtype_bytes < 4 else 0)
    return (
        (rows + 1) * shape.kv_bytes(total, dtype_bytes)
        + rows * max_tokens * shape.vocabulary * copies
        + shape.activation_bytes(rows, max_tokens, total, dtype_bytes, on_metal)
    )


def choose_batch_size(
    config: Mapping[str, Any],
    weight_bytes: int,
    dtype_bytes: int,
    prompt_tokens: int,
    max_tokens: int,
    *,
    conditions: int = 1,
    replayed: int | None = None,
    limit: int | None = None,
    cap: int = BATCH_SIZE,
    metal: bool | None = None,
    name: str = "the model",
) -> int:
    """The largest of 1, 2, 4, ..., 128 rows that fits into memory, at most `cap`.

    Args:
        config: See `estimate`, for the other arguments too.
        weight_bytes: See `weight_bytes_of`.
        dtype_bytes: Of a number in the hidden state.
        prompt_tokens: Tokens of the longest prompt.
        max_tokens: Response tokens at most.
        conditions: Conditions that each prompt runs under.
        replayed: How many of them first act at the same layer.
        limit: Bytes that may be used; `working_set()` by default.
        cap: The largest size to choose (see `config.BATCH_SIZE`).
        metal: See `estimate`.
        name: What the model is called in the error.

    Raises:
        ModelError: If not even one row fits.
    """
    usable = working_set() if limit is None else limit
    for rows in (size for size in reversed(BATCH_SIZES) if size <= cap):
        found = estimate(
            config,
            weight_bytes,
            dtype_bytes,
            rows,
            prompt_tokens,
            max_tokens,
            conditions=conditions,
            replayed=replayed,
            metal=metal,
        )
        if found.fits(usable):
            return rows
    raise too_large(name, found.most, usable)


def _bytes_per_score(dtype_bytes: int) -> int:
    """Logits as computed and in float32, a copy without the best one, and a mask."""
    return 4 + 4 + 1 + (dtype_bytes if dtype_bytes < 4 else 0)


# Of MLX's allocators, for one array and for all together, and of a command buffer on Metal.
_WORDS = (
    "unable to allocate",
    "maximum allowed buffer size",
    "insufficient memory",
    "kiogpucommandbuffercallbackerroroutofmemory",
)


def is_memory_full(error: BaseException) -> bool:
    """Whether an error says that memory is full; any other must not be taken for it."""
    if isinstance(error, MemoryError):
        return True
    said = str(error).casefold()
    return isinstance(error, RuntimeError) and any(word in said for word in _WORDS)
