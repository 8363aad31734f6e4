"""The scheduler: every response as if it were alone, whatever joins, leaves or fails beside it."""

import asyncio

import numpy as np
import pytest

from mlx_steer.conditions import Condition, Intervention, digest
from mlx_steer.engine.complete import complete
from mlx_steer.engine.jobs import Job
from mlx_steer.serve import living_batch
from mlx_steer.serve.limits import Limits
from mlx_steer.serve.problems import Problem
from tests.helpers.serving import PLAIN, ask, hear, hear_all, living, problem_of, varied
from tests.helpers.tiny import random_ids, random_vector, tiny_model

_ALONE = {}


def alone(model, asked):
    """What an ask gives alone; many tests ask the same."""
    key = (model.config["model_type"], asked.ids, digest(asked.condition.key()), asked.sampling)
    if key not in _ALONE:
        job = Job("", asked.ids, asked.condition)
        (_ALONE[key],) = complete(model, [job], asked.sampling)
    return _ALONE[key]


def test_32_streams_under_their_own_vectors_and_gates_give_what_each_gives_alone(model):
    asks = varied(32)
    with living(model) as scheduler:
        together = hear_all(scheduler, asks)
    for asked, heard in zip(asks, together, strict=True):
        expected = alone(model, asked)
        assert heard.ids == list(expected.tokens)
        assert heard.text == expected.text
        assert heard.ended.reason == expected.finish_reason
        assert heard.begun.steered == expected.steered
        assert heard.begun.gates == pytest.approx(expected.gates, abs=1e-4)


def test_requests_that_join_a_running_batch_change_nothing_and_are_not_changed(model):
    asks = varied(12)

    async def one_after_the_other(scheduler):
        tasks = []
        for asked in asks:
            tasks.append(asyncio.create_task(hear(scheduler, asked)))
            await asyncio.sleep(0.01)
        return await asyncio.gather(*tasks)

    with living(model) as scheduler:
        together = asyncio.run(one_after_the_other(scheduler))
    assert [h.ids for h in together] == [list(alone(model, a).tokens) for a in asks]


def test_sampled_tokens_depend_on_the_seed_and_not_on_the_neighbours(model):
    changes = {"temperature": 0.9, "top_p": 0.8, "top_k": 20, "min_p": 0.02}
    asks = varied(10, **changes, seed=5)
    with living(model) as scheduler:
        together = hear_all(scheduler, asks)
        for asked, heard in zip(asks, together, strict=True):
            assert hear_all(scheduler, [asked])[0].ids == heard.ids
        others = hear_all(scheduler, varied(10, **changes, seed=6))
    assert [h.ids for h in others] != [h.ids for h in together]


def test_top_k_of_one_and_a_tiny_top_p_take_the_best_token(model):
    ids = random_ids(1, 12)
    with living(model) as scheduler:
        best, *others = hear_all(
            scheduler,
            [
                ask(ids),
                ask(ids, temperature=2.0, top_k=1),
                ask(ids, temperature=2.0, top_p=1e-6),
                ask(ids, temperature=2.0, min_p=1.0),
            ],
        )
    assert all(other.ids == best.ids for other in others)


@pytest.mark.parametrize("piece", [5, 64])
def test_long_prompts_are_read_in_pieces_with_the_same_result(model, piece):
    asks = [ask(random_ids(3, 90 + i), a.condition, 6) for i, a in enumerate(varied(9))]
    with living(model, Limits(idle_piece=piece, busy_piece=piece)) as scheduler:
        heard = hear_all(scheduler, asks)
    assert [h.ids for h in heard] == [list(alone(model, a).tokens) for a in asks]


def test_the_next_turn_reads_only_what_the_same_plans_had_not_read(model):
    with living(model) as scheduler:
        for asked in varied(10):
            first = hear_all(scheduler, [asked])[0]
            ids = (*asked.ids, *first.ids, *random_ids(77, 20))
            following = ask(ids, asked.condition, 8)
            second = hear_all(scheduler, [following])[0]
            assert second.ids == list(alone(model, following).tokens)
            assert second.begun.cached < len(ids) - 1


def test_a_turn_under_scope_all_is_known_whole_and_other_scopes_know_the_prompt(model):
    ids, more = random_ids(4, 30), random_ids(8, 10)
    with living(model) as scheduler:
        for scope, known in (("all", "response"), ("generated", "prompt"), ("prompt", "prompt")):
            act = Intervention(2, random_vector(hash(scope) % 1000), 0.4, scope=scope)
            condition = Condition(scope, None, (act,))
            first = hear_all(scheduler, [ask(ids, condition)])[0]
            second = hear_all(scheduler, [ask((*ids, *first.ids, *more), condition)])[0]
            if known == "response":
                assert second.begun.cached >= len(ids) + len(first.ids) - 1
            else:
                assert second.begun.cached == len(ids) - 1


def test_a_turn_is_not_reused_under_other_plans(model):
    ids = random_ids(4, 40)
    conditions = [
        PLAIN,
        *(Condition("", None, (Intervention(2, random_vector(1), s),)) for s in (0.4, 0.5)),
        Condition("", None, (Intervention(3, random_vector(1), 0.5),)),
        Condition("", None, (Intervention(3, random_vector(2), 0.5),)),
    ]
    with living(model) as scheduler:
        for condition in conditions:
            heard = hear_all(scheduler, [ask(ids, condition)])[0]
            assert heard.begun.cached == 0
            again = hear_all(scheduler, [ask(ids, condition)])[0]
            assert again.begun.cached > 30
            assert again.ids == heard.ids


