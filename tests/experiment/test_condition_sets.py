from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from mlx_steer.conditions import Condition, Gate
from mlx_steer.config import ControlsConfig
from mlx_steer.errors import ConfigError
from mlx_steer.experiment.condition_sets import (
    SystemPrompt,
    at_strengths,
    controls,
    resolve_system_prompt,
    steering,
)
from mlx_steer.vectors import SteeringVector
from tests.helpers.tiny import HIDDEN, random_vector

VECTOR = SteeringVector(3, random_vector(0, norm=12.0), 40.0)
SHUFFLED = SteeringVector(3, random_vector(1, norm=2.0), 40.0)
PROMPT = SystemPrompt("detailed", "Decline when the request is harmful.")
GATE = Gate(1, random_vector(5, norm=1.0), 0.5)
WANTED = ControlsConfig(random=3)


def acts(condition: Condition) -> list[tuple[int, float]]:
    return [(item.layer, item.strength) for item in condition.interventions]


def arrays_of(seed: int, layer: int = 3) -> dict[str, np.ndarray]:
    vector = SteeringVector(layer, VECTOR.array, 40.0)
    made = controls([vector], 1.5, WANTED, [SHUFFLED], seed)
    return {item.name: item.vector for c in made for item in c.interventions}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_controls_differ_from_the_vector_in_direction_and_in_nothing_else() -> None:
    made = controls([VECTOR], 1.5, WANTED, [SHUFFLED], seed=0)
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


def test_controls_of_a_band_are_as_large_layer_by_layer_and_all_together() -> None:
    band = [
        SteeringVector(3 + i, VECTOR.array + random_vector(20 + i, 4.0), 40.0) for i in (0, 1, 2)
    ]
    shuffled = [SteeringVector(v.layer, random_vector(30 + v.layer, 2.0), 40.0) for v in band]
    made = controls(band, 0.5, WANTED, shuffled, seed=0)
    assert [c.name for c in made] == [
        f"{name}, layers 3-5, strength 0.5"
        for name in ("random 0", "random 1", "random 2", "negated", "shuffled")
    ]
    together = np.linalg.norm(sum(v.array for v in band))
    for condition in made:
        assert acts(condition) == [(3, 0.5), (4, 0.5), (5, 0.5)]
        arrays = [item.vector for item in condition.interventions]
        norms = [np.linalg.norm(array) for array in arrays]
        assert norms == pytest.approx([v.norm for v in band], rel=1e-5), condition.name
        if condition.kind != "shuffled":
            assert np.linalg.norm(sum(arrays)) == pytest.approx(together, rel=1e-5)
        if condition.kind == "random":
            assert all(abs(cosine(a, v.array)) < 0.5 for a, v in zip(arrays, band, strict=True))
    (plain,) = at_strengths(band, [0.0, 1.0], "refusal")
    assert plain.name == "layers 3-5, strength 1" and acts(plain) == [(3, 1.0), (4, 1.0), (5, 1.0)]


def test_random_controls_follow_from_the_seed_and_the_layer() -> None:
    again, other_seed, other_layer = arrays_of(0), arrays_of(1), arrays_of(0, layer=4)
    for name in ("random 0", "random 1", "random 2"):
        assert np.array_equal(arrays_of(0)[name], again[name])
        for other in (other_seed, other_layer):
            assert abs(cosine(again[name], other[name])) < 0.5


def test_controls_are_those_that_are_asked_for() -> None:
    none = ControlsConfig(random=0, negated=False, shuffled=False)
    assert controls([VECTOR], 1.0, none, [], seed=0) == []


def test_a_vector_is_added_at_every_strength_but_none_at_zero() -> None:
    made = at_strengths([VECTOR], [0.0, 1.0, -0.5], "refusal")
    assert [(c.name, c.kind, acts(c)) for c in made] == [
        ("layer 3, strength 1", "steering", [(3, 1.0)]),
        ("layer 3, strength -0.5", "steering", [(3, -0.5)]),
    ]
    assert all(np.array_equal(c.interventions[0].vector, VECTOR.array) for c in made)


@pytest.mark.parametrize("gate", [None, GATE])
@pytest.mark.parametrize("prompt", [None, PROMPT])
def test_prompts_and_gates_stand_around_the_same_intervention(
    prompt: SystemPrompt | None, gate: Gate | None
) -> None:
    plain, made = (
        steering([VECTOR], 1.0, "refusal"),
        steering([VECTOR], 1.0, "refusal", prompt, gate, "answer"),
    )
    kinds = {(0, 0): "steering", (0, 1): "gated", (1, 0): "prompt+steering", (1, 1): "prompt+gated"}
    assert made.kind == kinds[prompt is not None, gate is not None]
    assert made.system_prompt == (prompt.text if prompt else None)
    assert made.gates == ((gate,) if gate else ())
    assert acts(made) == acts(plain) and made.interventions[0].scope == "answer"
    name = f"{'prompt detailed + ' if prompt else ''}{'gated ' if gate else ''}layer 3, strength 1"
    assert made.name == name


def test_a_system_prompt_is_a_name_of_the_behavior_or_a_text() -> None:
    assert resolve_system_prompt({PROMPT.name: PROMPT.text}, "detailed") == PROMPT
    name, text = resolve_system_prompt({}, "Be careful, please.")
    assert text == "Be careful, please." and name.startswith("own ")
    with pytest.raises(ConfigError, match="no system prompt 'detialed'; it has detailed"):
        resolve_system_prompt({PROMPT.name: PROMPT.text}, "detialed")
