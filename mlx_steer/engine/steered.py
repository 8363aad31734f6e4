"""`with steered(...)`: everything that runs the model inside is steered; and gates on a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_steer.conditions import Float32, Gate, Intervention
from mlx_steer.engine.guard import forward_of
from mlx_steer.engine.operators import plan_of
from mlx_steer.engine.row_plan import Plan
from mlx_steer.engine.steering import steerable
from mlx_steer.engine.structure import structure_of
from mlx_steer.errors import VectorError
from mlx_steer.model.load import Model, decoder_layers
from mlx_steer.model.shape import layer_of
from mlx_steer.vectors import SteeringVector, SteeringVectorSet
from mlx_steer.words import Operator, Scope

Map = Callable[[mx.array], mx.array]
"""What is done to a block's output, of shape (rows, positions, hidden_size)."""


def network_of(model: Model | nn.Module) -> nn.Module:
    """The mlx-lm network of a `Model`, or the network itself."""
    return model.network if isinstance(model, Model) else model


@contextmanager
def steered(
    model: Model | nn.Module,
    vectors: SteeringVectorSet | SteeringVector | Sequence[Intervention] | Float32,
    *,
    layer: int | Sequence[int] | None = None,
    strength: float = 1.0,
    operator: Operator = "add",
    scope: Scope = "all",
    gate: Gate | None = None,
    prompt: Sequence[int] | None = None,
) -> Iterator[None]:
    """Steer everything that runs the model inside the context: any mlx-lm function, any forward.

    Contexts may be nested; their effects add up. Afterwards the model is as it was before, also
    after an exception.

    Scopes other than `all` go by the way mlx-lm generates: a call over several positions is
    prompt, a call over one position predicts a response token. Which of these belong to a model's
    thinking cannot be told here; run scopes `thinking` and `answer` as jobs (`complete`).

    A gate is decided from `prompt`, by one pass over it before anything is steered. Without
    `prompt` it is decided while generating, anew for each prompt; that can only be done with scope
    `generated` and a gate that is read no higher than the first steered layer.

    Args:
        model: Ours, or the plain network that `mlx_lm.load` returns.
        vectors: A set (needs `layer`), one vector (its own layer), an array of shape (hidden_size,)
            (needs `layer`), or interventions, which say everything themselves.
        layer: One layer or several, 0-based; negative counts from the end.
        strength: The factor on the raw vector (see `Intervention` for other operators).
        operator: `add`, `ablate` or `clamp`.
        scope: `all`, `generated` or `prompt`.
        gate: Steer only if it opens.
        prompt: Token ids of the prompt that the gate is to read.

    Raises:
        VectorError: If the vectors lack the layer or do not fit the hidden size, or the scope is
            `thinking` or `answer`.
        ModelError: If the model has no such layer.
    """
    network = network_of(model)
    interventions = _interventions(network, vectors, layer, strength, operator, scope)
    if any(item.scope in ("thinking", "answer") for item in interventions):
        raise VectorError(
            "inside steered(...) thinking and answer cannot be told apart; use scope='generated', "
            "which acts on both, or run scopes 'thinking' and 'answer' as jobs with complete(...)"
        )
    acting = [item for item in interventions if item.acts]
    if gate is None:
        maps = _maps(acting)
    elif prompt is not None:
        maps = _maps(acting) if gate_score(network, gate, prompt) >= 0 else {}
    else:
        checked = replace(gate, layer=checked_layer(network, gate.layer))
        maps = _maps(acting, _live_gate(checked, acting))
    with _mapped(network, maps):
        yield


def _maps(
    acting: Sequence[Intervention], live: _LiveGate | None = None
) -> Mapping[int, Sequence[Map]]:
    """By layer, what is done to its output; under a gate that is decided while generating."""
    maps: dict[int, list[Map]] = {}
    if live is not None and acting:
        maps[live.gate.layer] = [live.read]
    for index in sorted({item.layer for item in acting}):
        plan = _on_site([item for item in acting if item.layer == index])
        maps.setdefault(index, []).append(plan if live is None else live.guarded(plan))
    return maps


@contextmanager
def _mapped(network: nn.Module, maps: Mapping[int, Sequence[Map]]) -> Iterator[None]:
    """Apply maps to the outputs of blocks, after what is applied there already."""
    if maps:
        structure_of(network)  # raises if its blocks are called in another way
    with steerable(network, list(maps)) as sites:
        before = [site.plan for site in sites]
        for site, added in zip(sites, maps.values(), strict=True):
            for one in added:
                site.plan = _then(site.plan, one)
        try:
            yield
        finally:
            for site, plan_before in zip(sites, before, strict=True):
                site.plan = plan_before


