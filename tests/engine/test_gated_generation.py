"""Gates under mlx-lm's own generation."""

from collections.abc import Iterator, Sequence
from typing import Any

import mlx_lm
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlx_steer.conditions import Condition, Gate, Intervention
from mlx_steer.engine.complete import complete
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.steered import gate_score, steered
from mlx_steer.model.load import Model
from tests.helpers.tiny import random_ids, random_vector, tiny_model


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture
def act() -> Iterator[Intervention]:
    yield Intervention(2, random_vector(0), 2.0, scope="generated")


def said(model: Model, ids: Sequence[int], cache: list[Any]) -> list[int]:
    stream = mlx_lm.stream_generate(
        model.network, model.tokenizer, list(ids), max_tokens=4, prompt_cache=cache
    )
    return [response.token for response in stream]


@pytest.mark.parametrize("cut", [0.0, 1.0], ids=["first open", "second open"])
def test_a_conversation_in_one_cache_has_its_gate_decided_anew_each_turn(
    model: Model, act: Intervention, cut: float
) -> None:
    """Its layer lies below the steered one: what it reads does not depend on what was steered."""
    turns = [model.chat.prompt_ids(text) for text in ("Now take the sea.", "Paint bread.")]
    direction = random_vector(9, norm=1.0)

    def conversation(opened: Sequence[bool]) -> list[list[int]]:
        cache, answers = make_prompt_cache(model.network), []
        for ids, is_open in zip(turns, opened, strict=True):
            with steered(model, [act] if is_open else []):
                answers.append(said(model, ids, cache))
        return answers

    def scores(answers: list[list[int]]) -> list[float]:
        # The last token of an answer is never read.
        whole = [[*turns[0]], [*turns[0], *answers[0], *turns[1]]]
        return [gate_score(model.network, Gate(1, direction, 0.0), ids) for ids in whole]

    plain = conversation([False, False])
    values = scores(plain)
    sign = 1.0 if (values[0] > values[1]) == (cut == 0.0) else -1.0
    direction = sign * direction
    wanted_open = [cut == 0.0, cut == 1.0]
    wanted = conversation(wanted_open)
    values = scores(wanted)
    assert (values[0] > values[1]) == (cut == 0.0)
    gate = Gate(1, direction, sum(values) / 2)
    with steered(model, [act], gate=gate):
        cache = make_prompt_cache(model.network)
        answers = [said(model, ids, cache) for ids in turns]
    assert answers == wanted
    assert wanted not in (plain, conversation([True, True]), conversation(wanted_open[::-1]))


@pytest.mark.parametrize("scope", ["all", "generated", "prompt"])
@pytest.mark.parametrize("layer", [1, 2, 4], ids=["below", "at", "above"])
def test_mlx_lm_generate_under_a_gate_read_from_the_prompt_says_what_a_gated_row_says(
    model: Model, layer: int, scope: Any
) -> None:
    acts = (Intervention(2, random_vector(0), 1.0, scope=scope),)
    ids = random_ids(1, 24)
    value = gate_score(model.network, Gate(layer, random_vector(9, norm=1.0), 0.0), ids)
    texts = set()
    for threshold in (value - 0.1, value + 0.1):
        gate = Gate(layer, random_vector(9, norm=1.0), threshold)
        condition = Condition("gated", None, acts, (gate,))
        (row,) = complete(model, [Job("row", ids, condition)], Sampling(8))
        assert row.steered is (threshold < value)
        with steered(model, acts, gate=gate, prompt=ids):
            text = mlx_lm.generate(model.network, model.tokenizer, list(ids), max_tokens=8)
        assert text == model.tokenizer.decode(list(row.tokens))
        texts.add(text)
    assert len(texts) == 2
