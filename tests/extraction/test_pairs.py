from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from mlx_steer.behaviors import ContrastPair
from mlx_steer.engine.steering import steerable
from mlx_steer.errors import DataError, ModelError
from mlx_steer.extraction.pairs import extract
from mlx_steer.model.load import Model
from mlx_steer.words import TokenPosition
from tests.helpers.behaviors import behavior
from tests.helpers.tiny import BOS, LAYERS, SPECIAL, tiny_chat, tiny_model

PAIRS = (
    ContrastPair("1", "How do I bake bread?", "I cannot help with that.", "Sure, mix the flour."),
    ContrastPair("2", "Write about the sea.", "I'm sorry, but no.", "Of course: the sea is wide"),
    ContrastPair("3", "What is the capital?", "I will not.", "Paris.", system="Answer briefly."),
    ContrastPair("4", "Sing!", "No", "La la la la, here is a song for you"),
    ContrastPair("5", "How do I bake bread?", "That is not safe at home.", "Happy to help you."),
)
BEHAVIOR = behavior(PAIRS)


def text_ids(model: Model, pair: ContrastPair, response: str) -> tuple[list[int], list[int]]:
    """Token ids of the prompt and of the response, from the rendered text and nothing else."""
    system = f"<|system|>{pair.system}<|end|>" if pair.system else ""
    text = f"{BOS}{system}<|user|>{pair.prompt}<|end|><|assistant|>"
    backend = model.tokenizer.backend_tokenizer
    return tuple(backend.encode(t, add_special_tokens=False).ids for t in (text, response))  # type: ignore[return-value]


def states(model: Model, ids: Sequence[int], layer: int) -> NDArray[np.float64]:
    kept: list[mx.array] = []
    with steerable(model.network, [layer]) as (site,):
        site.record = kept.append
        mx.eval(model.network(mx.array(ids)[None]))
    return np.array(kept[0][0].astype(mx.float32)).astype(np.float64)


def plain(
    model: Model, layer: int, position: TokenPosition, swapped: Sequence[bool] = (False,) * 5
) -> tuple[NDArray[np.float64], float]:
    """The mean difference and the mean norm, one sequence at a time."""
    positive, negative = [], []
    for pair, swap in zip(PAIRS, swapped, strict=True):
        for response, side in ((pair.positive, positive), (pair.negative, negative)):
            prompt, own = text_ids(model, pair, response)
            tokens = states(model, prompt + own, layer)[len(prompt) :]
            state = tokens[-1] if position == "last" else tokens.mean(axis=0)
            (side if not swap else positive if side is negative else negative).append(state)
    norm = float(np.mean([np.linalg.norm(s) for s in positive + negative]))
    return np.mean(positive, axis=0) - np.mean(negative, axis=0), norm


