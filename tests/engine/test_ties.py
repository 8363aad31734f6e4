from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from mlx_steer.conditions import Condition
from mlx_steer.engine import decode
from mlx_steer.engine.batch import Row
from mlx_steer.engine.complete import complete
from mlx_steer.engine.decode import TIE, Decoder, best_two
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.model.load import Model
from tests.helpers.mixed import mixed_jobs
from tests.helpers.plain import plain_logits, plain_tokens
from tests.helpers.tiny import SPECIAL, random_ids, tiny_model

TOKENS = 4
SAMPLING = Sampling(max_tokens=TOKENS)


def with_twins(model: Model, gap: float) -> Model:
    """Give tokens 2k and 2k + 1 nearly the same head: every step's best two are close together."""
    head = np.array(model.network.lm_head.weight)
    # Its norm times that of the last hidden state, about 8, is the spread of the gaps.
    noise = np.random.default_rng(0).standard_normal(head[::2].shape) * gap / 8
    head[1::2] = head[::2] + noise
    head[: len(SPECIAL) + 1] = 0.0  # these would end a response
    model.network.lm_head.weight = mx.array(head)
    return model


@pytest.fixture
def model() -> Model:
    return with_twins(tiny_model(), gap=3e-6)


@pytest.fixture
def looked_at_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    keys: list[str] = []
    original = Decoder.alone

    def alone(self: Decoder, row: Row) -> tuple[int, float]:
        keys.append(row.job.key)
        return original(self, row)

    monkeypatch.setattr(Decoder, "alone", alone)
    yield keys


def test_near_ties_are_decided_as_each_row_alone_decides_them(model: Model) -> None:
    jobs = mixed_jobs(15)
    alone = [complete(model, [job], SAMPLING)[0] for job in jobs]
    for batch_size in (1, 7, 64):
        # Tokens and margins: a completion is equal as a whole.
        assert complete(model, jobs, SAMPLING, batch_size) == alone
    assert all(c.margin is not None and 0 <= c.margin < TIE for c in alone)
    for job, completion in zip(jobs, alone, strict=True):
        if job.condition.name in ("base", "strength 0", "first layer", "layer 3", "generated"):
            assert completion.tokens == plain_tokens(model, job, TOKENS)


def test_without_tie_handling_a_batch_and_its_rows_alone_would_differ(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = mixed_jobs(15)
    alone = [complete(model, [job], SAMPLING)[0].tokens for job in jobs]
    monkeypatch.setattr(decode, "_SUSPECT", 0.0)
    batched = [c.tokens for c in complete(model, jobs, SAMPLING, 64)]
    assert sum(b != a for b, a in zip(batched, alone, strict=True)) >= 3


def test_every_step_within_the_limit_is_looked_at_alone_and_no_other(
    model: Model, looked_at_alone: list[str]
) -> None:
    jobs = mixed_jobs(10)
    complete(model, jobs, SAMPLING, 64)
    assert sorted(looked_at_alone) == sorted(j.key for j in jobs for _ in range(TOKENS))
    looked_at_alone.clear()
    clear = with_twins(tiny_model(), gap=3e-6)
    clear.network.lm_head.weight[1::2] = 0.0
    plain = [plain_tokens(clear, job, TOKENS) for job in jobs]
    done = complete(clear, jobs, SAMPLING, 64)
    assert [c.tokens for c in done] == plain
    assert {c.key for c in done if c.margin is not None} <= set(looked_at_alone)
    assert len(looked_at_alone) <= 2


def test_the_margin_is_the_smallest_gap_of_the_row_run_alone(model: Model) -> None:
    jobs = [Job(str(i), random_ids(i, 9 + i), Condition("base")) for i in range(6)]
    for job, done in zip(jobs, complete(model, jobs, SAMPLING, 64), strict=True):
        gaps = []
        for n in range(TOKENS):
            logits = plain_logits(model, [*job.ids, *done.tokens[:n]], (), 0)[-1]
            second, first = mx.sort(logits)[-2:].tolist()
            gaps.append(first - second)
        assert done.margin == pytest.approx(min(gaps), abs=1e-6)


def test_a_gap_above_the_limit_leaves_no_margin() -> None:
    jobs = [Job(str(i), random_ids(i, 9 + i), Condition("base")) for i in range(24)]
    model = with_twins(tiny_model(), gap=0.005)
    done = complete(model, jobs, Sampling(1), 64)
    for job, completion in zip(jobs, done, strict=True):
        second, first = mx.sort(plain_logits(model, job.ids, (), 0)[-1])[-2:].tolist()
        assert (completion.margin is None) == (first - second >= TIE)
    assert len({c.margin is None for c in done}) == 2, "some gaps are above it and some below"


def test_an_exact_tie_goes_to_the_lower_token_in_every_batch(model: Model) -> None:
    head = np.array(model.network.lm_head.weight)
    head[1::2] = head[::2]
    model.network.lm_head.weight = mx.array(head)
    jobs = mixed_jobs(12)
    for batch_size in (1, 12):
        done = complete(model, jobs, SAMPLING, batch_size)
        assert all(token % 2 == 0 for c in done for token in c.tokens)
        assert all(c.margin == 0.0 for c in done)


def test_in_bfloat16_every_row_keeps_its_smallest_margin_and_none_is_run_alone(
    looked_at_alone: list[str],
) -> None:
    model = tiny_model(dtype="bfloat16")
    done = complete(model, mixed_jobs(12), SAMPLING, 64)
    assert all(c.margin is not None and c.margin >= 0 for c in done)
    assert looked_at_alone == []


def test_best_two_gives_the_best_column_and_its_lead() -> None:
    scores = mx.array([[1.0, 4.0, 3.5], [2.0, -1.0, 2.0], [-mx.inf, -2.0, -9.0]])
    best, margins = best_two(scores)
    assert best.tolist() == [1, 0, 1]
    assert margins.tolist() == [0.5, 0.0, 7.0]
