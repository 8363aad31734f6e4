from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlx_steer.conditions import Intervention
from mlx_steer.engine.caches import join, take_rows
from mlx_steer.engine.guard import forward_of
from mlx_steer.engine.operators import plan_of
from mlx_steer.engine.prefill import LayerPlans, Prefill, common_head, stack_plans
from mlx_steer.engine.row_plan import Plan
from mlx_steer.model.load import Model
from tests.helpers.plain import plain_logits
from tests.helpers.tiny import HIDDEN, LAYERS, random_ids, random_vector, tiny_model

FAMILIES = ["llama", "gemma3_text", "ministral3"]
SEQUENCES = [random_ids(i, n) for i, n in enumerate([14, 3, 21, 9])]
NEXT = 77


@contextmanager
def prefill_of(model: Model) -> Iterator[Prefill]:
    with forward_of(model.network) as forward:
        yield Prefill(forward)


def next_logits(model: Model, caches: list[Any], rows: int) -> mx.array:
    """Logits after one more token, shape (rows, vocabulary): what the caches are good for."""
    return model.network(mx.array([[NEXT]] * rows), cache=caches)[:, -1]


def alone(model: Model, ids: Sequence[int], acts: Sequence[Intervention] = ()) -> mx.array:
    # Prefill is all prompt: the next token is not steered.
    prompt = [Intervention(i.layer, i.vector, i.strength, i.operator, "prompt") for i in acts]
    return plain_logits(model, [*ids, NEXT], prompt, len(ids))[-1]


