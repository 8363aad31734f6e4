import hashlib
import struct
import sys
from dataclasses import replace

import numpy as np
import pytest

from mlx_steer.conditions import Condition, Gate, Intervention, array_sha256, digest

VECTOR = np.arange(4, dtype=np.float32)
ACT = Intervention(3, VECTOR, 1.5, name="refusal")
GATE = Gate(2, VECTOR, 0.5, name="harm")
CONDITION = Condition("a", "Be brief.", (ACT,), (GATE,))


def test_the_name_kind_and_names_of_vectors_do_not_determine_a_condition() -> None:
    renamed = Condition(
        "b", "Be brief.", (replace(ACT, name="x"),), (replace(GATE, name="y"),), kind="control"
    )
    assert digest(renamed.key()) == digest(CONDITION.key())


OTHERS = {
    "system prompt": replace(CONDITION, system_prompt="Be long."),
    "no system prompt": replace(CONDITION, system_prompt=None),
    "layer": replace(CONDITION, interventions=(replace(ACT, layer=4),)),
    "vector": replace(CONDITION, interventions=(replace(ACT, vector=VECTOR + 1),)),
    "strength": replace(CONDITION, interventions=(replace(ACT, strength=1.0),)),
    "operator": replace(CONDITION, interventions=(replace(ACT, operator="ablate"),)),
    "scope": replace(CONDITION, interventions=(replace(ACT, scope="prompt"),)),
    "twice": replace(CONDITION, interventions=(ACT, ACT)),
    "no gate": replace(CONDITION, gates=()),
    "gate layer": replace(CONDITION, gates=(replace(GATE, layer=1),)),
    "gate direction": replace(CONDITION, gates=(replace(GATE, direction=-VECTOR),)),
    "gate threshold": replace(CONDITION, gates=(replace(GATE, threshold=0.25),)),
    "gate join": replace(CONDITION, gate_join="any"),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_whatever_changes_the_effect_changes_the_key(other: Condition) -> None:
    assert digest(other.key()) != digest(CONDITION.key())


def test_every_two_different_conditions_have_different_keys() -> None:
    keys = [digest(c.key()) for c in (CONDITION, *OTHERS.values())]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("operator", "strength", "acts"),
    [
        ("add", 0.0, False),
        ("add", -0.0, False),
        ("add", 0.1, True),
        ("ablate", 0.0, False),
        ("ablate", 1.0, True),
        ("clamp", 0.0, True),
    ],
)
def test_clamping_to_zero_acts_and_other_operators_of_strength_zero_do_not(
    operator, strength: float, acts: bool
) -> None:
    assert Intervention(0, VECTOR, strength, operator).acts is acts


def test_what_does_not_act_has_the_key_of_the_base() -> None:
    idle = replace(ACT, strength=0.0)
    assert Condition("x", None, (idle,), (GATE,)).key() == Condition("base").key()
    both = Condition("x", None, (idle, ACT))
    assert both.key() == Condition("y", None, (ACT,)).key()


def test_the_hash_of_an_array_is_that_of_its_little_endian_float32_bytes() -> None:
    wanted = hashlib.sha256(struct.pack("<4f", 0, 1, 2, 3)).hexdigest()
    assert array_sha256(VECTOR) == wanted
    assert array_sha256(VECTOR.astype(">f4")) == wanted
    assert array_sha256(np.repeat(VECTOR, 2)[::2]) == wanted
    assert array_sha256(VECTOR.astype(np.float64)) == wanted  # type: ignore[arg-type]


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [1, "é"]}) == digest({"b": [1, "é"], "a": 1})
    text = '{"a":1,"b":[1,"é"]}'
    assert digest({"b": [1, "é"], "a": 1}) == hashlib.sha256(text.encode()).hexdigest()


def test_conditions_do_not_need_mlx() -> None:
    import subprocess

    code = "import sys, mlx_steer.conditions; assert 'mlx.core' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


GOLDEN = {"all": "2c17d5b77341", "generated": "23769ce2d7a3", "prompt": "05c1cea0a9a0"}


def test_the_keys_of_conditions_stay_as_they_were_when_scopes_were_added() -> None:
    keys = {
        scope: digest(Condition("x", "Be brief.", (replace(ACT, scope=scope),), (GATE,)).key())[:12]
        for scope in ("all", "generated", "prompt")
    }
    assert keys == GOLDEN


def test_thinking_and_answer_are_parts_of_the_generated_positions() -> None:
    stages = ("prompt", "thinking", "answer")
    found = {
        scope: [stage for stage in stages if replace(ACT, scope=scope).acts_on(stage)]
        for scope in ("all", "generated", *stages)
    }
    assert found == {
        "all": list(stages),
        "generated": ["thinking", "answer"],
        **{stage: [stage] for stage in stages},
    }
    parts = [s for s in found if Condition("x", None, (replace(ACT, scope=s),)).parts_response]
    assert parts == ["thinking", "answer"]
    idle = replace(ACT, scope="answer", strength=0.0)
    assert not Condition("x", None, (idle,)).parts_response
