"""x86 Linux only: two of mlx-lm's functions, and the layout of weights, for the sake of speed.

There MLX computes `exp`, and `sigmoid` by it, several times as slowly as `power`, which is the C
library's; it does all but large products in one thread; attention multiplies once for every head,
though several share their keys; and OpenBLAS reads a matrix that is multiplied transposed slowly,
which counts where it meets few rows. `scripts/bench_x86_linux.py` shows what all three gain. On
Macs and under CUDA nothing is done.
"""

import math
import platform
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_steer.blas import cores

Attention = Callable[..., mx.array]

# A part is computed beside the others if it has at least so many scores or activations.
_LEAST_WORK = 1 << 14
_MOST_PARTS = 8
# The largest product, in multiplications, that OpenBLAS computes in one thread.
_ONE_THREAD = 1 << 18
_local = threading.local()


@cache
def hasten() -> None:
    """Put the faster functions in the place of mlx-lm's, in its modules loaded so far and later."""
    if not _is_here():
        return
    from mlx_lm.models import activations, base

    _replace("swiglu", activations.swiglu, by_power(activations.swiglu))
    before = base.scaled_dot_product_attention
    _replace("scaled_dot_product_attention", before, by_groups(before))


def lay_out(network: nn.Module) -> None:
    """Lay out the weights of linear layers column by column: the same numbers, read faster.

    Products are the same to the last bit: OpenBLAS copies what it multiplies into an order of its
    own, and copies rows faster than columns.

    Args:
        network: Its `nn.Linear` layers in float32 are changed in place.
    """
    if not _is_here():
        return
    for module in network.modules():  # type: ignore[no-untyped-call]
        if isinstance(module, nn.Linear) and module.weight.dtype == mx.float32:
            module.weight = mx.contiguous(module.weight.T).T
            mx.eval(module.weight)  # one after the other: only one is held twice


def _is_here() -> bool:
    here = (sys.platform, platform.machine()) == ("linux", "x86_64")
    return here and mx.default_device() == mx.cpu


def _replace(name: str, before: object, after: object) -> None:
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("mlx_lm.models.") and getattr(module, name, None) is before:
            setattr(module, name, after)


def by_power(
    swiglu: Callable[[mx.array, mx.array], mx.array],
) -> Callable[[mx.array, mx.array], mx.array]:
    """The same function by way of `power`, on the CPU in float32; elsewhere as it is.

    Args:
        swiglu: (gate, x) -> gate * sigmoid(gate) * x.
    """

    def faster(gate: mx.array, x: mx.array) -> mx.array:
        if gate.dtype != mx.float32 or mx.default_device() != mx.cpu:
            return swiglu(gate, x)

        def part(cut: tuple[slice, ...]) -> mx.array:
            return gate[cut] / (1 + mx.power(math.e, -gate[cut])) * x[cut]

        # Where rows are few, their positions are the parts.
        axis = max(range(gate.ndim - 1), key=gate.shape.__getitem__, default=0)
        return _side_by_side(part, gate.shape, axis, gate.size)

    return faster


def by_groups(attention: Attention) -> Attention:
    """The same function for rows that read one token each, on the CPU in float32.

    The heads that share keys are multiplied with them at once, and parts of the rows are computed
    side by side, each on a stream of its own; a row's digits do not depend on its part. All other
    calls are left as they are.

    Args:
        attention: mlx-lm's `scaled_dot_product_attention`.
    """

    def faster(
        queries: mx.array,
        keys: Any,
        values: Any,
        cache: Any,
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None = None,
    ) -> mx.array:
        known = sinks is None and _one_token_each(queries, cache) and _of_rows(mask)
        if not known or isinstance(mask, str):
            return attention(queries, keys, values, cache, scale, mask, sinks)
        rows, heads, _, size = queries.shape
        every = mask is None or mask.shape[0] == 1

        def part(cut: tuple[slice, ...]) -> mx.array:
            own = mask if mask is None or every else mask[cut]
            return _one_token(queries[cut], keys[cut], values[cut], scale, own)

        # OpenBLAS shares larger products among threads, which two streams would fight for.
        product = heads // keys.shape[1] * keys.shape[2] * size
        work = rows * heads * keys.shape[2] if product <= _ONE_THREAD else 0
        return _side_by_side(part, keys.shape, 0, work)

    return faster


def _one_token_each(queries: mx.array, cache: Any) -> bool:
    plain = queries.dtype == mx.float32 and queries.shape[2] == 1 and not hasattr(cache, "bits")
    return plain and mx.default_device() == mx.cpu


def _of_rows(mask: mx.array | str | None) -> bool:
    """Whether a mask says of each row, or of all, which keys are seen, if there is one."""
    if not isinstance(mask, mx.array):
        return mask is None
    return mask.dtype == mx.bool_ and mask.ndim == 4 and mask.shape[1] == 1


def _one_token(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | None
) -> mx.array:
    rows, heads, _, size = queries.shape
    groups = keys.shape[1]
    shape = rows, groups, heads // groups
    scores = (queries * scale).reshape(*shape, size) @ keys.swapaxes(-1, -2)
    if mask is not None:
        scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
    weights = mx.power(math.e, scores - mx.max(scores, axis=-1, keepdims=True))
    summed = weights @ values / mx.sum(weights, axis=-1, keepdims=True)
    return summed.reshape(rows, heads, 1, values.shape[-1])


def _side_by_side(
    part: Callable[[tuple[slice, ...]], mx.array], shape: Sequence[int], axis: int, work: int
) -> mx.array:
    """Parts along an axis of a shape, as many as pay and as there are cores, put together again."""
    size = shape[axis]
    count = min(_MOST_PARTS, size, work // _LEAST_WORK)
    count = min(count, cores()) if count > 1 else 1
    if count == 1:
        return part(())
    ends = [size * i // count for i in range(count + 1)]
    done = []
    for stream, a, b in zip(_streams(count), ends, ends[1:], strict=False):
        with mx.stream(stream):
            done.append(part((*[slice(None)] * axis, slice(a, b))))
    return mx.concatenate(done, axis=axis)


def _streams(count: int) -> list[Any]:
    """This thread's own stream, and others that are kept for it."""
    kept: list[Any] = getattr(_local, "streams", [])
    while len(kept) < count - 1:
        kept.append(mx.new_stream(mx.cpu))
    _local.streams = kept
    return [mx.default_stream(mx.cpu), *kept[: count - 1]]
