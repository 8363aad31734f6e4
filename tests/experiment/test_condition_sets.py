from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from mlx_steer.conditions import Condition, Gate
from mlx_steer.errors import ConfigError
from mlx_steer.experiment.condition_sets import (
    BASE,
    comparison,
    controls,
    gated_comparison,
    gated_sweep,
    resolve_system_prompt,
    sweep,
)
from mlx_steer.vectors import SteeringVector, SteeringVectorSet
from tests.golden.test_golden import golden_set
from tests.helpers.tiny import HIDDEN, random_vector

VECTOR = SteeringVector(3, random_vector(0, norm=12.0), 40.0)
SHUFFLED = SteeringVector(3, random_vector(1, norm=2.0), 40.0)
PROMPT = ("detailed", "Decline when the request is harmful.")
GATE, GATE_OF_PROMPT = (Gate(1, random_vector(seed, norm=1.0), 0.5) for seed in (5, 6))


def acts(condition: Condition) -> list[tuple[int, float]]:
    return [(item.layer, item.strength) for item in condition.interventions]


def arrays_of(seed: int, layer: int = 3) -> dict[str, np.ndarray]:
    vector = SteeringVector(layer, VECTOR.array, 40.0)
    made = controls(vector, 1.5, random=3, negated=True, shuffled=SHUFFLED, seed=seed)
    return {item.name: item.vector for c in made for item in c.interventions}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_controls_differ_from_the_vector_in_direction_and_in_nothing_else() -> None:
    made = controls(VECTOR, 1.5, random=3, negated=True, shuffled=SHUFFLED, seed=0)
    assert [c.kind for c in made] == ["random"] * 3 + ["negated", "shuffled"]
    for condition in made:
        assert acts(condition) == [(3, 1.5)]
        (item,) = condition.interventions
        assert (item.operator, item.scope) == ("add", "all")
        assert (condition.system_prompt, condition.gates) == (None, ())
        assert item.vector.dtype == np.float32 and item.vector.shape == (HIDDEN,)
        assert np.linalg.norm(item.vector) == pytest.approx(VECTOR.norm, rel=1e-5), condition.name
    arrays = arrays_of(0)
    assert np.array_equal(arrays["negated"], -VECTOR.array)
    assert cosine(arrays["shuffled"], SHUFFLED.array) == pytest.approx(1.0)
    for a, b in combinations([VECTOR.array, *(arrays[f"random {i}"] for i in range(3))], 2):
        assert abs(cosine(a, b)) < 0.5


def test_random_controls_follow_from_the_seed_and_the_layer() -> None:
    again, other_seed, other_layer = arrays_of(0), arrays_of(1), arrays_of(0, layer=4)
    for name in ("random 0", "random 1", "random 2"):
        assert np.array_equal(arrays_of(0)[name], again[name])
        for other in (other_seed, other_layer):
            assert abs(cosine(again[name], other[name])) < 0.5


def test_controls_are_those_that_are_asked_for() -> None:
    made = controls(VECTOR, 1.0, random=0, negated=False, shuffled=None, seed=0)
    assert made == []


def test_the_comparison_has_the_prompt_the_vector_and_both_at_every_strength() -> None:
    made = comparison(VECTOR, [0.5, 1.0], "refusal", PROMPT)
    assert [(c.kind, c.system_prompt, acts(c)) for c in made] == [
        ("base", None, []),
        ("prompt", PROMPT[1], []),
        ("steering", None, [(3, 0.5)]),
        ("steering", None, [(3, 1.0)]),
        ("prompt+steering", PROMPT[1], [(3, 0.5)]),
        ("prompt+steering", PROMPT[1], [(3, 1.0)]),
    ]
    assert len({c.name for c in made}) == len(made)
    vectors = [item.vector for c in made for item in c.interventions]
    assert all(np.array_equal(vector, VECTOR.array) for vector in vectors)
    alone = comparison(VECTOR, [1.0], "refusal", None)
    assert [c.kind for c in alone] == ["base", "steering"]


def test_the_sweep_has_every_layer_at_every_strength_but_none_at_zero() -> None:
    vectors: SteeringVectorSet = golden_set()
    made = sweep(vectors, [2, 11], [0.0, 1.0, -0.5], [PROMPT])
    assert made[0] is BASE
    assert [(c.kind, c.system_prompt, acts(c)) for c in made[1:]] == [
        ("prompt", PROMPT[1], []),
        ("steering", None, [(2, 1.0)]),
        ("steering", None, [(2, -0.5)]),
        ("steering", None, [(11, 1.0)]),
        ("steering", None, [(11, -0.5)]),
    ]
    for condition in made[2:]:
        (item,) = condition.interventions
        assert np.array_equal(item.vector, vectors[item.layer].array)


def test_gated_conditions_are_the_plain_ones_behind_their_gate() -> None:
    plain = [c for c in comparison(VECTOR, [0.5, 1.0], "refusal", PROMPT) if c.interventions]
    made = gated_comparison(VECTOR, [0.5, 1.0], "refusal", GATE, (PROMPT, GATE_OF_PROMPT))
    assert [c.kind for c in made] == ["gated"] * 2 + ["prompt+gated"] * 2
    # Under a system prompt the hidden states are others, so that gate is another.
    assert [c.gates for c in made] == [(GATE,)] * 2 + [(GATE_OF_PROMPT,)] * 2
    for one, other in zip(plain, made, strict=True):
        without = Condition("", other.system_prompt, other.interventions)
        assert one.key() == without.key()
    swept = gated_sweep(golden_set(), [2, 10], [0.0, 1.0], GATE)
    assert [(c.kind, acts(c), c.gates) for c in swept] == [
        ("gated", [(2, 1.0)], (GATE,)),
        ("gated", [(10, 1.0)], (GATE,)),
    ]


def test_a_system_prompt_is_a_name_of_the_behavior_or_a_text() -> None:
    assert resolve_system_prompt(dict([PROMPT]), "detailed") == PROMPT
    name, text = resolve_system_prompt({}, "Be careful, please.")
    assert text == "Be careful, please." and name.startswith("own ")
    with pytest.raises(ConfigError, match="no system prompt 'detialed'; it has detailed"):
        resolve_system_prompt(dict([PROMPT]), "detialed")


def test_every_condition_that_steers_has_the_scope_that_is_asked_for() -> None:
    made = [
        *comparison(VECTOR, [1.0], "refusal", PROMPT, "answer"),
        *sweep(golden_set(), [2], [1.0], [PROMPT], "answer"),
        *gated_sweep(golden_set(), [2], [1.0], GATE, "answer"),
        *gated_comparison(VECTOR, [1.0], "refusal", GATE, (PROMPT, GATE_OF_PROMPT), "answer"),
        *controls(VECTOR, 1.5, random=2, negated=True, shuffled=SHUFFLED, seed=0, scope="answer"),
    ]
    scopes = [item.scope for c in made for item in c.interventions]
    assert scopes == ["answer"] * 10
