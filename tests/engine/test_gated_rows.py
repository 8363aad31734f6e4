from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest

from mlx_steer.conditions import Condition, Gate, Intervention
from mlx_steer.engine.complete import complete
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.steered import gate_score
from mlx_steer.engine.steering import steerable
from mlx_steer.model.load import Model
from mlx_steer.words import GateJoin
from tests.helpers.plain import plain_tokens
from tests.helpers.tiny import random_ids, random_vector, tiny_model

TOKENS = 3
SAMPLING = Sampling(max_tokens=TOKENS)
PROMPTS = [random_ids(i, n) for i, n in enumerate([9, 30, 12, 21, 17, 26, 40, 14, 33, 11])]
ACT = Intervention(2, random_vector(0), 1.5)
DIRECTION = random_vector(9, norm=1.0)


def last_state(model: Model, ids: tuple[int, ...], layer: int) -> np.ndarray:
    kept: list[mx.array] = []
    with steerable(model.network, [layer]) as (site,):
        site.record = kept.append
        model.network(mx.array(ids)[None])
    return np.array(kept[0][0, -1])


def middle_of(scores: list[float]) -> float:
    """A threshold in the widest gap of the middle scores, so that rounding decides nothing."""
    middle = sorted(scores)[2:-2]
    width, below = max((b - a, a) for a, b in pairwise(middle))
    assert width > 1e-2
    return below + width / 2


def expected(model: Model, ids: tuple[int, ...], opened: bool) -> tuple[int, ...]:
    return plain_tokens(model, Job("", ids, Condition("", None, (ACT,) if opened else ())), TOKENS)


@pytest.mark.parametrize("layer", [0, 2, 5], ids=["below", "at", "above"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_an_open_gate_gives_the_steered_row_and_a_shut_one_the_base_row(
    family: str, layer: int
) -> None:
    model = tiny_model(family)
    scores = [float(last_state(model, ids, layer) @ DIRECTION) for ids in PROMPTS]
    gate = Gate(layer, DIRECTION, middle_of(scores))
    condition = Condition("gated", None, (ACT,), (gate,))
    jobs = [Job(str(i), ids, condition) for i, ids in enumerate(PROMPTS)]
    done = complete(model, jobs, SAMPLING, 64)
    opened = [score >= gate.threshold for score in scores]
    assert 2 <= sum(opened) <= len(opened) - 2
    assert [c.steered for c in done] == opened
    assert [c.tokens for c in done] == [
        expected(model, ids, o) for ids, o in zip(PROMPTS, opened, strict=True)
    ]
    assert [c.gates[0] for c in done] == pytest.approx(
        [score - gate.threshold for score in scores], abs=2e-4
    )


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_gated_rows_keep_their_tokens_in_a_mixed_batch_of_any_size(family: str) -> None:
    model = tiny_model(family)
    gates = [
        Gate(
            layer,
            DIRECTION,
            middle_of([float(last_state(model, p, layer) @ DIRECTION) for p in PROMPTS]),
        )
        for layer in (1, 4)
    ]
    conditions = [
        Condition("base"),
        Condition("steered", None, (ACT,)),
        Condition("low gate", None, (ACT,), (gates[0],)),
        Condition("high gate", None, (ACT, Intervention(4, random_vector(1), 1.0)), (gates[1],)),
    ]
    jobs = [Job(f"{c.name} {i}", p, c) for i, p in enumerate(PROMPTS[:6]) for c in conditions]
    whole = complete(model, jobs, SAMPLING, 64)
    for batch_size in (1, 7):
        parts = complete(model, jobs, SAMPLING, batch_size)
        assert [(c.tokens, c.steered) for c in parts] == [(c.tokens, c.steered) for c in whole]
        for a, b in zip(parts, whole, strict=True):
            assert a.gates == pytest.approx(b.gates, abs=2e-4)
    for job, completion in zip(jobs, whole, strict=True):
        acts = job.condition.interventions if completion.steered else ()
        plain = Job("", job.ids, Condition("", None, acts))
        assert completion.tokens == plain_tokens(model, plain, TOKENS), job.key


@pytest.mark.parametrize("join", ["any", "all"])
def test_several_gates_join_as_any_or_all(join: GateJoin) -> None:
    model = tiny_model()
    gates = []
    for layer, direction in ((1, DIRECTION), (4, random_vector(10, norm=1.0))):
        scores = [float(last_state(model, ids, layer) @ direction) for ids in PROMPTS]
        gates.append(Gate(layer, direction, middle_of(scores)))
    condition = Condition("gated", None, (ACT,), tuple(gates), join)
    jobs = [Job(str(i), ids, condition) for i, ids in enumerate(PROMPTS)]
    done = complete(model, jobs, SAMPLING, 64)
    single = [
        tuple(float(last_state(model, p, g.layer) @ g.direction) >= g.threshold for g in gates)
        for p in PROMPTS
    ]
    assert len(set(single)) >= 3, "prompts open one gate, the other, both or none"
    rule = any if join == "any" else all
    assert [c.steered for c in done] == [rule(opened) for opened in single]
    for ids, opened, completion in zip(PROMPTS, single, done, strict=True):
        assert completion.tokens == expected(model, ids, rule(opened))
        assert tuple(g >= 0 for g in completion.gates) == opened


def test_a_gate_reads_the_unsteered_prompt_even_above_the_steered_layer() -> None:
    model, ids = tiny_model(), PROMPTS[0]
    plain = float(last_state(model, ids, 5) @ DIRECTION)
    condition = Condition("gated", None, (ACT,), (Gate(5, DIRECTION, -1e6),))
    (done,) = complete(model, [Job("", ids, condition)], SAMPLING)
    assert done.steered
    assert done.gates[0] - 1e6 == pytest.approx(plain, abs=0.1)


def test_a_condition_without_gates_is_always_steered_and_has_no_scores() -> None:
    model = tiny_model()
    (done,) = complete(model, [Job("", PROMPTS[0], Condition("", None, (ACT,)))], SAMPLING)
    assert done.steered and done.gates == ()


def test_a_score_at_the_threshold_opens_the_gate() -> None:
    model = tiny_model()
    scores = [gate_score(model.network, Gate(4, DIRECTION, 0.0), ids) for ids in PROMPTS]
    jobs = [
        Job(str(i), ids, Condition("", None, (ACT,), (Gate(4, DIRECTION, score),)))
        for i, (ids, score) in enumerate(zip(PROMPTS, scores, strict=True))
    ]
    for ids, done in zip(PROMPTS, complete(model, jobs, SAMPLING), strict=True):
        assert (done.gates, done.steered) == ((0.0,), True)
        assert done.tokens == expected(model, ids, True)


def test_a_score_at_the_threshold_is_decided_alike_at_every_batch_size() -> None:
    model = tiny_model()
    jobs = []
    for i, ids in enumerate(PROMPTS):
        (alone,) = complete(
            model, [Job("", ids, Condition("", None, (ACT,), (Gate(4, DIRECTION, 0.0),)))], SAMPLING
        )
        gate = Gate(4, DIRECTION, alone.gates[0])
        jobs.append(Job(str(i), ids, Condition("", None, (ACT,), (gate,))))
    together = complete(model, jobs, SAMPLING, 64)
    one_by_one = [complete(model, [job], SAMPLING)[0] for job in jobs]
    assert [c.steered for c in together] == [c.steered for c in one_by_one]
    assert [c.gates for c in together] == [c.gates for c in one_by_one]
