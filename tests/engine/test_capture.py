from collections.abc import Sequence
from itertools import product

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models import llama
from numpy.typing import NDArray

from mlx_steer.engine import capture
from mlx_steer.engine.capture import TOKENS_PER_PASS, batches, response_states
from mlx_steer.engine.prefill import common_head
from mlx_steer.model.load import Model
from tests.helpers.tiny import FAMILIES, LAYERS, random_ids, tiny_model

HEAD = random_ids(50, 12)
PROMPTS = [HEAD + random_ids(i, n)[1:] for i, n in enumerate([9, 30, 2, 17, 30])]
RESPONSES = [
    [random_ids(100 + 2 * i, n)[1:], random_ids(101 + 2 * i, m)[1:]]
    for i, (n, m) in enumerate([(6, 9), (2, 14), (12, 5), (4, 4), (9, 2)])
]


def plain_states(model: Model, ids: Sequence[int], layers: Sequence[int]) -> dict[int, NDArray]:
    """Hidden states of one sequence by running the blocks one after the other; no cache."""
    kept: dict[int, NDArray] = {}
    blocks = model.network.model.layers
    originals = list(blocks)

    class Watching:
        def __init__(self, number: int) -> None:
            self.number = number

        def __getattr__(self, name: str) -> object:
            return getattr(originals[self.number], name)

        def __call__(self, *args, **kwargs):
            out = originals[self.number](*args, **kwargs)
            kept[self.number] = np.array(out[0].astype(mx.float32))
            return out

    blocks[:] = [Watching(i) for i in range(len(originals))]
    try:
        mx.eval(model.network(mx.array(ids)[None]))
    finally:
        blocks[:] = originals
    return {k: kept[k] for k in layers}


