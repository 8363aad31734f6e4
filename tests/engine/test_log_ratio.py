"""The ratio against single passes of the bare network, and what it must not depend on."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_steer.engine.log_ratio import Contrasted, log_ratios, tokens_of, units
from mlx_steer.model.load import Model
from mlx_steer.sentences import JUDGED_TOKENS
from tests.helpers.tiny import tiny_model

POSITIVE, NEGATIVE = "You are a pirate.", "You are a plain assistant of today."


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model("llama")


def contrasted(model: Model, key: str, question: str, response: str) -> Contrasted:
    chat = model.chat
    both = [tuple(chat.prompt_ids(question, system)) for system in (POSITIVE, NEGATIVE)]
    return Contrasted(key, both[0], both[1], tuple(chat.response_ids(response)))


def log_prob(model: Model, ids: tuple[int, ...], tokens: tuple[int, ...]) -> np.ndarray:
    """Uncached, one row at a time, in one call of the network."""
    logits = model.network(mx.array([[*ids, *tokens]]))[0].astype(mx.float32)
    table = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True), np.float64)
    return np.array([table[len(ids) - 1 + i, token] for i, token in enumerate(tokens)])


ASKED = [
    ("a", "How do I bake bread?", "Sure, here is how you can do it."),
    ("b", "How do I bake bread?", "Mix flour, water, salt."),
    ("c", "What is the capital of France?", "Paris."),
]


def test_the_ratio_is_that_of_two_passes_over_the_whole_text(model):
    answers = [contrasted(model, *one) for one in ASKED]
    found = dict(pair for part in log_ratios(model, units(answers), (3, 3)) for pair in part)
    for answer in answers:
        both = (answer.positive, answer.negative)
        one, other = (log_prob(model, ids, answer.tokens[:JUDGED_TOKENS]) for ids in both)
        assert found[answer.key].value == pytest.approx((one - other).mean(), abs=2e-4)


def test_tokens_beyond_the_first_ones_do_not_count(model):
    short = contrasted(model, "a", "Why?", "Here is how you can do it, of course. " * 4)
    assert len(short.tokens) > JUDGED_TOKENS
    other = Contrasted("a", short.positive, short.negative, (*short.tokens[:JUDGED_TOKENS], 50, 60))
    assert list(log_ratios(model, [[short]])) == list(log_ratios(model, [[other]]))


def test_a_response_without_tokens_has_no_ratio_and_one_of_masked_tokens_no_masked_one(model):
    empty = contrasted(model, "a", "Why?", "")
    copied = contrasted(model, "b", "Why?", "plain")
    masked = tokens_of(model, [POSITIVE, NEGATIVE])
    found = dict(next(iter(log_ratios(model, [[empty, copied]], masked=set(copied.tokens)))))
    assert found["a"].value is None and found["a"].masked is None
    assert found["b"].value is not None and found["b"].masked is None
    assert masked and all(model.chat.decode([token]).strip().isalpha() for token in masked)


def test_what_is_masked_leaves_the_mean_of_the_rest(model):
    one = contrasted(model, "a", "Why?", "Sure, here is how you can do it.")
    left_out = {one.tokens[0], one.tokens[3]}
    kept = [i for i, token in enumerate(one.tokens) if token not in left_out]
    values = log_prob(model, one.positive, one.tokens) - log_prob(model, one.negative, one.tokens)
    ((_, found),) = next(iter(log_ratios(model, [[one]], masked=left_out)))
    assert found.masked == pytest.approx(values[kept].mean(), abs=2e-4)


def test_responses_to_a_prompt_are_in_one_unit_and_units_are_read_alone(model, monkeypatch):
    answers = [contrasted(model, *one) for one in ASKED]
    monkeypatch.setattr("mlx_steer.engine.likelihood.SCORED_TOGETHER", 2)
    groups = units(answers[::-1])
    assert sorted([a.key for a in group] for group in groups) == [["a", "b"], ["c"]]
    every = [pair for part in log_ratios(model, groups, (3, 3)) for pair in part]
    alone = [next(iter(log_ratios(model, [group], (3, 3)))) for group in groups]
    assert [pair for part in alone for pair in part] == every
    monkeypatch.setattr("mlx_steer.engine.likelihood.SCORED_TOGETHER", 24)
    (together,) = log_ratios(model, units(answers), (3, 3))
    for key, ratio in together:
        assert ratio.value == pytest.approx(dict(every)[key].value, abs=2e-4)
