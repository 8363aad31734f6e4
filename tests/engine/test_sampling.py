from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
from scipy.stats import chisquare

from mlx_steer.conditions import Condition, Intervention
from mlx_steer.engine.complete import complete
from mlx_steer.engine.jobs import Job, Sampling
from tests.helpers.mixed import mixed_jobs
from tests.helpers.plain import plain_logits
from tests.helpers.tiny import random_vector, tiny_model

WARM = Sampling(max_tokens=6, temperature=0.9, seed=3)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_sampled_row_is_the_same_at_every_batch_size_and_in_any_order(family: str) -> None:
    model, jobs = tiny_model(family, stops=range(10, 30)), mixed_jobs(20)
    together = complete(model, jobs, WARM, 64)
    assert complete(model, jobs, WARM, 64) == together
    assert complete(model, jobs, WARM, 7) == together
    assert complete(model, jobs[::-1], WARM, 1)[::-1] == together


def test_seed_and_key_decide_the_draw() -> None:
    model, jobs = tiny_model(), mixed_jobs(20)
    one = complete(model, jobs, WARM)
    other = complete(model, jobs, Sampling(6, 0.9, seed=4))
    greedy = complete(model, jobs, Sampling(6))
    renamed = complete(model, [Job(j.key + "'", j.ids, j.condition) for j in jobs], WARM)
    for runs in (other, greedy, renamed):
        assert sum(a.tokens != b.tokens for a, b in zip(one, runs, strict=True)) >= 15


def test_a_very_low_temperature_takes_the_best_token() -> None:
    model, jobs = tiny_model(), mixed_jobs(20)
    cold = complete(model, jobs, Sampling(4, temperature=1e-4))
    assert [c.tokens for c in cold] == [c.tokens for c in complete(model, jobs, Sampling(4))]


def test_every_step_draws_anew() -> None:
    done = complete(tiny_model(), mixed_jobs(5), Sampling(12, temperature=1e4))
    assert all(len(set(c.tokens)) > len(c.tokens) // 2 for c in done)
    assert sum(len(c.tokens) for c in done) > 40


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_sampled_tokens_are_as_frequent_as_softmax_says(temperature: float) -> None:
    model = tiny_model(vocab_size=12)
    condition = Condition("steered", None, (Intervention(2, random_vector(0), 0.5),))
    ids, draws = (1, 7, 9, 11, 8, 10), 500
    jobs = [Job(str(i), ids, condition) for i in range(draws)]
    done = complete(model, jobs, Sampling(1, temperature), 128)
    counts = Counter(c.tokens[0] if c.tokens else None for c in done)
    logits = plain_logits(model, ids, condition.interventions, len(ids) - 1)[-1]
    expected = draws * np.array(mx.softmax(logits / temperature)).astype(np.float64)
    ends = sorted(model.chat.stop_ids)
    kept = [i for i in range(12) if i not in ends]
    seen = np.array([counts[i] for i in kept] + [counts[None]], dtype=np.float64)
    wanted = np.array([expected[i] for i in kept] + [expected[ends].sum()])
    rare = wanted < 5
    groups = [(s, w) for s, w, r in zip(seen, wanted, rare, strict=True) if not r]
    groups.append((seen[rare].sum(), wanted[rare].sum()))
    assert len(groups) >= 4
    observed, theory = (np.array(g) for g in zip(*groups, strict=True))
    assert chisquare(observed, theory * observed.sum() / theory.sum()).pvalue > 0.001