def relative_error(a: NDArray, b: NDArray) -> float:
    """The largest error of any token, relative to its hidden state's norm."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float((np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)).max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("at_once", [4096, 100, 1])
def test_states_of_a_batch_are_those_of_each_sequence_by_itself(
    family: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture.batches, "__defaults__", (at_once,))
    model, layers = tiny_model(family), [1, 4, LAYERS - 1]
    states = response_states(model, PROMPTS, RESPONSES, layers)
    assert [len(s) for s in states] == [2] * len(PROMPTS)
    for prompt, sides, responses in zip(PROMPTS, states, RESPONSES, strict=True):
        for side, response in zip(sides, responses, strict=True):
            assert list(side) == layers
            plain = plain_states(model, prompt + response, layers)
            for layer in layers:
                assert side[layer].dtype == np.float32
                assert side[layer].shape == (len(response), model.hidden_size)
                error = relative_error(side[layer], plain[layer][len(prompt) :])
                assert error < (1e-5 if family != "qwen3_moe" else 3e-5)


def test_prompts_may_share_nothing_be_alike_or_stand_alone() -> None:
    model = tiny_model("gemma3_text")
    unlike = [random_ids(1, 5)[1:], random_ids(2, 30)[1:]]
    for prompts in (unlike, [HEAD, HEAD], [HEAD], [HEAD, (*HEAD, 9, 9)]):
        responses = [[(60, 61, 62), (63,)] for _ in prompts]
        for prompt, sides in zip(
            prompts, response_states(model, prompts, responses, [5]), strict=True
        ):
            for side, response in zip(sides, responses[0], strict=True):
                plain = plain_states(model, prompt + response, [5])[5][len(prompt) :]
                assert relative_error(side[5], plain) < 1e-5


def test_a_prompt_may_have_any_number_of_responses() -> None:
    model = tiny_model()
    responses = [[(60, 61)], [(62,), (63, 64), (65,)], [(66,)]]
    states = response_states(model, PROMPTS[:3], responses, [3])
    assert [[side[3].shape[0] for side in sides] for sides in states] == [[2], [1, 2, 1], [1]]
    plain = plain_states(model, PROMPTS[1] + (65,), [3])[3][-1:]
    assert relative_error(states[1][2][3], plain) < 1e-5


def test_a_shared_beginning_and_each_prompt_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    calls: list[tuple[int, int]] = []
    original = llama.TransformerBlock.__call__

    def counted(self, x, *args, **kwargs):
        if self is model.network.layers[0]:
            calls.append((x.shape[0], x.shape[1]))
        return original(self, x, *args, **kwargs)

    monkeypatch.setattr(llama.TransformerBlock, "__call__", counted)
    response_states(model, PROMPTS, RESPONSES, [1, 3])
    shared = common_head(PROMPTS, spare=1)
    assert shared >= len(HEAD)
    rest = [len(p) - shared for p in PROMPTS]
    texts = [len(r) for sides in RESPONSES for r in sides]
    passes = [max(lengths[i] for i in some) for lengths in (rest, texts)
              for some in batches(lengths, TOKENS_PER_PASS)]  # fmt: skip
    assert calls[0] == (1, shared)
    assert [length for _, length in calls[1:]] == passes
    assert sum(rows for rows, _ in calls[1:]) == len(rest) + len(texts)


def least_cost(lengths: Sequence[int], limit: int, pass_cost: int) -> int:
    """By trying every way to cut the sorted lengths."""
    ordered = sorted(lengths)
    costs = []
    for cuts in product((False, True), repeat=len(ordered) - 1):
        groups: list[list[int]] = [[ordered[0]]]
        for cut, length in zip(cuts, ordered[1:], strict=True):
            if cut:
                groups.append([])
            groups[-1].append(length)
        if all(len(g) == 1 or len(g) * max(g) <= limit for g in groups):
            costs.append(sum(len(g) * max(g) + pass_cost for g in groups))
    return min(costs)


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 80), st.integers(0, 40))
def test_batches_hold_every_row_once_and_cost_least(
    lengths: list[int], limit: int, pass_cost: int
) -> None:
    found = list(batches(lengths, limit, pass_cost))
    assert sorted(i for some in found for i in some) == list(range(len(lengths)))
    sizes = [[lengths[i] for i in some] for some in found]
    assert all(len(some) == 1 or len(some) * max(some) <= limit for some in sizes)
    cost = sum(len(some) * max(some) + pass_cost for some in sizes)
    assert cost == least_cost(lengths, limit, pass_cost)


def costly(weight: mx.array, megabytes: int) -> mx.array:
    """The same weight, not computed yet, in a way that takes so much memory to compute."""
    copies = megabytes * 2**18 // weight.size
    return weight + 0 * mx.random.normal((*weight.shape, copies)).sum(axis=-1)


def peak_megabytes(model: Model, layers: Sequence[int]) -> float:
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    response_states(model, PROMPTS, RESPONSES, layers)
    return (mx.get_peak_memory() - before) / 2**20


def test_no_layer_above_the_highest_one_asked_for_is_computed_and_no_logits() -> None:
    model = tiny_model()
    mx.eval(model.network.parameters())
    blocks = model.network.layers
    blocks[4].mlp.down_proj.weight = costly(blocks[4].mlp.down_proj.weight, 80)
    model.network.lm_head.weight = costly(model.network.lm_head.weight, 80)
    assert peak_megabytes(model, [1, 3]) < 40
    blocks[4].mlp.down_proj.weight = mx.zeros((64, 128))
    assert peak_megabytes(model, [5]) < 40
    # It would have been seen.
    blocks[4].mlp.down_proj.weight = costly(blocks[4].mlp.down_proj.weight, 80)
    assert peak_megabytes(model, [5]) > 60


def test_the_network_is_as_before() -> None:
    model = tiny_model()
    before = model.network(mx.array(HEAD)[None])
    classes = [type(b) for b in model.network.layers]
    response_states(model, PROMPTS, RESPONSES, [1])
    assert [type(b) for b in model.network.layers] == classes
    assert mx.array_equal(before, model.network(mx.array(HEAD)[None]))


@pytest.mark.parametrize(
    ("costs", "limit"),
    [([5, 3, 9, 1, 1, 7], 12), ([100, 2, 2], 10), ([4] * 50, 64), ([], 10), ([3], 1)],
)
def test_batches_hold_every_index_once_and_cost_no_more_than_the_limit(
    costs: list[int], limit: int
) -> None:
    made = list(batches(costs, limit))
    assert sorted(i for batch in made for i in batch) == list(range(len(costs)))
    for batch in made:
        assert len(batch) == 1 or len(batch) * max(costs[i] for i in batch) <= limit
