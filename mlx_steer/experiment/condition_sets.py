"""The conditions that experiments are made of. Plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from mlx_steer.conditions import Condition, Float32, Gate, Intervention
from mlx_steer.config import ControlsConfig
from mlx_steer.errors import ConfigError
from mlx_steer.vectors import SteeringVector
from mlx_steer.words import Kind, Scope

BASE = Condition("base", kind="base")


class SystemPrompt(NamedTuple):
    """A system prompt with the short name it has in conditions."""

    name: str
    text: str


def resolve_system_prompt(prompts: Mapping[str, str], name_or_text: str) -> SystemPrompt:
    """A system prompt's short name and text, from a behavior's name for it or a text of one's own.

    Raises:
        ConfigError: If it is one word and no name of the behavior's.
    """
    if name_or_text in prompts:
        return SystemPrompt(name_or_text, prompts[name_or_text])
    if " " not in name_or_text.strip():
        raise ConfigError(
            f"the behavior has no system prompt {name_or_text!r}; it has "
            f"{', '.join(prompts) or 'none'}, or give the text itself"
        )
    # Prompts one tries are often alike where they begin.
    mark = hashlib.sha256(name_or_text.encode()).hexdigest()[:4]
    return SystemPrompt(f"own {mark} ({name_or_text.strip()[:24]}...)", name_or_text)


def prompted(prompt: SystemPrompt) -> Condition:
    """A system prompt alone."""
    return Condition(f"prompt {prompt.name}", system_prompt=prompt.text, kind="prompt")


def cell_name(layer: int, strength: float) -> str:
    """What the condition that steers one layer at one strength is called."""
    return f"layer {layer}, strength {strength:g}"


def steering(
    vector: SteeringVector,
    strength: float,
    name: str,
    prompt: SystemPrompt | None = None,
    gate: Gate | None = None,
    scope: Scope = "all",
) -> Condition:
    """The vector added at its layer.

    Args:
        vector: The vector.
        strength: The factor on it.
        name: What it is called, for example the behavior.
        prompt: A system prompt that goes with it.
        gate: If given, the vector acts only on prompts that open it.
        scope: The positions it acts on.
    """
    label = f"{'gated ' if gate else ''}{cell_name(vector.layer, strength)}"
    kind: Kind = "gated" if gate else "steering"
    if prompt:
        kind = "prompt+gated" if gate else "prompt+steering"
    return Condition(
        name=f"prompt {prompt.name} + {label}" if prompt else label,
        system_prompt=prompt.text if prompt else None,
        interventions=(Intervention(vector.layer, vector.array, strength, scope=scope, name=name),),
        gates=(gate,) if gate else (),
        kind=kind,
    )


def at_strengths(
    vector: SteeringVector,
    strengths: Iterable[float],
    name: str,
    prompt: SystemPrompt | None = None,
    gate: Gate | None = None,
    scope: Scope = "all",
) -> list[Condition]:
    """`steering` at every strength but 0, which is the base run."""
    return [steering(vector, s, name, prompt, gate, scope) for s in strengths if s != 0]


def controls(
    vector: SteeringVector,
    strength: float,
    config: ControlsConfig,
    shuffled: SteeringVector | None,
    seed: int,
    scope: Scope = "all",
) -> list[Condition]:
    """What should not work if the vector's direction means what it is said to mean.

    All have the vector's norm: random directions, the vector turned around, and the vector of
    contrast pairs whose sides were swapped at random.

    Args:
        vector: The real one.
        strength: The factor on it, and so on the controls.
        config: Which controls are wanted.
        shuffled: The vector of shuffled pairs; None if it is not wanted.
        seed: Of the random directions.
        scope: Of all of them.
    """
    norm = vector.norm

    def control(kind: Kind, name: str, array: Float32) -> Condition:
        item = Intervention(vector.layer, array, strength, scope=scope, name=name)
        return Condition(f"{name}, {cell_name(vector.layer, strength)}", None, (item,), kind=kind)

    made = []
    for i in range(config.random):
        # The layer is part of the seed, so that another layer gets other directions.
        draw = np.random.default_rng([seed, vector.layer, i]).standard_normal(vector.hidden_size)
        array = (draw / np.linalg.norm(draw) * norm).astype(np.float32)
        made.append(control("random", f"random {i}", array))
    if config.negated:
        made.append(control("negated", "negated", (-vector).array))
    if shuffled is not None:
        same_norm = shuffled.normalised() * norm
        made.append(control("shuffled", "shuffled", same_norm.array))
    return made