def close(a: mx.array, b: mx.array) -> bool:
    return bool(mx.abs(a - b).max().item() < 2e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_sequences_run_together_leave_caches_as_each_alone_does(family: str) -> None:
    model = tiny_model(family)
    with prefill_of(model) as prefill:
        done = prefill.run(SEQUENCES)
    assert done.lengths == [len(s) for s in SEQUENCES]
    got = next_logits(model, done.caches, 4)
    for row, ids in enumerate(SEQUENCES):
        assert close(got[row], alone(model, ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_beginning_is_continued_by_every_row(family: str) -> None:
    model, head = tiny_model(family), random_ids(9, 13)
    with prefill_of(model) as prefill:
        start = prefill.run([head])
        done = prefill.run([s[1:] for s in SEQUENCES], start=start.rows([0] * 4))
        again = prefill.run([SEQUENCES[0][1:]], start=start.rows([0]))
    got = next_logits(model, done.caches, 4)
    for row, ids in enumerate(SEQUENCES):
        assert close(got[row], alone(model, head + ids[1:]))
    # Rows taken from it leave the beginning as it is.
    assert close(next_logits(model, again.caches, 1)[0], alone(model, head + SEQUENCES[0][1:]))


def test_hidden_states_are_kept_at_the_layers_asked_for_aligned_at_their_starts() -> None:
    model = tiny_model()
    with prefill_of(model) as prefill:
        done = prefill.run(SEQUENCES, keep=[4, 1, 4])
        assert sorted(done.hidden) == [1, 4]
        assert done.hidden[1].shape == (4, 21, HIDDEN)
        for row, ids in enumerate(SEQUENCES):
            single = prefill.run([ids], keep=[1, 4]).hidden
            for layer in (1, 4):
                assert mx.allclose(done.hidden[layer][row, : len(ids)], single[layer][0], atol=1e-4)


def plans_of(model: Model, *acts: Intervention) -> LayerPlans:
    layers = sorted({i.layer for i in acts})
    return {k: plan_of([i for i in acts if i.layer == k], HIDDEN, model.dtype) for k in layers}


A, B = random_vector(0), random_vector(1)
ROWS: list[tuple[int, tuple[Intervention, ...]]] = [
    (2, (Intervention(2, A, 1.0),)),
    (0, (Intervention(2, B, -1.0), Intervention(4, A, 1.0))),
    (2, (Intervention(2, A, 1.0, "ablate"), Intervention(5, B, 1.0))),
]


@pytest.mark.parametrize("head", [(), random_ids(9, 11)], ids=["no head", "head"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_replayed_under_plans_leave_caches_as_a_steered_run_of_each_alone(
    family: str, head: tuple[int, ...]
) -> None:
    model = tiny_model(family)
    plans = [plans_of(model, *acts) for _, acts in ROWS]
    rests = [s[1:] if head else s for s in SEQUENCES]
    with prefill_of(model) as prefill:
        if head:
            first = prefill.run([head], keep=range(LAYERS))
            heads = [
                prefill.replay(first, [0], [plan], prefill.forward.fresh(1), [head]).caches
                for plan in plans
            ]
            start, of_base = join(heads), first.rows([0] * 4)
        else:
            start, of_base = prefill.forward.fresh(3), None
        base = prefill.run(rests, keep=[2], start=of_base)
        rows = [row for row, _ in ROWS]
        done = prefill.replay(base, rows, plans, start, [rests[row] for row in rows])
        got = next_logits(model, done.caches, 3)
        for i, (row, acts) in enumerate(ROWS):
            assert close(got[i], alone(model, head + rests[row], acts))
        # The base run is left as it was, for the next condition.
        assert close(next_logits(model, base.rows([1]), 1)[0], alone(model, head + rests[1]))


def test_rows_replayed_without_the_longest_sequence_of_the_base_run_are_right() -> None:
    model = tiny_model()
    plans = [plans_of(model, Intervention(2, A, 1.0))]
    with prefill_of(model) as prefill:
        base = prefill.run(SEQUENCES, keep=[2])
        done = prefill.replay(base, [1], plans, prefill.forward.fresh(1), [SEQUENCES[1]])
    got = next_logits(model, done.caches, 1)[0]
    assert close(got, alone(model, SEQUENCES[1], (Intervention(2, A, 1.0),)))


def test_replay_leaves_the_sites_with_nothing_to_do_even_if_it_fails() -> None:
    model = tiny_model()
    unfit: LayerPlans = {2: Plan(mx.zeros((1, 1, HIDDEN - 1)))}
    with prefill_of(model) as prefill:
        base = prefill.run(SEQUENCES[2:3], keep=[2])
        with pytest.raises(ValueError, match="broadcast"):
            prefill.replay(base, [0], [unfit], prefill.forward.fresh(1), SEQUENCES[2:3])
        assert not any(
            s.skip or s.plan or s.record or s.replay is not None for s in prefill.forward.sites
        )


def test_fresh_caches_are_empty_batch_caches_one_for_each_layer() -> None:
    model = tiny_model("gemma3_text")
    with prefill_of(model) as prefill:
        caches = prefill.forward.fresh(3)
    assert len(caches) == LAYERS == len(make_prompt_cache(model.network))
    assert all(c.empty() and c.offset.tolist() == [0, 0, 0] for c in caches)


def test_taken_rows_are_copies_that_do_not_change_their_source() -> None:
    model = tiny_model("gemma3_text")
    with prefill_of(model) as prefill:
        base = prefill.run(SEQUENCES)
        before = next_logits(model, base.rows(range(4)), 4)
        taken = [take_rows(c, [3, 3, 0]) for c in base.caches]
        got = next_logits(model, taken, 3)
        for row, source in enumerate([3, 3, 0]):
            assert close(got[row], before[source])
        for _ in range(3):
            next_logits(model, taken, 3)
        assert mx.array_equal(next_logits(model, base.rows(range(4)), 4), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_joined_batches_keep_their_rows_in_order(family: str) -> None:
    model = tiny_model(family)
    with prefill_of(model) as prefill:
        parts = [
            prefill.run(part).caches for part in (SEQUENCES[:1], SEQUENCES[1:3], SEQUENCES[3:])
        ]
    got = next_logits(model, join(parts), 4)
    for row, ids in enumerate(SEQUENCES):
        assert close(got[row], alone(model, ids))


def test_rows_without_a_plan_at_a_layer_get_one_that_does_nothing() -> None:
    model = tiny_model()
    acting = plans_of(model, Intervention(2, A, 1.0, "ablate"), Intervention(2, B, 0.5))
    stacked = stack_plans([{}, acting, {}], 2)
    hidden = mx.array(np.random.default_rng(0).standard_normal((3, 4, HIDDEN)), mx.float32)
    out = stacked(hidden)
    assert mx.array_equal(out[0], hidden[0]) and mx.array_equal(out[2], hidden[2])
    assert mx.allclose(out[1:2], acting[2](hidden[1:2]), atol=1e-5)


@pytest.mark.parametrize(
    ("sequences", "spare", "head"),
    [
        ([(1, 2, 3, 4, 5), (1, 2, 3, 9, 9)], 2, 3),
        ([(1, 2, 3, 4, 5), (1, 2, 3, 9)], 2, 2),
        ([(1, 2, 3, 4, 5), (1, 2, 3, 4, 5)], 2, 3),
        ([(1, 2, 3, 4, 5)], 2, 3),
        ([(1, 2, 3, 4, 5), (1, 2, 3, 4, 5)], 1, 4),
        ([(5, 2, 3, 4), (1, 2, 3, 4)], 2, 0),
        ([(1, 2, 3, 4, 5, 6), (1,)], 2, 0),
        ([(1, 2, 3, 4, 9), (1, 2, 3, 4, 1), (1, 2, 8, 4, 1)], 2, 2),
    ],
)
def test_the_common_head_leaves_every_sequence_some_tokens_of_its_own(
    sequences: list[tuple[int, ...]], spare: int, head: int
) -> None:
    assert common_head(sequences, spare) == head
    assert common_head(sequences[::-1], spare) == head
