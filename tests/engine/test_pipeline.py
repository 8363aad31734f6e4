"""A step begins before the last one's tokens are read, and what that gets wrong is mended."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest

from mlx_steer.conditions import Condition
from mlx_steer.engine import decode
from mlx_steer.engine.admit import Admission
from mlx_steer.engine.batch import Batch, Row
from mlx_steer.engine.complete import complete
from mlx_steer.engine.decode import Decoder
from mlx_steer.engine.guard import forward_of
from mlx_steer.engine.jobs import Completion, Job, Sampling
from mlx_steer.model.load import Model
from tests.helpers.mixed import mixed_jobs
from tests.helpers.tiny import random_ids, tiny_model

TOKENS = 8


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Steps that are dispatched and evaluations that block, in order."""
    seen: list[str] = []
    dispatch, wait = mx.async_eval, mx.eval

    def dispatched(*arrays: Any) -> None:
        seen.append("dispatch")
        dispatch(*arrays)

    def waited(*arrays: Any) -> None:
        seen.append("wait")
        wait(*arrays)

    monkeypatch.setattr(decode.mx, "async_eval", dispatched)
    monkeypatch.setattr(decode.mx, "eval", waited)
    yield seen


def jobs(count: int) -> list[Job]:
    base = Condition("base")
    return [Job(str(i), random_ids(i, 9), base) for i in range(count)]


def test_each_step_waits_once_and_the_next_one_is_under_way_by_then(order: list[str]) -> None:
    model = tiny_model()
    with forward_of(model.network) as forward:
        batch = Admission(model, forward, Sampling(TOKENS)).admit(jobs(3))
        decoder = Decoder(model, forward)
        order.clear()
        decoder.step(batch)
        assert order == ["dispatch", "dispatch", "wait"]
        order.clear()
        decoder.step(batch)
        assert order == ["dispatch", "wait"]


def test_nothing_is_dispatched_that_no_row_can_need(order: list[str]) -> None:
    model = tiny_model()
    with forward_of(model.network) as forward:
        batch = Admission(model, forward, Sampling(1)).admit(jobs(2))
        order.clear()
        assert len(Decoder(model, forward).step(batch)) == 2
    assert order == ["dispatch", "wait"]


def test_a_batch_that_is_a_step_ahead_is_landed_before_rows_join() -> None:
    model = tiny_model()
    with forward_of(model.network) as forward:
        admission, decoder = Admission(model, forward, Sampling(TOKENS)), Decoder(model, forward)
        batch, other = (admission.admit([job]) for job in jobs(2))
        decoder.step(batch)
        with pytest.raises(ValueError, match="land it first"):
            Batch.joined([batch, other])
        decoder.land(batch)
        assert batch.flight is None and len(batch.rows[0].tokens) == 2
        assert len(Batch.joined([batch, other])) == 2


def waiting(model: Model, work: list[Job], monkeypatch: pytest.MonkeyPatch) -> list[Completion]:
    """Completions of a decoder that is never ahead."""
    original = Decoder.__init__

    def init(self: Decoder, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{**kwargs, "ahead": False})

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "__init__", init)
        return complete(model, work, Sampling(TOKENS), 16)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_step_ahead_gives_the_same_rows(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, work = tiny_model(family, stops=range(20, 30)), mixed_jobs(30)
    assert complete(model, work, Sampling(TOKENS), 16) == waiting(model, work, monkeypatch)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_token_that_is_settled_otherwise_takes_the_step_back(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, work = tiny_model(family), mixed_jobs(12)
    settled = Decoder._settled

    def another(self: Decoder, row: Row, token: int, margin: float) -> int:
        # Every row's third token is decided otherwise than the batch would have it.
        token = settled(self, row, token, margin)
        return (token + 1) % 200 + 50 if len(row.tokens) == 2 else token

    monkeypatch.setattr(Decoder, "_settled", another)
    mended = complete(model, work, Sampling(TOKENS), 16)
    assert mended == waiting(model, work, monkeypatch)
    monkeypatch.setattr(Decoder, "_settled", settled)
    assert mended != complete(model, work, Sampling(TOKENS), 16)