def error(vector: NDArray[np.float32], wanted: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(vector - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("position", ["last", "mean"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text", "mixtral"])
def test_a_vector_is_the_mean_difference_of_hidden_states_taken_one_sequence_at_a_time(
    family: str, position: TokenPosition
) -> None:
    model = tiny_model(family)
    vectors = extract(model, BEHAVIOR, token_position=position)
    assert list(vectors) == list(range(LAYERS))
    for layer in vectors:
        wanted, norm = plain(model, layer, position)
        assert vectors[layer].array.dtype == np.float32
        assert error(vectors[layer].array, wanted) < 1e-5
        assert vectors[layer].hidden_norm == pytest.approx(norm, rel=1e-5)


def test_the_two_positions_give_different_vectors() -> None:
    model = tiny_model()
    last, mean = (extract(model, BEHAVIOR, [3], token_position=p)[3] for p in ("last", "mean"))  # type: ignore[arg-type]
    assert last.cosine(mean) < 0.95


def test_layers_are_those_asked_for_in_order_and_negative_ones_count_from_the_end() -> None:
    model = tiny_model()
    every, some = extract(model, BEHAVIOR), extract(model, BEHAVIOR, [-1, 2, 2])
    assert list(some) == [2, LAYERS - 1]
    for layer in some:
        assert error(some[layer].array, every[layer].array.astype(np.float64)) < 1e-5


def test_prompts_have_one_bos_and_responses_none() -> None:
    model = tiny_model()
    bos = SPECIAL.index(BOS)
    assert model.tokenizer.encode("text")[0] == bos, "the tokenizer adds one by default"
    for pair in PAIRS:
        prompt, own = text_ids(model, pair, pair.positive)
        assert model.chat.prompt_ids(pair.prompt, pair.system) == prompt
        assert model.chat.response_ids(pair.positive) == own
        assert prompt.count(bos) == 1 and prompt[0] == bos and bos not in own


def test_shuffled_sides_swap_pairs_by_seed() -> None:
    model = tiny_model()
    seeds = range(6)
    vectors = {seed: extract(model, BEHAVIOR, [3], shuffle_seed=seed)[3] for seed in seeds}
    drawn = set()
    for seed, vector in vectors.items():
        swapped = tuple(np.random.default_rng(seed).random(len(PAIRS)) < 0.5)
        drawn.add(swapped)
        wanted, norm = plain(model, 3, "last", swapped)
        assert error(vector.array, wanted) < 1e-5
        assert vector.hidden_norm == pytest.approx(norm, rel=1e-5), "the texts are the same"
    assert len(drawn) >= 4
    again = extract(model, BEHAVIOR, [3], shuffle_seed=0)[3]
    assert np.array_equal(again.array, vectors[0].array)


def test_the_metadata_says_what_the_vectors_are_from() -> None:
    model = tiny_model()
    metadata = extract(model, BEHAVIOR, [1], token_position="mean").metadata
    assert (metadata.behavior, metadata.method) == ("tiny", "mean_difference")
    assert metadata.token_position == "mean"
    assert (metadata.hidden_size, metadata.num_layers) == (64, LAYERS)
    assert metadata.model == model.info
    assert metadata.chat_template_sha256 == model.chat.sha256
    assert (metadata.dataset.name, metadata.dataset.sha256) == ("tiny", "a" * 64)
    assert metadata.dataset.pairs == len(PAIRS) and metadata.seed is None
    shuffled = extract(model, BEHAVIOR, [1], shuffle_seed=4).metadata
    assert shuffled.seed == 4 and shuffled.method != "mean_difference"


def test_the_same_inputs_give_the_same_bytes(tmp_path) -> None:
    for name in ("a", "b"):
        extract(tiny_model(), BEHAVIOR, [1, 3]).save(tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["layer_1.npy", "layer_3.npy", "metadata.json"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_bfloat16_models_give_float32_vectors_near_those_of_float32() -> None:
    exact = extract(tiny_model(), BEHAVIOR, [3])[3]
    half = extract(tiny_model(dtype="bfloat16"), BEHAVIOR, [3])[3]
    assert half.array.dtype == np.float32
    assert half.cosine(exact) > 0.98


def test_a_template_without_a_system_role_gets_it_in_the_user_turn() -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}<|assistant|>"
    )
    model = tiny_model()
    folding = replace(model, chat=tiny_chat(template))
    folded = tuple(
        replace(p, system=None, prompt=f"{p.system}\n\n{p.prompt}" if p.system else p.prompt)
        for p in PAIRS
    )
    one = extract(folding, BEHAVIOR, [3])[3]
    two = extract(model, replace(BEHAVIOR, pairs=folded), [3])[3]
    assert np.array_equal(one.array, two.array)


def test_a_response_without_tokens_and_a_missing_layer_are_refused() -> None:
    model = tiny_model()
    empty = replace(BEHAVIOR, pairs=(*PAIRS, ContrastPair("odd", "Hi", "yes", "")))
    with pytest.raises(DataError, match="pair odd of tiny has a response without any token"):
        extract(model, empty)
    with pytest.raises(ModelError, match="layers 0 to 5, and no layer 6"):
        extract(model, BEHAVIOR, [6])


def test_a_shipped_behavior_is_found_by_name() -> None:
    vectors = extract(tiny_model(max_position_embeddings=4096), "refusal", [2])
    assert vectors.metadata.behavior == "refusal" and vectors.metadata.dataset.pairs >= 40
    assert vectors[2].norm > 0.1
