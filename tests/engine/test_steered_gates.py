"""Gates inside `with steered(...)`: decided from the prompt or while generating."""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlx_steer.conditions import Condition, Gate, Intervention
from mlx_steer.engine.complete import complete
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.steered import gate_score, steered
from mlx_steer.engine.steering import steerable
from mlx_steer.errors import ModelError, VectorError
from mlx_steer.words import Scope
from tests.helpers.one_sequence import IDS, logits, outputs
from tests.helpers.tiny import (
    HIDDEN,
    random_ids,
    random_vector,
    tiny_model,
    tiny_network,
)

A = random_vector(0)


DIRECTION = random_vector(9, norm=1.0)
PROMPTS = [random_ids(i, 12 + 3 * i) for i in range(5)]


def score(network: nn.Module, ids: Sequence[int], layer: int) -> float:
    return float(np.array(outputs(network, ids)[layer][-1]) @ DIRECTION)


@pytest.mark.parametrize("layer", [0, 2, 5], ids=["below", "at", "above"])
@pytest.mark.parametrize("scope", ["all", "generated"])
def test_a_gate_decided_from_the_prompt_steers_fully_or_not_at_all(
    layer: int, scope: Scope
) -> None:
    network = tiny_network("llama")
    base = logits(network)
    with steered(network, A, layer=2, scope=scope):
        wanted = logits(network)
    value = score(network, IDS, layer)
    for threshold, expected in ((value - 0.01, wanted), (value + 0.01, base)):
        gate = Gate(layer, DIRECTION, threshold)
        assert gate_score(network, gate, IDS) == pytest.approx(value - threshold, abs=1e-3)
        with steered(network, A, layer=2, scope=scope, gate=gate, prompt=IDS):
            assert mx.array_equal(logits(network), expected)
    assert mx.array_equal(logits(network), base)


@pytest.mark.parametrize("layer", [0, 2], ids=["below", "at"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_gate_decided_while_generating_gives_each_prompt_its_gated_completion(
    family: str, layer: int
) -> None:
    model = tiny_model(family)
    values = sorted(score(model.network, ids, layer) for ids in PROMPTS)
    gate = Gate(layer, DIRECTION, (values[1] + values[2]) / 2)
    act = Intervention(2, A, 2.0, scope="generated")
    condition = Condition("gated", None, (act,), (gate,))
    jobs = [Job(str(i), ids, condition) for i, ids in enumerate(PROMPTS)]
    wanted = complete(model, jobs, Sampling(5))
    assert sum(c.steered for c in wanted) == 3
    # One context for all prompts: the gate is decided anew for each.
    with steered(model, [act], gate=gate):
        for job, completion in zip(jobs, wanted, strict=True):
            tokens = [
                r.token
                for r in mlx_lm.stream_generate(
                    model.network, model.tokenizer, list(job.ids), max_tokens=5
                )
            ]
            assert tuple(tokens) == completion.tokens, (job.key, completion.steered)


@pytest.mark.parametrize("given", [True, False], ids=["from the prompt", "while generating"])
def test_a_gate_opens_at_the_threshold_itself(given: bool) -> None:
    network = tiny_network("llama")
    # One value of the hidden state: a score without rounding, so that it can be met exactly.
    direction = np.zeros(HIDDEN, np.float32)
    direction[5] = 1.0
    read: list[mx.array] = []

    def last_logits() -> mx.array:
        cache = make_prompt_cache(network)
        network(mx.array(IDS[:-1])[None], cache=cache)
        return network(mx.array(IDS[-1:])[None], cache=cache)[0, -1]

    with steerable(network, [1]) as (site,):
        site.record = read.append
        base = network(mx.array(IDS)[None])[0, -1] if given else last_logits()
    act, value = Intervention(2, A, 1.0, scope="generated"), float(read[-1][0, -1, 5].item())
    for threshold, opened in ((value, True), (np.nextafter(np.float32(value), np.inf), False)):
        gate, prompt = Gate(1, direction, float(threshold)), IDS if given else None
        with steered(network, [act], gate=gate, prompt=prompt):
            assert mx.allclose(last_logits(), base, atol=1e-3).item() != opened


@pytest.mark.parametrize(("layer", "scope"), [(3, "generated"), (0, "all"), (0, "prompt")])
def test_a_gate_that_cannot_be_decided_while_generating_asks_for_the_prompt(
    layer: int, scope: Scope
) -> None:
    gate = Gate(layer, DIRECTION, 0.0)
    with (
        pytest.raises(VectorError, match=r"give steered\(\.\.\., prompt=token_ids\)"),
        steered(tiny_network("llama"), A, layer=2, scope=scope, gate=gate),
    ):
        pass


def test_a_gate_at_a_layer_the_model_lacks_is_refused() -> None:
    gate = Gate(6, DIRECTION, 0.0)
    with (
        pytest.raises(ModelError, match="no layer 6"),
        steered(tiny_network("llama"), A, layer=2, gate=gate, prompt=IDS),
    ):
        pass
