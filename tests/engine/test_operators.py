"""The operators: what adding, ablating and clamping do to a block's output."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_steer.conditions import Intervention
from mlx_steer.engine.operators import plan_of
from mlx_steer.engine.row_plan import Plan
from mlx_steer.engine.steered import steered
from mlx_steer.errors import SteerError
from tests.helpers.one_sequence import logits, outputs
from tests.helpers.tiny import (
    HIDDEN,
    random_vector,
    tiny_network,
)

A, B, C = (random_vector(i) for i in range(3))


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_ablate_takes_the_projection_out_and_leaves_the_rest() -> None:
    network = tiny_network("llama")
    before = np.array(outputs(network)[2])
    with steered(network, A, layer=2, operator="ablate"):
        after = np.array(outputs(network)[2])
    assert np.abs(before @ unit(A)).max() > 2
    assert np.abs(after @ unit(A)).max() < 1e-5
    assert np.allclose(after, before - np.outer(before @ unit(A), unit(A)), atol=1e-5)


def test_ablate_with_part_a_half_halves_the_projection() -> None:
    network = tiny_network("llama")
    before = np.array(outputs(network)[2])
    with steered(network, A, layer=2, operator="ablate", strength=0.5):
        after = np.array(outputs(network)[2])
    assert np.allclose(after @ unit(A), 0.5 * before @ unit(A), atol=1e-5)


def test_clamp_leaves_the_value_on_the_unit_direction() -> None:
    network = tiny_network("llama")
    before = np.array(outputs(network)[2])
    for value in (5.0, -2.0, 0.0):
        with steered(network, A, layer=2, operator="clamp", strength=value):
            after = np.array(outputs(network)[2])
        assert np.allclose(after @ unit(A), value, atol=1e-5)
        rest = before - np.outer(before @ unit(A), unit(A))
        assert np.allclose(after - value * unit(A), rest, atol=1e-5)


def test_ablating_two_directions_leaves_neither_even_if_they_are_not_orthogonal() -> None:
    network = tiny_network("llama")
    near = A + 0.3 * B
    with steered(network, [Intervention(2, v, 1.0, "ablate") for v in (A, near, 2 * A)]):
        after = np.array(outputs(network)[2])
    assert np.abs(after @ unit(A)).max() < 1e-4
    assert np.abs(after @ unit(near)).max() < 1e-4
    assert np.abs(after @ unit(C)).max() > 1


def test_a_vector_is_added_to_what_ablation_leaves() -> None:
    network = tiny_network("llama")
    with steered(network, [Intervention(2, A, 0.5), Intervention(2, A, 1.0, "ablate")]):
        after = np.array(outputs(network)[2])
    assert np.allclose(after @ unit(A), 0.5 * np.linalg.norm(A), atol=1e-5)


@pytest.mark.parametrize(
    "act",
    [
        Intervention(2, A, -0.5, "ablate"),
        Intervention(2, 0 * A, 2.0, "clamp"),
        Intervention(2, A, float("nan")),
    ],
    ids=["ablate a negative part", "clamp a vector of zeros", "strength nan"],
)
def test_an_impossible_intervention_is_refused(act: Intervention) -> None:
    network = tiny_network("llama")
    with np.errstate(invalid="ignore"), pytest.raises(SteerError), steered(network, [act]):
        logits(network)


def carried_out(*acts: Intervention) -> tuple[np.ndarray, np.ndarray]:
    """Some states before and after one layer's plan."""
    before = np.stack([A, B, C, A + B - C])
    plan = plan_of(acts, HIDDEN, mx.float32)
    return before, np.array(plan(mx.array(before)[None]))[0]


NEAR = A + 0.3 * B


@pytest.mark.parametrize("turned", [False, True], ids=["part first", "part last"])
def test_ablating_in_full_beside_a_part_of_a_near_direction_leaves_no_projection(
    turned: bool,
) -> None:
    acts = [Intervention(2, A, 0.5, "ablate"), Intervention(2, NEAR, 1.0, "ablate")]
    before, after = carried_out(*(acts[::-1] if turned else acts))
    assert np.abs(after @ unit(NEAR)).max() < 1e-4
    # Of the other direction, half of what the full ablation leaves of it is taken.
    left = before - np.outer(before @ unit(NEAR), unit(NEAR))
    assert np.allclose(after @ unit(A), 0.5 * left @ unit(A), atol=1e-4)
    assert np.abs(after @ unit(A)).max() > 0.1


def test_projections_on_near_directions_each_end_at_their_own_value() -> None:
    acts = [
        Intervention(2, NEAR, 1.0, "ablate"),
        Intervention(2, A, 5.0, "clamp"),
        Intervention(2, B, -2.0, "clamp"),
        Intervention(2, C, 0.5, "ablate"),
    ]
    for order in (acts[:2], acts[1::-1], acts[1:3], acts[:1] + acts[3:], acts[1:], acts[::-1][:3]):
        before, after = carried_out(*order)
        wanted = {"clamp": lambda act: act.strength, "ablate": lambda _: 0.0}
        for act in order:
            if act.operator == "clamp" or act.strength == 1.0:
                at = after @ unit(act.vector)
                assert np.allclose(at, wanted[act.operator](act), atol=1e-4)
        # What is orthogonal to all of them is left alone.
        rest = np.linalg.qr(np.stack([a.vector for a in order]).T)[0]
        assert np.allclose(
            after - after @ rest @ rest.T, before - before @ rest @ rest.T, atol=1e-4
        )


def test_of_two_values_for_one_direction_the_later_counts() -> None:
    for acts, value in (
        ([Intervention(2, A, 5.0, "clamp"), Intervention(2, 3 * A, -1.0, "clamp")], -1.0),
        ([Intervention(2, A, 5.0, "clamp"), Intervention(2, A, 1.0, "ablate")], 0.0),
        ([Intervention(2, A, 1.0, "ablate"), Intervention(2, -A, -5.0, "clamp")], 5.0),
    ):
        before, after = carried_out(*acts)
        assert np.allclose(after @ unit(A), value, atol=1e-5)
        assert np.allclose(
            after - np.outer(after @ unit(A), unit(A)),
            before - np.outer(before @ unit(A), unit(A)),
            atol=1e-5,
        )


def test_only_adding_needs_no_projection_and_stacks_without_one() -> None:
    plan = plan_of([Intervention(2, A, 0.5), Intervention(2, B, 1.0)], HIDDEN, mx.float32)
    assert plan.basis is None
    assert Plan.stack([plan, plan]).basis is None
