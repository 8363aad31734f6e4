"""The steerable decoder layer: a subclass taken on in place, and the plan that it carries out.

A block of class C becomes steerable by setting its class to a subclass of C; nothing is copied and
parameter names stay as they were. What a block shall do to its output is a `Plan`, an affine map
per row. A plan sits on the block (`with steered(...)`) or rides on the block's cache
(`PlannedCache`), where it follows its row through mlx-lm's continuous batching.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_steer.conditions import Float32, Gate, Intervention
from mlx_steer.errors import ModelError, VectorError
from mlx_steer.model.load import Model, decoder_layers
from mlx_steer.vectors import SteeringVector, SteeringVectorSet
from mlx_steer.words import Operator, Scope

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Plan:
    """What happens to the output of one block, row by row: h + shift - weighted projections of h.

    Attributes:
        shift: Shape (rows, positions or 1, hidden_size), in the dtype of the hidden state.
        basis: Orthonormal directions to be projected out, scaled by the square root of the part
            that is taken; float32, shape (rows, directions, hidden_size), or None where no row
            projects.
    """

    shift: mx.array
    basis: mx.array | None = None

    def __call__(self, hidden: mx.array) -> mx.array:
        """Apply the plan to hidden states of shape (rows, positions, hidden_size)."""
        # The shift has the stream's dtype: a float32 one would turn all later layers to float32.
        shifted = hidden + self.shift.astype(hidden.dtype)
        if self.basis is None:
            return shifted
        exact = hidden.astype(mx.float32)
        projected = (exact @ self.basis.swapaxes(-1, -2)) @ self.basis
        return shifted - projected.astype(hidden.dtype)

    def rows(self, indices: Sequence[int]) -> Plan:
        """The plan of some rows, in that order; rows may repeat."""
        chosen = mx.array(list(indices))
        return Plan(self.shift[chosen], None if self.basis is None else self.basis[chosen])

    def with_rows(self, indices: Sequence[int], plans: Sequence[Plan]) -> Plan:
        """This plan with other plans, of one row each, in the place of some rows."""
        order = list(range(self.shift.shape[0]))
        for place, index in enumerate(indices, start=len(order)):
            order[index] = place
        return Plan.stack([self, *plans]).rows(order)

    @staticmethod
    def stack(plans: Sequence[Plan]) -> Plan:
        """Plans of several rows as one; rows without projections get directions of zero."""
        shift = mx.concatenate([p.shift for p in plans])
        if all(p.basis is None for p in plans):
            return Plan(shift)
        most = max(p.basis.shape[1] for p in plans if p.basis is not None)
        return Plan(shift, mx.concatenate([_padded_basis(p, most) for p in plans]))


def _padded_basis(plan: Plan, directions: int) -> mx.array:
    rows, _, hidden = plan.shift.shape
    if plan.basis is None:
        return mx.zeros((rows, directions, hidden), mx.float32)
    missing = directions - plan.basis.shape[1]
    return mx.pad(plan.basis, [(0, 0), (0, missing), (0, 0)])


def plan_of(interventions: Sequence[Intervention], hidden_size: int, dtype: mx.Dtype) -> Plan:
    """One row's plan for one layer.

    Projections (`ablate`, `clamp`) are taken from the block's own output; vectors are added to what
    is left. Full projections come first and each ends at its own value, orthogonal to the others or
    not; of two on the same direction the later one counts. A part (`ablate` below 1) is then taken
    of what the full ones leave of its direction.

    Args:
        interventions: All of one layer.
        hidden_size: Width of the hidden state.
        dtype: Dtype of the hidden state.
    """
    added = np.zeros(hidden_size, np.float64)
    clamped = np.zeros(hidden_size, np.float64)
    full: list[tuple[Float64, float]] = []
    parts: list[tuple[Float64, float]] = []
    for item in interventions:
        vector = item.vector.astype(np.float64)
        _check_strength(item, vector)
        unit = vector / (np.linalg.norm(vector) or 1.0)
        if item.operator == "add":
            added += item.strength * vector
        elif item.operator == "clamp":
            full.append((unit, item.strength))
        elif item.strength == 1.0:
            full.append((unit, 0.0))
        else:
            parts.append((unit, item.strength))
    basis: list[Float64] = []
    for unit, value in reversed(full):
        residue = _residue(unit, basis)
        size = float(np.linalg.norm(residue))
        if size > 1e-6:
            basis.append(residue / size)
            # Orthogonal to the directions before, so that their values stay.
            clamped += (value - unit @ clamped) / size * basis[-1]
    weights = [1.0] * len(basis)
    for unit, part in parts:
        residue = _residue(unit, basis)
        size = float(np.linalg.norm(residue))
        if size > 1e-6:
            basis.append(residue / size)
            weights.append(part)
    rows = mx.array((added + clamped).astype(np.float32)).astype(dtype)[None, None]
    if not basis:
        return Plan(rows)
    scaled = np.stack(basis) * np.sqrt(weights)[:, None]
    return Plan(rows, mx.array(scaled.astype(np.float32))[None])


def _residue(unit: Float64, basis: Sequence[Float64]) -> Float64:
    """What is left of a vector without its projections on an orthonormal basis."""
    for other in basis:
        unit = unit - (other @ unit) * other
    return unit


def _check_strength(item: Intervention, vector: Float64) -> None:
    if not np.isfinite(item.strength):
        raise VectorError(f"the strength at layer {item.layer} must be finite, not {item.strength}")
    if item.operator == "ablate" and not 0 <= item.strength <= 1:
        raise VectorError(
            f"ablating takes a part of the projection, from 0 to 1, not {item.strength:g}"
        )
    if item.operator != "add" and not vector.any():
        raise VectorError(f"a vector of zeros at layer {item.layer} has no direction to project on")


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

    def __call__(self, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        """Run the block as it is and apply the plans of the site and of the cache."""
        site = self._site
        if site.skip:
            return x
        out = site.replay if site.replay is not None else super().__call__(x, *args, **kwargs)
        hidden = out[0] if isinstance(out, tuple) else out
        plan = getattr(kwargs.get("cache", args[-1] if args else None), "plan", None)
        if plan is not None:
            hidden = plan(hidden)
        if site.plan is not None:
            hidden = site.plan(hidden)
        if site.record is not None:
            site.record(hidden)
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden


class _GroupedHeadMask(nn.Module):
    """Mixed in front of Gemma 2's block, which computes on (rows, kv heads, repeats, ...).

    mlx-lm hands it a batch's mask as (rows, 1, ...), which does not broadcast to that shape.
    """

    def __call__(self, x: mx.array, mask: mx.array | None = None, cache: Any = None) -> Any:
        if mask is not None and mask.ndim == 4 and self.self_attn.repeats > 1:
            mask = mx.expand_dims(mask, 2)
        return super().__call__(x, mask, cache)


# Blocks of mlx-lm that need help to run in a batch, by the module they are defined in.
_HELP = {"mlx_lm.models.gemma2": _GroupedHeadMask}


@cache
def steerable_class(block: type[nn.Module]) -> type[nn.Module]:
    """The steerable subclass of a decoder block's class, made once."""
    help_first = (_HELP[block.__module__],) if block.__module__ in _HELP else ()
    return type(f"Steerable{block.__name__}", (SteerableLayer, *help_first, block), {})


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


