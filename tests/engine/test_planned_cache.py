"""Plans, and the caches they ride on."""

import copy
import pickle
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache

from mlx_steer.conditions import Intervention
from mlx_steer.engine.operators import plan_of
from mlx_steer.engine.planned_cache import PlannedCache
from mlx_steer.engine.row_plan import Plan
from mlx_steer.engine.steered import steered
from mlx_steer.engine.steering import steerable
from mlx_steer.model.load import Model
from tests.helpers.one_sequence import logits, outputs
from tests.helpers.tiny import (
    HIDDEN,
    random_ids,
    random_vector,
    tiny_model,
    tiny_network,
)

A = random_vector(0)


def a_plan(seed: int, directions: int = 0) -> Plan:
    acts = [Intervention(0, random_vector(10 * seed), 1.0)]
    acts += [
        Intervention(0, random_vector(10 * seed + d), 1.0, "ablate")
        for d in range(1, directions + 1)
    ]
    return plan_of(acts, HIDDEN, mx.float32)


def test_stacked_plans_treat_every_row_as_its_own_plan_does() -> None:
    plans = [a_plan(1), a_plan(2, 1), a_plan(3, 3), a_plan(4)]
    hidden = mx.array(np.random.default_rng(0).standard_normal((4, 5, HIDDEN)), mx.float32)
    alone = mx.concatenate([p(hidden[i : i + 1]) for i, p in enumerate(plans)])
    stacked = Plan.stack(plans)
    assert mx.allclose(stacked(hidden), alone, atol=1e-5)
    chosen = [3, 1, 1, 0]
    assert mx.allclose(
        stacked.rows(chosen)(hidden[mx.array(chosen)]), alone[mx.array(chosen)], atol=1e-5
    )


def test_a_mixture_of_rows_equals_each_row_alone_in_one_forward() -> None:
    network = tiny_network("llama")
    plans = [Plan(mx.zeros((1, 1, HIDDEN))), a_plan(1), a_plan(2, 2), a_plan(3, 1)]
    ids = mx.array([random_ids(i, 12) for i in range(4)])
    with steerable(network, [3]) as (site,):
        site.plan = Plan.stack(plans)
        together = network(ids)
        for i, plan in enumerate(plans):
            site.plan = plan
            assert mx.allclose(network(ids[i : i + 1])[0], together[i], atol=1e-3)
        site.plan = None
        assert mx.allclose(network(ids[:1])[0], together[0], atol=1e-3)


def planned(seed: int, length: int) -> PlannedCache:
    cache = KVCache()
    keys = mx.random.normal((1, 2, length, 4), key=mx.random.key(seed))
    cache.update_and_fetch(keys, keys + 1)
    return PlannedCache(cache, a_plan(seed, seed % 2))


def shift(plan: Plan) -> np.ndarray:
    return np.array(plan.shift[:, 0])


def test_a_plan_follows_its_row_through_merge_extend_filter_and_extract() -> None:
    one, two, three = planned(1, 5), planned(2, 3), planned(3, 7)
    batch = PlannedCache.merge([one, two])
    assert np.array_equal(shift(batch.plan), np.concatenate([shift(one.plan), shift(two.plan)]))
    batch.extend(PlannedCache.merge([three]))
    batch.filter(mx.array([2, 0]))
    wanted = np.concatenate([shift(three.plan), shift(one.plan)])
    assert np.array_equal(shift(batch.plan), wanted)
    assert np.array_equal(shift(batch.extract(1).plan), shift(one.plan))
    batch.filter([1])
    row = batch.extract(0)
    assert np.array_equal(shift(row.plan), shift(one.plan))
    assert mx.array_equal(row.inner.keys[..., :5, :], one.inner.keys[..., :5, :])
    assert row.offset == 5


def test_a_planned_cache_is_its_inner_cache_to_everyone_else() -> None:
    cache = planned(1, 5)
    assert cache.offset == cache.inner.offset == 5
    cache.offset = 4
    assert cache.inner.offset == 4
    assert cache.make_mask(3, return_array=True, window_size=None).shape == (3, 7)
    with pytest.raises(AttributeError):
        cache.no_such_thing  # noqa: B018


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_a_planned_cache_can_be_copied(copied: Callable[[PlannedCache], PlannedCache]) -> None:
    cache = planned(1, 5)
    twin = copied(cache)
    assert twin is not cache
    assert np.array_equal(shift(twin.plan), shift(cache.plan))
    assert twin.offset == 5


def test_looking_for_its_own_fields_before_they_are_set_does_not_recurse() -> None:
    bare = PlannedCache.__new__(PlannedCache)
    with pytest.raises(AttributeError):
        bare.inner  # noqa: B018
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        pickle.loads(pickle.dumps(bare)).offset  # noqa: B018


def test_skip_replay_and_record_do_what_they_say() -> None:
    network = tiny_network("llama")
    base = outputs(network)
    with steerable(network) as sites:
        kept: list[mx.array] = []
        for site in sites[:2]:
            site.skip = True
        sites[2].replay = base[2][None]
        sites[-1].record = kept.append
        replayed = logits(network)
    assert mx.array_equal(kept[0][0], base[-1])
    assert mx.array_equal(replayed, logits(network))


def test_of_a_model_and_its_network_either_may_be_given() -> None:
    model: Model = tiny_model()
    with steered(model, A, layer=2):
        one = logits(model.network)
    with steered(model.network, A, layer=2):
        assert mx.array_equal(one, logits(model.network))
