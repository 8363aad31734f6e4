"""Every model type of mlx-lm is right in all the package does, or refused when it is loaded."""

import json
from importlib import metadata

import pytest

from mlx_steer.model.families import APART
from tests.zoo.configs import TYPES
from tests.zoo.examine import examine
from tests.zoo.write_results import RESULTS

# A refused one, one without hidden_size, one whose blocks are not called: odd, and quick.
QUICK = ("deepseek_v41", "gpt2", "iquestloopcoder")


@pytest.mark.parametrize(
    "model_type",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in TYPES],
)
def test_a_model_type_is_right_or_refused(model_type: str) -> None:
    found = examine(model_type)
    assert not found.wrong
    known = json.loads(RESULTS.read_text())
    # Older releases of mlx-lm may need slower ways; none may be wrong.
    if metadata.version("mlx-lm") == known["mlx_lm"]:
        assert found.verdict == known["types"][model_type]
        if not found.refused:
            assert found.traits["together"] == APART.get(model_type, "padded")


def test_at_most_a_few_types_are_refused_and_none_is_wrong() -> None:
    types = json.loads(RESULTS.read_text())["types"]
    assert sorted(types) == sorted(TYPES)
    assert sum(verdict.startswith("right") for verdict in types.values()) >= 115
    assert not any(verdict.startswith("wrong") for verdict in types.values())
