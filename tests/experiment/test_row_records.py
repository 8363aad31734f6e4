"""What is written of a condition is what is read of it."""

import pytest

from mlx_steer.conditions import Condition, Gate, Intervention
from mlx_steer.experiment.row_records import condition_record
from mlx_steer.metrics import ConditionRecord
from mlx_steer.vectors import SteeringVectorSet
from mlx_steer.vectors.vector import SteeringVector
from mlx_steer.words import GateJoin
from tests.helpers.tiny import random_vector
from tests.vectors.test_vectors import metadata

VECTORS = SteeringVectorSet([SteeringVector(2, random_vector(0, size=8), 10.0)], metadata())
GATES = (Gate(1, random_vector(1, size=8), 0.5, "a"), Gate(2, random_vector(2, size=8), 0.1, "b"))
ACTS = (Intervention(2, random_vector(0, size=8), 1.0),)


@pytest.mark.parametrize(("join", "opened"), [("any", True), ("all", False)])
def test_gates_that_disagree_are_read_as_they_were_joined(join: GateJoin, opened: bool) -> None:
    condition = Condition("gated", None, ACTS, GATES, gate_join=join)
    written = condition_record(condition, VECTORS, {})
    written["gate_scores"] = {"a": {"p": 0.25}, "b": {"p": -0.25}}
    written["rows"] = {"p": "key"}
    read = ConditionRecord.model_validate(written)
    assert read.gate_join == join
    assert read.opened("p") is opened


def test_no_field_of_a_condition_is_left_to_its_default() -> None:
    written = condition_record(Condition("base"), VECTORS, {})
    assert written.keys() == ConditionRecord.model_fields.keys()