def gate_score(network: nn.Module, gate: Gate, prompt: Sequence[int]) -> float:
    """A gate's score minus its threshold for one prompt (token ids); it is open at 0 and above.

    Raises:
        ModelError: If the network has no such layer.
    """
    layer = checked_layer(network, gate.layer)
    with forward_of(network) as forward:
        hidden = forward.alone(prompt, len(prompt) - 1, {}, keep=[layer]).hidden[layer]
        last = np.array(hidden[0, -1].astype(mx.float32)).astype(np.float64)
    return float(last @ gate.direction.astype(np.float64)) - gate.threshold


def settled_gate_score(
    network: nn.Module, gate: Gate, prompt: Sequence[int], score: float
) -> float:
    """A score from a batch, or the prompt's own where rounding could decide.

    Scores in a batch depend on its composition in their last digits; one this near to the
    threshold is computed again by the prompt alone.
    """
    near = abs(score) < 1e-4 * (1 + abs(gate.threshold))
    return round(gate_score(network, gate, prompt) if near else score, 6)


def checked_layer(network: nn.Module, index: int) -> int:
    """A layer counted from 0; raises ModelError if the network has no such layer."""
    return layer_of(index, len(decoder_layers(network)), "the model")


def _live_gate(gate: Gate, acting: Sequence[Intervention]) -> _LiveGate:
    if any(gate.layer > item.layer or item.scope != "generated" for item in acting):
        scopes = " and ".join(sorted({repr(item.scope) for item in acting}))
        raise VectorError(
            f"a gate at layer {gate.layer} with scope {scopes} cannot be decided while "
            "generating; give steered(..., prompt=token_ids), or scope='generated' and a gate "
            "no higher than the steered layer"
        )
    return _LiveGate(gate)


class _LiveGate:
    """A gate that is decided when the last prompt token passes its layer, for each row."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self._direction = mx.array(gate.direction)
        self._open: mx.array | None = None

    def read(self, hidden: mx.array) -> mx.array:
        if hidden.shape[1] > 1:  # a new prompt
            self._open = None
        elif self._open is None or self._open.shape[0] != hidden.shape[0]:
            score = hidden[:, -1].astype(mx.float32) @ self._direction
            self._open = (score >= self.gate.threshold)[:, None, None]
        return hidden

    def guarded(self, plan: Map) -> Map:
        def apply(hidden: mx.array) -> mx.array:
            return hidden if self._open is None else mx.where(self._open, plan(hidden), hidden)

        return apply


def _then(first: Map | None, second: Map) -> Map:
    return second if first is None else lambda hidden: second(first(hidden))


def _on_site(items: Sequence[Intervention]) -> Map:
    stages = {
        True: [i for i in items if i.scope in ("all", "generated")],
        False: [i for i in items if i.scope in ("all", "prompt")],
    }
    made: dict[tuple[bool, mx.Dtype], Plan] = {}

    def apply(hidden: mx.array) -> mx.array:
        generated = hidden.shape[1] == 1
        if not stages[generated]:
            return hidden
        key = (generated, hidden.dtype)
        if key not in made:
            if hidden.shape[-1] != items[0].vector.shape[0]:
                raise VectorError(
                    f"the vector has {items[0].vector.shape[0]} values and the model's hidden "
                    f"state {hidden.shape[-1]}; it was made for another model"
                )
            made[key] = plan_of(stages[generated], hidden.shape[-1], hidden.dtype)
        return made[key](hidden)

    return apply


def _interventions(
    network: nn.Module,
    vectors: SteeringVectorSet | SteeringVector | Sequence[Intervention] | Float32,
    layer: int | Sequence[int] | None,
    strength: float,
    operator: Operator,
    scope: Scope,
) -> list[Intervention]:
    count = len(decoder_layers(network))

    def checked(index: int) -> int:
        return checked_layer(network, index)

    chosen = [layer] if isinstance(layer, int) else list(layer or ())
    arrays: Mapping[int, Float32]
    if isinstance(vectors, SteeringVector):
        arrays = {checked(i): vectors.array for i in chosen or [vectors.layer]}
    elif isinstance(vectors, np.ndarray):
        arrays = {checked(i): vectors for i in chosen}
    elif isinstance(vectors, SteeringVectorSet):
        if vectors.metadata.num_layers != count:
            raise VectorError(
                f"the vectors are from a model of {vectors.metadata.num_layers} layers and this "
                f"one has {count}; extract vectors from this model"
            )
        arrays = {checked(i): vectors[checked(i)].array for i in chosen}
    else:
        return [replace(item, layer=checked(item.layer)) for item in vectors]
    if not arrays:
        raise VectorError("say which layer to steer: steered(model, vectors, layer=12)")
    return [
        Intervention(index, array, strength, operator, scope) for index, array in arrays.items()
    ]
