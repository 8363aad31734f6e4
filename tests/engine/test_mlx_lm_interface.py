"""What this package relies on in mlx-lm; if one of these fails, an mlx-lm release changed it."""

import inspect
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import (
    BatchKVCache,
    BatchRotatingKVCache,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from mlx_steer.conditions import Condition, Intervention
from mlx_steer.engine.complete import complete
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.operators import plan_of
from mlx_steer.engine.planned_cache import PlannedCache
from mlx_steer.engine.row_plan import Plan
from mlx_steer.engine.steered import steered
from mlx_steer.engine.steering import steerable
from mlx_steer.model.load import Model
from tests.helpers.tiny import FAMILIES, HIDDEN, random_ids, random_vector, tiny_model, tiny_network

generation = import_module("mlx_lm.generate")  # `mlx_lm.generate` is a function as well
BatchGenerator = generation.BatchGenerator


def test_the_installed_mlx_lm_is_one_the_package_admits() -> None:
    major, minor = metadata.version("mlx-lm").split(".")[:2]
    assert (major, minor) == ("0", "32")


# --- names and signatures -------------------------------------------------------------------------


def test_insert_takes_prompts_max_tokens_and_a_cache_list_for_each_row() -> None:
    parameters = list(inspect.signature(BatchGenerator.insert).parameters)
    assert parameters[:4] == ["self", "prompts", "max_tokens", "caches"]


def test_the_functions_that_are_used_exist() -> None:
    utils = import_module("mlx_lm.utils")
    assert {"lazy", "return_config"} <= set(inspect.signature(utils.load).parameters)
    for name in ("load_adapters", "dequantize_model"):
        assert callable(getattr(utils, name))
    convert = import_module("mlx_lm.convert").convert
    assert {"quantize", "q_bits"} <= set(inspect.signature(convert).parameters)
    assert callable(generation.wired_limit)
    step = inspect.signature(generation.generate_step).parameters
    assert step["prefill_step_size"].default == 2048


@pytest.mark.parametrize("kind", [BatchKVCache, BatchRotatingKVCache])
def test_batch_caches_have_the_methods_that_move_rows(kind: type[Any]) -> None:
    assert list(inspect.signature(kind.prepare).parameters)[1:] == [
        "left_padding",
        "lengths",
        "right_padding",
    ]
    assert list(inspect.signature(kind.finalize).parameters) == ["self"]
    assert len(inspect.signature(kind.filter).parameters) == 2
    assert len(inspect.signature(kind.extend).parameters) == 2
    assert len(inspect.signature(kind.extract).parameters) == 2
    assert len(inspect.signature(kind.merge).parameters) == 1
    for name in ("empty", "state", "update_and_fetch", "make_mask", "offset"):
        assert hasattr(kind([0]), name) if kind is BatchKVCache else hasattr(kind(8, [0]), name)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_supported_family_uses_these_caches_and_passes_them_by_name_or_last(
    family: str,
) -> None:
    network = tiny_network(family)
    caches = make_prompt_cache(network)
    assert {type(c) for c in caches} <= {KVCache, RotatingKVCache}
    plan = Plan(mx.ones((1, 1, HIDDEN)))
    ids = mx.array(random_ids(1, 12))[None]
    with steerable(network):
        planned = network(ids, cache=[PlannedCache(c, plan) for c in caches])
        with steered(network, np.ones(HIDDEN, np.float32), layer=range(len(network.layers))):
            assert mx.array_equal(planned, network(ids, cache=make_prompt_cache(network)))


# --- batch caches keep rows as they were ----------------------------------------------------------


def filled(kind: type[Any], seed: int, length: int) -> Any:
    cache = KVCache() if kind is KVCache else RotatingKVCache(max_size=8)
    if length:
        keys = mx.random.normal((1, 2, length, 4), key=mx.random.key(seed))
        cache.update_and_fetch(keys, -keys)
    return cache


def content(cache: Any) -> mx.array:
    """A single row's last keys in the order of time; of a rotating cache, those of its window."""
    if isinstance(cache, RotatingKVCache):
        return cache._temporal_order(cache.keys)[..., -7:, :]
    return cache.keys[..., : cache.offset, :][..., -7:, :]


@pytest.mark.parametrize("kind", [KVCache, RotatingKVCache])
def test_rows_come_out_of_merge_extend_and_filter_as_they_went_in(kind: type[Any]) -> None:
    rows = [filled(kind, seed, length) for seed, length in enumerate([3, 7, 5, 12, 20])]
    before = [content(row) for row in rows]
    batch = rows[0].merge(rows[:2])
    batch.extend(rows[2].merge(rows[2:]))
    batch.filter(mx.array([4, 1, 1, 3]))
    for position, row in enumerate([4, 1, 1, 3]):
        assert mx.array_equal(content(batch.extract(position)), before[row])
        assert batch.extract(position).offset == rows[row].offset
    batch.filter([1])
    assert mx.array_equal(content(batch.extract(0)), before[1])
    assert not batch.empty()


@pytest.mark.parametrize("kind", [KVCache, RotatingKVCache])
def test_empty_caches_merge_to_an_empty_batch_that_can_be_filtered_and_extended(
    kind: type[Any],
) -> None:
    fresh = filled(kind, 0, 0)
    batch = fresh.merge([fresh] * 3)
    assert batch.empty()
    batch.filter([0, 2])
    batch.extend(fresh.merge([fresh]))
    keys = mx.ones((3, 2, 4, 4))
    batch.update_and_fetch(keys, keys)
    assert batch.extract(2).offset == 4


@pytest.mark.parametrize("kind", [KVCache, RotatingKVCache])
def test_right_padding_is_rolled_away_by_finalize(kind: type[Any]) -> None:
    lengths, longest = [6, 2, 5], 6
    start = [filled(kind, seed, length) for seed, length in enumerate([4, 3, 9])]
    added = mx.random.normal((3, 2, longest, 4), key=mx.random.key(9))
    batch = start[0].merge(start)
    batch.prepare(lengths=lengths, right_padding=[longest - n for n in lengths])
    batch.update_and_fetch(added, -added)
    batch.finalize()
    for i, (row, length) in enumerate(zip(start, lengths, strict=True)):
        row.update_and_fetch(added[i : i + 1, :, :length], -added[i : i + 1, :, :length])
        out = batch.extract(i)
        assert out.offset == row.offset
        # Rows with padding keep less of the past than the window, but never miss what is seen.
        kept = min(content(out).shape[2], content(row).shape[2])
        assert kept >= min(row.offset, 7)
        assert mx.array_equal(content(out)[..., -kept:, :], content(row)[..., -kept:, :])


# --- plans in mlx-lm's continuous batching --------------------------------------------------------

LAYERS_STEERED = (1, 4)
NO_PLAN = plan_of([], HIDDEN, mx.float32)


def planned_caches(model: Model, acts: Sequence[Intervention]) -> list[Any]:
    caches = make_prompt_cache(model.network)
    for layer in LAYERS_STEERED:
        here = [i for i in acts if i.layer == layer]
        plan = plan_of(here, HIDDEN, mx.float32) if here else NO_PLAN
        caches[layer] = PlannedCache(caches[layer], plan)
    return caches


def rows_of(model: Model) -> list[tuple[Job, int]]:
    act = Intervention
    a, b = random_vector(0), random_vector(1)
    acts = [
        (),
        (act(1, a, 1.0),),
        (act(4, b, 1.0),),
        (act(1, a, -0.5), act(4, b, 0.8)),
        (act(4, b, 1.0, "ablate"), act(4, a, 0.7)),
    ]
    return [
        (Job(f"{i}", random_ids(i, 9 + 5 * (i % 4)), Condition("", None, acts[i % 5])), 3 + i % 5)
        for i in range(14)
    ]


@pytest.mark.parametrize(
    "family",
    [
        "llama",
        "gemma3_text",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3", "gemma2", "mixtral")),
    ],
)
def test_rows_with_plans_on_their_caches_run_in_batch_generator_as_they_run_alone(
    family: str,
) -> None:
    model = tiny_model(family)
    rows = rows_of(model)
    tokens: dict[int, list[int]] = {}
    key_of: dict[int, str] = {}

    def collect(responses: Sequence[Any]) -> None:
        for response in responses:
            tokens.setdefault(response.uid, []).append(response.token)

    with steerable(model.network):
        # Five rows at most decode at a time; some are inserted while others decode or have ended.
        generator = BatchGenerator(model.network, completion_batch_size=5, prefill_batch_size=3)
        for part in (rows[:6], rows[6:7], rows[7:]):
            uids = generator.insert(
                [list(job.ids) for job, _ in part],
                max_tokens=[limit for _, limit in part],
                caches=[planned_caches(model, job.condition.interventions) for job, _ in part],
            )
            key_of.update(zip(uids, (job.key for job, _ in part), strict=True))
            for _ in range(5):
                collect(generator.next_generated())
        while responses := generator.next_generated():
            collect(responses)
        generator.close()
    got = {key_of[uid]: tuple(row) for uid, row in tokens.items()}
    assert len(got) == len(rows)
    for job, limit in rows:
        (alone,) = complete(model, [job], Sampling(limit))
        assert got[job.key] == alone.tokens, job.key
    base = {
        job.key: complete(model, [Job("", job.ids, Condition("base"))], Sampling(limit))[0].tokens
        for job, limit in rows
    }
    changed = [job.key for job, _ in rows if got[job.key] != base[job.key]]
    assert len(changed) >= 8
    assert not {job.key for job, _ in rows if not job.condition.interventions} & set(changed)


def test_a_rows_cache_taken_from_the_generator_carries_its_plan_on() -> None:
    model = tiny_model()
    act = Intervention(4, random_vector(1), 1.0)
    ids = random_ids(3, 14)
    (wanted,) = complete(model, [Job("", ids, Condition("", None, (act,)))], Sampling(8))
    with steerable(model.network):
        generator = BatchGenerator(model.network)
        first, other = generator.insert(
            [list(ids), list(random_ids(4, 20))],
            max_tokens=[3, 9],
            caches=[planned_caches(model, [act]), planned_caches(model, [])],
        )
        taken: list[int] = []
        cache: list[Any] | None = None
        while cache is None:
            for response in generator.next_generated():
                if response.uid == first:
                    taken.append(response.token)
                    cache = response.prompt_cache
        generator.remove([other])
        # The cache holds the three tokens already; the fourth is read next.
        taken.append(wanted.tokens[3])
        (again,) = generator.insert([taken[-1:]], max_tokens=[4], caches=[cache])
        while responses := generator.next_generated():
            taken += [r.token for r in responses if r.uid == again]
        generator.close()
    assert tuple(taken) == wanted.tokens
