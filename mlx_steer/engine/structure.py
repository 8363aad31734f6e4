"""How a network calls its decoder blocks; nothing is computed, MLX only builds the graph."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_steer.errors import ModelError
from mlx_steer.model.families import STREAM
from mlx_steer.model.load import decoder_layers

WHERE = "support for it belongs in mlx_steer/model/families.py"

_found: dict[str, Structure] = {}


@dataclass(frozen=True)
class Structure:
    """What is needed to leave blocks out of a call.

    Attributes:
        plain: Each block turns one array into one array, the next block's input.
        aligned: Each block has one cache, and they are in the blocks' order.
    """

    plain: bool
    aligned: bool


@dataclass(frozen=True, eq=False)
class _Seen:
    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any


def structure_of(network: nn.Module) -> Structure:
    """How a network calls its blocks, looked at once for each kind of network.

    Raises:
        ModelError: If it does not call each of them once, in order: steering them would do
            something else than it says, or nothing.
    """
    kind = kind_of(network)
    if kind not in _found:
        _found[kind] = _looked_at(network)
    return _found[kind]


def kind_of(network: nn.Module) -> str:
    """All that decides how a network computes, but the values of its parameters."""
    args = repr(getattr(network, "args", id(network)))
    leaves = [(name, value.shape, str(value.dtype)) for name, value in _leaves(network)]
    text = f"{type(network).__module__} {type(network).__qualname__} {args} {leaves}"
    return hashlib.sha256(text.encode()).hexdigest()


def name_of(network: nn.Module) -> str:
    """A network's model type."""
    return str(getattr(network, "model_type", type(network).__module__))


def cannot_be_run(network: nn.Module, error: Exception) -> ModelError:
    """What is said of a network that mlx-lm itself fails to run."""
    reason = " ".join(str(error).split())[:200]
    return ModelError(f"model type {name_of(network)!r} cannot be run: {reason}")


def _looked_at(network: nn.Module) -> Structure:
    from mlx_lm.models.cache import make_prompt_cache

    blocks, caches = decoder_layers(network), make_prompt_cache(network)
    kinds = [type(block) for block in blocks]
    with _watched(blocks) as seen:
        try:
            network(mx.array([[0, 0]]), cache=caches)
        except Exception as error:
            raise cannot_be_run(network, error) from error
    if [id(call.block) for call in seen] != [id(block) for block in blocks]:
        raise ModelError(
            f"model type {name_of(network)!r} does not call its decoder blocks once each, one "
            f"after the other, which steering needs; {WHERE}"
        )
    if not all(_gives_hidden_state(call, kind) for call, kind in zip(seen, kinds, strict=True)):
        raise ModelError(
            f"the blocks of model type {name_of(network)!r} give no hidden state of shape (rows, "
            f"positions, hidden_size), which steering needs; {WHERE}"
        )
    plain = all(
        bool(call.args) and isinstance(call.args[0], mx.array) and isinstance(call.out, mx.array)
        for call in seen
    )
    aligned = len(caches) == len(blocks) and all(
        any(own is value for value in (*call.args, *call.kwargs.values()))
        for call, own in zip(seen, caches, strict=True)
    )
    return Structure(plain, aligned)


def _gives_hidden_state(call: _Seen, kind: type[nn.Module]) -> bool:
    hidden = call.out[0] if isinstance(call.out, tuple) else call.out
    streams = kind.__module__ in STREAM
    return isinstance(hidden, mx.array) and hidden.ndim == (4 if streams else 3)


@contextmanager
def _watched(blocks: list[nn.Module]) -> Iterator[list[_Seen]]:
    """Note how blocks are called."""
    kinds = [type(block) for block in blocks]
    seen: list[_Seen] = []

    def watched(kind: type[nn.Module]) -> type[nn.Module]:
        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            out = kind.__call__(self, *args, **kwargs)
            seen.append(_Seen(self, args, kwargs, out))
            return out

        return type(kind.__name__, (kind,), {"__call__": call})

    try:
        for block, kind in zip(blocks, kinds, strict=True):
            block.__class__ = watched(kind)
        yield seen
    finally:
        for block, kind in zip(blocks, kinds, strict=True):
            block.__class__ = kind


def _leaves(module: nn.Module) -> list[tuple[str, mx.array]]:
    leaves: list[tuple[str, mx.array]] = tree_flatten(module.parameters())  # type: ignore
    return leaves
