"""Every model type of mlx-lm is right in all the package does, or refused when it is loaded."""

import json
from importlib import metadata

import pytest

from mlx_steer.model.families import APART
from tests.zoo.configs import TYPES
from tests.zoo.examine import examine
from tests.zoo.write_results import RESULTS

# One of each way of being odd: state, windows, shared keys and values, streams, chunks, tuples,
# calls by keyword, caches without merge, no hidden_size, blocks that are not called.
ODD = "deepseek_v41 gemma3n gemma4_text gpt2 gptj iquestloopcoder llama4 nemotron_h qwen3_5"


def check(model_type: str) -> None:
    found = examine(model_type)
    assert not found.wrong
    known = json.loads(RESULTS.read_text())
    # Older releases of mlx-lm may need slower ways; none may be wrong.
    if metadata.version("mlx-lm") == known["mlx_lm"]:
        assert found.verdict == known["types"][model_type]
        if not found.refused:
            assert found.traits["together"] == APART.get(model_type, "padded")


@pytest.mark.parametrize("model_type", ODD.split())
def test_a_model_type_of_an_odd_kind_is_right_or_refused(model_type: str) -> None:
    check(model_type)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in TYPES if name not in ODD.split()])
def test_a_model_type_is_right_or_refused(model_type: str) -> None:
    check(model_type)


def test_at_most_a_few_types_are_refused_and_none_is_wrong() -> None:
    types = json.loads(RESULTS.read_text())["types"]
    assert sorted(types) == sorted(TYPES)
    assert sum(verdict.startswith("right") for verdict in types.values()) >= 115
    assert not any(verdict.startswith("wrong") for verdict in types.values())
