"""The steerable decoder layer: a subclass taken on in place, and what its site is asked to do.

A block of class C becomes steerable by setting its class to a subclass of C; nothing is copied and
parameter names stay as they were. What a block shall do to its output is a `Plan`, an affine map
per row. A plan sits on the block's site (`with steered(...)`, and the engine's own batch) or rides
on the block's cache (`PlannedCache`), where mlx-lm's continuous batching moves it with its row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from mlx_steer.model.families import HELP, STREAM
from mlx_steer.model.load import decoder_layers


class Site:
    """What one steerable block is asked to do at the moment; all None: nothing.

    Attributes:
        plan: Applied to the block's output.
        replay: Taken as the block's own output instead of running it.
        skip: The block is not run at all and passes its input on.
        record: Called with the block's output, plan included.
    """

    __slots__ = ("plan", "record", "replay", "skip")

    def __init__(self) -> None:
        """Nothing to do."""
        self.plan: Callable[[mx.array], mx.array] | None = None
        self.replay: mx.array | None = None
        self.record: Callable[[mx.array], None] | None = None
        self.skip = False


class SteerableLayer(nn.Module):
    """Mixed in front of a decoder block's class: runs the block, then what its site asks for."""

    _site: Site
    _stream: ClassVar[Callable[[Any], int] | None] = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block as it is and apply the plans of the site and of the cache."""
        site = self._site
        if site.skip:
            return args[0]
        out = site.replay if site.replay is not None else super().__call__(*args, **kwargs)
        hidden = out[0] if isinstance(out, tuple) else out
        plan = getattr(kwargs.get("cache", args[-1] if args else None), "plan", None)
        if plan is not None:
            hidden = plan(hidden)
        if site.plan is not None:
            hidden = site.plan(hidden)
        if site.record is not None:
            site.record(hidden if self._stream is None else hidden[self._stream()])
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden


@cache
def steerable_class(block: type[nn.Module]) -> type[nn.Module]:
    """The steerable subclass of a decoder block's class, made once."""
    help_first = (HELP[block.__module__],) if block.__module__ in HELP else ()
    members = {"_stream": STREAM[block.__module__]} if block.__module__ in STREAM else {}
    return type(f"Steerable{block.__name__}", (SteerableLayer, *help_first, block), members)


@contextmanager
def steerable(network: nn.Module, layers: Sequence[int] | None = None) -> Iterator[list[Site]]:
    """Make blocks steerable while the context lasts, and undo it after an exception too.

    Blocks that are steerable already (nested contexts) are left to the outer context.

    Args:
        network: An mlx-lm network.
        layers: Which blocks, 0-based; all by default.

    Yields:
        The sites of the chosen blocks, in the order of `layers`.
    """
    blocks = decoder_layers(network)
    chosen = [blocks[i] for i in (range(len(blocks)) if layers is None else layers)]
    taken: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for block in chosen:
            if not isinstance(block, SteerableLayer):
                taken.append((block, type(block)))
                block._site = Site()
                block.__class__ = steerable_class(type(block))
        yield [block._site for block in chosen]
    finally:
        for block, original in taken:
            block.__class__ = original
            del block._site
