import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mlx_steer.conditions import Condition, Gate, Intervention
from mlx_steer.engine.complete import complete, completions
from mlx_steer.engine.jobs import Job, Sampling, waves
from mlx_steer.engine.limits import PREFILL_TOKENS
from mlx_steer.errors import GenerationError, ModelError, SteerError, VectorError
from tests.helpers.mixed import mixed_jobs
from tests.helpers.tiny import CONTEXT, HIDDEN, random_ids, random_vector, tiny_model

BASE = Condition("base")
VECTOR = random_vector(0)
SHORT = np.ones(HIDDEN - 1, np.float32)


def job(key: str = "k", length: int = 9, condition: Condition = BASE) -> Job:
    return Job(key, random_ids(0, length), condition)


def acting(layer: int, vector: np.ndarray) -> Condition:
    return Condition("odd", None, (Intervention(layer, vector, 1.0),))


def gated(layer: int, direction: np.ndarray) -> Condition:
    return Condition("odd", None, (), (Gate(layer, direction, 0.0),))


REFUSED: list[tuple[str, list[Job], Sampling, int, type[SteerError], str]] = [
    (
        "no tokens",
        [Job("k", (), BASE)],
        Sampling(),
        8,
        GenerationError,
        "prompt of k has no tokens",
    ),
    (
        "too long",
        [job(length=CONTEXT - 9)],
        Sampling(max_tokens=10),
        8,
        GenerationError,
        f"the prompt of k has {CONTEXT - 9} tokens",
    ),
    ("same key", [job(), job()], Sampling(), 8, GenerationError, "two jobs have the key 'k'"),
    ("batch size", [job()], Sampling(), 0, GenerationError, "batch size must be at least 1, not 0"),
    ("max_tokens", [job()], Sampling(0), 8, GenerationError, "max_tokens must be at least 1"),
    ("cold", [job()], Sampling(3, -0.1), 8, GenerationError, "temperature must be 0 or more"),
    (
        "nan",
        [job()],
        Sampling(3, float("nan")),
        8,
        GenerationError,
        "temperature must be 0 or more",
    ),
    (
        "vector size",
        [job(condition=acting(2, SHORT))],
        Sampling(),
        8,
        VectorError,
        "condition 'odd' has a vector of 63 values at layer 2, but the hidden state of tiny/llama "
        "has 64",
    ),
    ("gate size", [job(condition=gated(2, SHORT))], Sampling(), 8, VectorError, "of 63 values"),
    (
        "no such layer",
        [job(condition=acting(6, VECTOR))],
        Sampling(),
        8,
        ModelError,
        "tiny/llama has layers 0 to 5, and no layer 6",
    ),
    (
        "gate layer",
        [job(condition=gated(9, random_vector(0)))],
        Sampling(),
        8,
        ModelError,
        "no layer 9",
    ),
]


@pytest.mark.parametrize(
    ("jobs", "sampling", "batch_size", "error", "message"),
    [case[1:] for case in REFUSED],
    ids=[case[0] for case in REFUSED],
)
def test_what_cannot_be_run_is_refused_in_a_sentence_before_anything_runs(
    jobs: list[Job], sampling: Sampling, batch_size: int, error: type[SteerError], message: str
) -> None:
    model = tiny_model()
    steps: list[int] = []
    running = completions(model, [job("fine"), *jobs], sampling, batch_size, steps.append)
    with pytest.raises(error, match=re.escape(message)):
        next(running)
    assert steps == []


def test_a_prompt_that_just_fits_the_context_is_run() -> None:
    model = tiny_model()
    (done,) = complete(model, [job(length=CONTEXT - 2)], Sampling(2))
    assert len(done.tokens) == 2
    unlimited = replace(model, context=None)
    (more,) = complete(unlimited, [job(length=CONTEXT - 2)], Sampling(4))
    assert more.tokens[:2] == done.tokens


def test_a_negative_layer_counts_from_the_end() -> None:
    conditions = {k: acting(k, 2 * VECTOR) for k in (5, -1, 0)}
    jobs = [job(str(k), 9, condition) for k, condition in conditions.items()]
    last, minus_one, first = complete(tiny_model(), jobs, Sampling(4))
    assert minus_one.tokens == last.tokens != first.tokens


def test_a_negative_layer_of_a_gate_counts_from_the_end() -> None:
    jobs = [
        job(
            str(k), 9, Condition("", None, acting(2, VECTOR).interventions, (Gate(k, VECTOR, 0.0),))
        )
        for k in (5, -1)
    ]
    last, minus_one = complete(tiny_model(), jobs, Sampling(4))
    assert (minus_one.gates, minus_one.steered) == (last.gates, last.steered)


def test_no_jobs_give_no_completions() -> None:
    assert complete(tiny_model(), [], Sampling()) == []


WAVE_CHECKS: dict[str, Callable[[list[list[Job]], int], bool]] = {
    "no wave is larger than the batch": lambda w, size: max(map(len, w)) <= size,
    "no wave is empty": lambda w, size: min(map(len, w)) >= 1,
    "a wave has one system prompt": lambda w, size: all(
        len({j.condition.system_prompt for j in wave}) == 1 for wave in w
    ),
}


@pytest.mark.parametrize("check", WAVE_CHECKS.values(), ids=WAVE_CHECKS)
@pytest.mark.parametrize("batch_size", [1, 2, 7, 16, 64, 500])
def test_waves(batch_size: int, check: Callable[[list[list[Job]], int], bool]) -> None:
    assert check(waves(mixed_jobs(45), batch_size), batch_size)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_every_job_is_in_one_wave_and_the_order_of_jobs_does_not_matter(batch_size: int) -> None:
    jobs = mixed_jobs(45)
    ordered = [j.key for wave in waves(jobs, batch_size) for j in wave]
    assert sorted(ordered) == sorted(j.key for j in jobs)
    assert ordered == [j.key for wave in waves(jobs[::-1], batch_size) for j in wave]


def test_the_conditions_of_a_prompt_share_a_wave_if_the_batch_holds_them() -> None:
    conditions = [Condition(str(i)) for i in range(5)]
    jobs = [Job(f"{i} {c.name}", random_ids(i, 9), c) for c in conditions for i in range(7)]
    for wave in waves(jobs, 16):
        assert all(sum(j.ids == other.ids for other in wave) == 5 for j in wave)


def test_long_prompts_are_admitted_few_at_a_time() -> None:
    length = PREFILL_TOKENS // 3
    jobs = [Job(str(i), random_ids(i, length), BASE) for i in range(10)]
    assert max(sum(len(j.ids) for j in wave) for wave in waves(jobs, 400)) <= PREFILL_TOKENS
