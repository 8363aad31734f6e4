"""Experiment designs: which conditions a sweep and a fair comparison consist of. Plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from mlx_steer.conditions import Condition, Float32, Gate, Intervention
from mlx_steer.errors import ConfigError
from mlx_steer.vectors import SteeringVector, SteeringVectorSet
from mlx_steer.words import Kind, Scope

BASE = Condition("base", kind="base")


def resolve_system_prompt(prompts: Mapping[str, str], name_or_text: str) -> tuple[str, str]:
    """A system prompt's short name and text, from a behavior's name for it or a text of one's own.

    Raises:
        ConfigError: If it is one word and no name of the behavior's.
    """
    if name_or_text in prompts:
        return name_or_text, prompts[name_or_text]
    if " " not in name_or_text.strip():
        raise ConfigError(
            f"the behavior has no system prompt {name_or_text!r}; it has "
            f"{', '.join(prompts) or 'none'}, or give the text itself"
        )
    # Prompts one tries are often alike where they begin.
    mark = hashlib.sha256(name_or_text.encode()).hexdigest()[:4]
    return f"own {mark} ({name_or_text.strip()[:24]}...)", name_or_text


def steering(
    vector: SteeringVector,
    strength: float,
    name: str,
    prompt: tuple[str, str] | None = None,
    scope: Scope = "all",
) -> Condition:
    """The vector added at its layer, alone or together with a system prompt."""
    label = cell_name(vector.layer, strength)
    return Condition(
        name=f"prompt {prompt[0]} + {label}" if prompt else label,
        system_prompt=prompt[1] if prompt else None,
        interventions=(Intervention(vector.layer, vector.array, strength, scope=scope, name=name),),
        kind="prompt+steering" if prompt else "steering",
    )


def prompted(prompt: tuple[str, str]) -> Condition:
    """A system prompt alone."""
    return Condition(f"prompt {prompt[0]}", system_prompt=prompt[1], kind="prompt")


def cell_name(layer: int, strength: float) -> str:
    """What the condition that steers one layer at one strength is called."""
    return f"layer {layer}, strength {strength:g}"


def sweep(
    vectors: SteeringVectorSet,
    layers: Sequence[int],
    strengths: Sequence[float],
    system_prompts: Sequence[tuple[str, str]],
    scope: Scope = "all",
) -> list[Condition]:
    """Base, every layer at every strength, and the system prompts to choose from."""
    name = vectors.metadata.behavior
    cells = [
        steering(vectors[layer], s, name, scope=scope)
        for layer in layers
        for s in strengths
        if s != 0
    ]
    return [BASE, *map(prompted, system_prompts), *cells]


def comparison(
    vector: SteeringVector,
    strengths: Sequence[float],
    behavior: str,
    system_prompt: tuple[str, str] | None,
    scope: Scope = "all",
) -> list[Condition]:
    """Base, prompt, steering at each strength, and both together."""
    conditions = [BASE]
    if system_prompt is not None:
        conditions.append(prompted(system_prompt))
    conditions += [steering(vector, s, behavior, scope=scope) for s in strengths]
    if system_prompt is not None:
        conditions += [steering(vector, s, behavior, system_prompt, scope) for s in strengths]
    return conditions


def controls(
    vector: SteeringVector,
    strength: float,
    *,
    random: int,
    negated: bool,
    shuffled: SteeringVector | None,
    seed: int,
    scope: Scope = "all",
) -> list[Condition]:
    """What should not work if the vector's direction means what it is said to mean.

    All have the vector's norm: random directions, the vector turned around, and the vector of
    contrast pairs whose sides were swapped at random.
    """
    norm = vector.norm

    def control(kind: Kind, name: str, array: Float32) -> Condition:
        item = Intervention(vector.layer, array, strength, scope=scope, name=name)
        return Condition(f"{name}, {cell_name(vector.layer, strength)}", None, (item,), kind=kind)

    made = []
    for i in range(random):
        # The layer is part of the seed, so that another layer gets other directions.
        draw = np.random.default_rng([seed, vector.layer, i]).standard_normal(vector.hidden_size)
        array = (draw / np.linalg.norm(draw) * norm).astype(np.float32)
        made.append(control("random", f"random {i}", array))
    if negated:
        made.append(control("negated", "negated", (-vector).array))
    if shuffled is not None:
        same_norm = shuffled.normalised() * norm
        made.append(control("shuffled", "shuffled", same_norm.array))
    return made


def gated(
    vector: SteeringVector,
    strength: float,
    name: str,
    gate: Gate,
    prompt: tuple[str, str] | None = None,
    scope: Scope = "all",
) -> Condition:
    """Steering that acts only on prompts whose gate opens."""
    plain = steering(vector, strength, name, scope=scope)
    label = f"gated {plain.name}"
    return Condition(
        name=f"prompt {prompt[0]} + {label}" if prompt else label,
        system_prompt=prompt[1] if prompt else None,
        interventions=plain.interventions,
        gates=(gate,),
        kind="prompt+gated" if prompt else "gated",
    )


def gated_sweep(
    vectors: SteeringVectorSet,
    layers: Sequence[int],
    strengths: Sequence[float],
    gate: Gate,
    scope: Scope = "all",
) -> list[Condition]:
    """Every layer at every strength, behind the gate."""
    name = vectors.metadata.behavior
    return [
        gated(vectors[layer], s, name, gate, scope=scope)
        for layer in layers
        for s in strengths
        if s != 0
    ]


def gated_comparison(
    vector: SteeringVector,
    strengths: Sequence[float],
    behavior: str,
    gate: Gate,
    prompt: tuple[tuple[str, str], Gate] | None,
    scope: Scope = "all",
) -> list[Condition]:
    """Gated steering at each strength, alone and together with a system prompt (and its gate)."""
    conditions = [gated(vector, s, behavior, gate, scope=scope) for s in strengths]
    if prompt is not None:
        text, its_gate = prompt
        conditions += [gated(vector, s, behavior, its_gate, text, scope) for s in strengths]
    return conditions
