"""The conditions that experiments are made of. Plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mlx_steer.bands import LayerOrBand, band_of, layer_words
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


def cell_name(layer: LayerOrBand, strength: float) -> str:
    """What the condition that steers a layer or a band at one strength is called."""
    return f"{layer_words(layer)}, strength {strength:g}"


def steering(
    vectors: Sequence[SteeringVector],
    strength: float,
    name: str,
    prompt: SystemPrompt | None = None,
    gate: Gate | None = None,
    scope: Scope = "all",
) -> Condition:
    """Each vector added at its layer.

    Args:
        vectors: One, or those of a band.
        strength: The factor on each.
        name: What it is called, for example the behavior.
        prompt: A system prompt that goes with it.
        gate: If given, the vectors act only on prompts that open it. It reads the layer it was
            fitted at, of the prompt without steering, whatever layers are steered.
        scope: The positions they act on.
    """
    label = f"{'gated ' if gate else ''}{cell_name(_place(vectors), strength)}"
    kind: Kind = "gated" if gate else "steering"
    if prompt:
        kind = "prompt+gated" if gate else "prompt+steering"
    return Condition(
        name=f"prompt {prompt.name} + {label}" if prompt else label,
        system_prompt=prompt.text if prompt else None,
        interventions=tuple(
            Intervention(v.layer, v.array, strength, scope=scope, name=name) for v in vectors
        ),
        gates=(gate,) if gate else (),
        kind=kind,
    )


def at_strengths(
    vectors: Sequence[SteeringVector],
    strengths: Iterable[float],
    name: str,
    prompt: SystemPrompt | None = None,
    gate: Gate | None = None,
    scope: Scope = "all",
) -> list[Condition]:
    """`steering` at every strength but 0, which is the base run."""
    return [steering(vectors, s, name, prompt, gate, scope) for s in strengths if s != 0]


def controls(
    vectors: Sequence[SteeringVector],
    strength: float,
    config: ControlsConfig,
    shuffled: Sequence[SteeringVector],
    seed: int,
    scope: Scope = "all",
) -> list[Condition]:
    """What should not work if the vectors' direction means what it is said to mean.

    All have the vectors' norms: random directions, the vectors turned around, and the vectors of
    contrast pairs whose sides were swapped at random.

    Args:
        vectors: The real ones: one, or those of a band.
        strength: The factor on each, and so on the controls.
        config: Which controls are wanted.
        shuffled: The vectors of shuffled pairs, layer by layer; none if they are not wanted.
        seed: Of the random directions.
        scope: Of all of them.
    """

    def control(kind: Kind, name: str, arrays: Iterable[Float32]) -> Condition:
        items = tuple(
            Intervention(v.layer, array, strength, scope=scope, name=name)
            for v, array in zip(vectors, arrays, strict=True)
        )
        return Condition(f"{name}, {cell_name(_place(vectors), strength)}", None, items, kind=kind)

    made = [
        control("random", f"random {i}", _random_like(vectors, seed, i))
        for i in range(config.random)
    ]
    if config.negated:
        made.append(control("negated", "negated", [(-v).array for v in vectors]))
    if shuffled:
        same_norms = (s.normalised() * v.norm for s, v in zip(shuffled, vectors, strict=True))
        made.append(control("shuffled", "shuffled", [v.array for v in same_norms]))
    return made


def _random_like(vectors: Sequence[SteeringVector], seed: int, number: int) -> list[Float32]:
    """Random directions with the vectors' norms and, within a band, their angles to one another.

    Neighbouring layers' vectors point much the same way, so that they add up over the band;
    independent directions would not, and so small a dose would be no fair control.
    """
    # The layers are part of the seed, so that others get other directions.
    rng = np.random.default_rng([seed, *(v.layer for v in vectors), number])
    drawn = rng.standard_normal((len(vectors), vectors[0].hidden_size))
    if len(vectors) > 1:
        # What the vectors are in an orthonormal basis of theirs, in a random one.
        coordinates = np.linalg.qr(np.array([v.array for v in vectors], np.float64).T).R.T
        drawn = coordinates @ np.linalg.qr(drawn.T).Q.T
    return [
        (row / np.linalg.norm(row) * v.norm).astype(np.float32)
        for row, v in zip(drawn, vectors, strict=True)
    ]


def _place(vectors: Sequence[SteeringVector]) -> LayerOrBand:
    return band_of([v.layer for v in vectors])