def test_choices_of_one_prompt_read_it_once(model):
    ids, condition = random_ids(4, 60), Condition("n")
    asks = [ask(ids, condition, temperature=1.0, seed=i) for i in range(4)]
    with living(model) as scheduler:
        heard = hear_all(scheduler, asks)
        steps = scheduler.load().steps
        single = [hear_all(scheduler, [a])[0] for a in asks]
    assert steps <= 14
    assert [h.ids for h in heard] == [h.ids for h in single]


def test_who_hangs_up_makes_room_and_disturbs_nobody(model):
    asks = varied(16)

    async def some_hang_up(scheduler):
        return await asyncio.gather(
            *(hear(scheduler, a, hang_up=i % 3 if i % 2 else None) for i, a in enumerate(asks))
        )

    with living(model, Limits(rows=4)) as scheduler:
        heard = asyncio.run(some_hang_up(scheduler))
        for i, (asked, one) in enumerate(zip(asks, heard, strict=True)):
            if i % 2 == 0:
                assert one.ids == list(alone(model, asked).tokens)
        hear_all(scheduler, [ask(random_ids(1, 5))])
        load = scheduler.load()
    assert load.running == load.waiting == 0
    assert sum(load.finished.values()) == len(asks) + 1


def test_a_request_that_cannot_be_run_fails_by_itself(model):
    wrong = Condition("wrong", None, (Intervention(1, np.ones(3, np.float32), 1.0),))
    asks = [*varied(5), ask(random_ids(9, 9), wrong), *varied(5)]
    with living(model) as scheduler:
        heard = hear_all(scheduler, asks)
    assert problem_of(heard[5]).status in (400, 500)
    others = [pair for i, pair in enumerate(zip(asks, heard, strict=True)) if i != 5]
    assert all(h.ids == list(alone(model, a).tokens) for a, h in others)


def test_a_step_that_fails_ends_only_the_row_that_fails_alone(model, monkeypatch):
    """A fault is put into the decoder: it fails while a certain prompt is in the batch."""
    asks = varied(9)
    guilty = asks[4].ids

    class Faulty(living_batch.Decoder):
        def step(self, batch):
            rows = [row for row in batch.rows if not row.done]
            if any(row.job.ids == guilty and len(row.tokens) >= 3 for row in rows):
                raise RuntimeError("the device said no")
            return super().step(batch)

    monkeypatch.setattr(living_batch, "Decoder", Faulty)
    with living(model) as scheduler:
        heard = hear_all(scheduler, asks)
        assert scheduler.alive
    assert problem_of(heard[4]).status == 500
    for i, (asked, one) in enumerate(zip(asks, heard, strict=True)):
        if i != 4:
            assert one.ids == list(alone(model, asked).tokens)


def test_what_does_not_fit_into_the_queue_is_told_when_to_come_back(model):
    async def too_many(scheduler):
        tickets = []
        with pytest.raises(Problem) as refused:
            for i in range(20):
                tickets.append(scheduler.submit(ask(random_ids(i, 6), tokens=60)))
        for ticket in tickets:
            ticket.cancel()
        return refused.value

    with living(model, Limits(rows=2, waiting=5)) as scheduler:
        refused = asyncio.run(too_many(scheduler))
    assert refused.status == 429
    assert 1 <= refused.retry_after <= 120


def test_memory_decides_how_many_rows_run_at_once(model):
    weights = sum(v.nbytes for _, v in _leaves(model))
    with living(model, memory=weights + (1 << 19)) as scheduler:
        heard = hear_all(scheduler, [ask(random_ids(i, 20), tokens=20) for i in range(12)])
        assert all(h.ended.problem is None for h in heard)
        assert scheduler.load().steps > 40  # not all at once
        with pytest.raises(Problem, match="does not fit into memory"):
            hear_all(scheduler, [ask(random_ids(1, 20), tokens=100_000)])


def test_a_stopped_scheduler_ends_what_is_under_way_and_takes_nothing_new(model):
    async def stopped_meanwhile(scheduler):
        task = asyncio.create_task(hear(scheduler, ask(random_ids(2, 9), tokens=10_000)))
        await asyncio.sleep(0.1)
        scheduler.stop()
        with pytest.raises(Problem) as refused:
            scheduler.submit(ask(random_ids(1, 9)))
        return await task, refused.value

    with living(model) as scheduler:
        heard, refused = asyncio.run(stopped_meanwhile(scheduler))
    assert refused.status == problem_of(heard).status == 503
    assert not scheduler.alive


def test_log_probabilities_and_projections_are_the_steered_models(model):
    act = Intervention(2, random_vector(1), 0.5)
    ids = random_ids(5, 14)
    watched = ask(ids, Condition("w", None, (act,)), 6, logprobs=3, projections=True)
    base = ask(ids, Condition("b", None, (Intervention(2, random_vector(1), 0.0),)), 6,
               projections=True)  # fmt: skip
    with living(model) as scheduler:
        steered, plain = hear_all(scheduler, [watched, base])
    for token in steered.tokens:
        assert token.logprob == pytest.approx(token.top[0][1]) and token.top[0][0] == token.id
        assert len(token.top) == 3 and token.logprob <= 0
    # Adding half the vector moves the projection by half its norm, at the same position.
    moved = steered.tokens[0].projection - plain.tokens[0].projection
    assert moved == pytest.approx(0.5 * float(np.linalg.norm(act.vector)), rel=1e-3)
    assert plain.tokens[0].logprob is None


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
def test_other_families_give_what_each_row_gives_alone(family):
    model = tiny_model(family)
    asks = varied(9)
    with living(model) as scheduler:
        heard = hear_all(scheduler, asks)
        again = hear_all(scheduler, asks)
    expected = [list(alone(model, a).tokens) for a in asks]
    assert [h.ids for h in heard] == expected == [h.ids for h in again]


def _leaves(model):
    from mlx.utils import tree_flatten

    return tree_flatten(model.network.parameters())
