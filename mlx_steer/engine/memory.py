"""The memory that generation and extraction take, and how many rows fit.

The formulas follow the engine: keys and values are allocated for what a row will hold, and waves of
prompts are joined to the batch layer by layer. `scripts/bench_memory.py` checks them against MLX's
own peak.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlx_steer.config import BATCH_SIZE
from mlx_steer.engine.limits import (
    LOGITS_AT_ONCE,
    PREFILL_TOKENS,
    SHORTEST_HEAD,
    TOKENS_AT_ONCE,
    tokens_per_pass,
)
from mlx_steer.model.machine import has_metal, too_large, working_set
from mlx_steer.model.size import ModelSize

# A join or a growing cache is rewritten layer by layer, and some layers are under way at a time,
# the more since a step begins before the last one has ended.
_LAYERS_UNDER_WAY = 3
# What comes on top of the weights is known to within this part.
UNCERTAINTY = 0.3
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Workload:
    """What is generated, as far as memory depends on it.

    Attributes:
        prompt_tokens: Tokens of the longest prompt.
        max_tokens: Response tokens at most.
        conditions: Conditions that each prompt runs under; their shared heads are kept.
        replayed: How many of them first act at the same layer, and so go through the network
            together in prefill; a quarter by default.
    """

    prompt_tokens: int
    max_tokens: int
    conditions: int = 1
    replayed: int | None = None

    @property
    def total(self) -> int:
        """Tokens of the longest row."""
        return self.prompt_tokens + self.max_tokens


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
    size: ModelSize, work: Workload, rows: int, *, metal: bool | None = None
) -> MemoryEstimate:
    """The memory that `completions` takes with a full batch.

    Args:
        size: The model's.
        work: What is generated.
        rows: Rows decoded at a time.
        metal: Whether it runs on Metal, where attention is fused; by default what this machine has.
    """
    shape, item = size.shape, size.dtype_bytes
    on_metal = has_metal() if metal is None else metal
    # As `take_waves` does it: what the batch has room for, but all conditions of a prompt together.
    wave = min(rows, max(PREFILL_TOKENS // work.prompt_tokens, work.conditions))
    prompts = math.ceil(wave / work.conditions)
    kv_cache = rows * shape.kv_bytes(work.total, item)
    copies = _LAYERS_UNDER_WAY * kv_cache // shape.layers
    shared = _shared(size, work, prompts)
    group = math.ceil(work.conditions / 4) if work.replayed is None else max(1, work.replayed)
    at_once, read = min(wave, prompts * group), work.prompt_tokens
    prefill = shape.activation_bytes(at_once, read, read, item, on_metal)
    decode = shape.activation_bytes(rows, 1, work.total, item, on_metal)
    logits = rows * shape.vocabulary * _bytes_per_score(item)
    if item == 4:
        # A near tie in float32 is decided by running the row alone, with logits at every position.
        logits = max(logits, work.total * shape.vocabulary * item)
    # While the last prompts are read, about half of the batch's keys and values are there.
    on_top = shared + max(kv_cache + copies + decode + logits, kv_cache // 2 + prefill)
    return MemoryEstimate(
        rows=rows,
        weights=size.weights,
        kv_cache=kv_cache,
        shared=shared,
        copies=copies,
        activations=max(prefill, decode),
        logits=logits,
        peak=size.weights + on_top,
    )


def _shared(size: ModelSize, work: Workload, prompts: int) -> int:
    """What is kept of the last wave's prompts for rows that are still to come.

    Those prompts, one head (about half a prompt), and a head for each steered condition, of which
    only the layers above the steered one exist: about half.
    """
    shape, item = size.shape, size.dtype_bytes
    head = work.prompt_tokens // 2 if work.prompt_tokens // 2 >= SHORTEST_HEAD else 0
    heads = 1 + 0.5 * (work.conditions - 1)
    states = min(work.conditions - 1, shape.layers) * prompts * work.prompt_tokens
    return (
        prompts * shape.kv_bytes(work.prompt_tokens, item)
        + int(heads * shape.kv_bytes(head, item))
        + (states + shape.layers * head) * shape.hidden * item
    )


def extraction_bytes(
    size: ModelSize, pairs: int, pair_tokens: int, top: int, *, metal: bool | None = None
) -> int:
    """What extraction takes on top of the weights: prompts, and both responses of each.

    Args:
        size: The model's.
        pairs: Contrast pairs.
        pair_tokens: Tokens of a pair's prompt and both its responses.
        top: The highest layer, 0-based; layers above it are never run.
        metal: See `estimate`.
    """
    shape, item = size.shape, size.dtype_bytes
    on_metal = has_metal() if metal is None else metal
    held = max(1, min(pairs, TOKENS_AT_ONCE // max(1, pair_tokens)))
    at_once = max(1, min(pairs, tokens_per_pass(on_metal) // max(1, pair_tokens)))
    # The prompts of all pairs that are held, and copies of them for the responses of a pass.
    kept = (held + 2 * at_once) * shape.kv_bytes(pair_tokens, item)
    passing = shape.activation_bytes(at_once, pair_tokens, pair_tokens, item, on_metal)
    return kept * (top + 1) // shape.layers + passing


def scoring_bytes(size: ModelSize, work: Workload, *, metal: bool | None = None) -> int:
    """What perplexity takes on top of the weights: a prompt's responses, with logits everywhere.

    Args:
        size: The model's.
        work: What was generated: each prompt has a response for every condition.
        metal: See `estimate`.
    """
    shape, item, tokens = size.shape, size.dtype_bytes, work.max_tokens
    rows = min(work.conditions, max(1, LOGITS_AT_ONCE // (tokens * shape.vocabulary)))
    on_metal = has_metal() if metal is None else metal
    copies = 4 + (item if item < 4 else 0)
    return (
        (rows + 1) * shape.kv_bytes(work.total, item)
        + rows * tokens * shape.vocabulary * copies
        + shape.activation_bytes(rows, tokens, work.total, item, on_metal)
    )


def choose_batch_size(
    size: ModelSize,
    work: Workload,
    *,
    limit: int | None = None,
    cap: int = BATCH_SIZE,
    metal: bool | None = None,
    name: str = "the model",
) -> int:
    """The largest of 1, 2, 4, ..., 128 rows that fits into memory, at most `cap`.

    Args:
        size: The model's.
        work: What is generated.
        limit: Bytes that may be used; `working_set()` by default.
        cap: The largest size to choose (see `config.BATCH_SIZE`).
        metal: See `estimate`.
        name: What the model is called in the error.

    Raises:
        ModelError: If not even one row fits.
    """
    usable = working_set() if limit is None else limit
    for rows in (rows for rows in reversed(BATCH_SIZES) if rows <= cap):
        found = estimate(size, work, rows, metal=metal)
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