class PlannedCache:
    """A block's cache and the plan of its rows, moved together by mlx-lm's batching.

    Hand one to `BatchGenerator.insert(prompts, caches=...)` for every layer that any row of the
    generator steers, for base rows too: `merge` and `extend` keep plans only where all have one.

    Args:
        inner: The cache mlx-lm would have used.
        plan: The plan of the rows in it.
    """

    __slots__ = ("inner", "plan")

    def __init__(self, inner: Any, plan: Plan) -> None:
        """See the class."""
        self.inner = inner
        self.plan = plan

    def __getattr__(self, name: str) -> Any:
        """Everything else is the inner cache's."""
        if name in PlannedCache.__slots__:  # not set yet: copy and pickle probe for them
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the inner cache's attributes, but its own two."""
        if name in PlannedCache.__slots__:
            object.__setattr__(self, name, value)
        else:
            setattr(self.inner, name, value)

    @staticmethod
    def merge(caches: Sequence[PlannedCache]) -> PlannedCache:
        """Rows of several caches as one batch."""
        inner = caches[0].inner.merge([c.inner for c in caches])
        return PlannedCache(inner, Plan.stack([c.plan for c in caches]))

    def extend(self, other: PlannedCache) -> None:
        """Append another batch's rows."""
        self.inner.extend(other.inner)
        self.plan = Plan.stack([self.plan, other.plan])

    def filter(self, batch_indices: Sequence[int]) -> None:
        """Keep some rows."""
        self.inner.filter(batch_indices)
        indices = batch_indices.tolist() if isinstance(batch_indices, mx.array) else batch_indices
        self.plan = self.plan.rows(indices)

    def extract(self, idx: int) -> PlannedCache:
        """One row's cache, with its plan."""
        return PlannedCache(self.inner.extract(idx), self.plan.rows([idx]))


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
    if gate is not None:
        gate = replace(gate, layer=checked_layer(network, gate.layer))
    interventions = _interventions(network, vectors, layer, strength, operator, scope)
    if any(item.scope in ("thinking", "answer") for item in interventions):
        raise VectorError(
            "inside steered(...) thinking and answer cannot be told apart; use scope='generated', "
            "which acts on both, or run scopes 'thinking' and 'answer' as jobs with complete(...)"
        )
    by_layer: dict[int, list[Intervention]] = {}
    for item in interventions:
        if item.acts:
            by_layer.setdefault(item.layer, []).append(item)
    live: _LiveGate | None = None
    if gate is not None and prompt is not None:
        if gate_score(network, gate, prompt) < 0:
            by_layer = {}
    elif gate is not None and by_layer:
        if gate.layer > min(by_layer) or any(i.scope != "generated" for i in interventions):
            raise VectorError(
                f"a gate at layer {gate.layer} with scope {scope!r} cannot be decided while "
                "generating; give steered(..., prompt=token_ids), or scope='generated' and a gate "
                "no higher than the steered layer"
            )
        live = _LiveGate(gate)
    layers = sorted({*by_layer, *([gate.layer] if live is not None and gate is not None else [])})
    with steerable(network, layers) as sites:
        before = [site.plan for site in sites]
        for site, index in zip(sites, layers, strict=True):
            if live is not None and index == live.gate.layer:
                site.plan = _then(site.plan, live.read)
            if index in by_layer:
                plan = _on_site(by_layer[index])
                site.plan = _then(site.plan, plan if live is None else live.guarded(plan))
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
    gate = replace(gate, layer=checked_layer(network, gate.layer))
    states: list[mx.array] = []
    with steerable(network, [gate.layer]) as (site,):
        site.record = states.append
        try:
            network(mx.array([list(prompt)]))
        finally:
            site.record = None
    last = np.array(states[0][0, -1].astype(mx.float32)).astype(np.float64)
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
    count = len(decoder_layers(network))
    if not -count <= index < count:
        raise ModelError(f"the model has layers 0 to {count - 1}, and no layer {index}")
    return index % count


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

    def guarded(self, plan: Callable[[mx.array], mx.array]) -> Callable[[mx.array], mx.array]:
        def apply(hidden: mx.array) -> mx.array:
            return hidden if self._open is None else mx.where(self._open, plan(hidden), hidden)

        return apply


def _then(
    first: Callable[[mx.array], mx.array] | None, second: Callable[[mx.array], mx.array]
) -> Callable[[mx.array], mx.array]:
    return second if first is None else lambda hidden: second(first(hidden))


def _on_site(items: Sequence[Intervention]) -> Callable[[mx.array], mx.array]:
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
