"""The price of steering on prompts it should leave alone, against plain passes and float64."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mlx_steer.conditions import Condition, Gate, Intervention
from mlx_steer.engine.divergence import Divergence, Reference, divergences
from mlx_steer.errors import GenerationError
from mlx_steer.model.load import Model
from tests.engine.test_thinking import CONDITIONS, END, thinking_model
from tests.helpers.mixed import effects
from tests.helpers.plain import plain_logits
from tests.helpers.tiny import CONTEXT, random_ids, random_vector, tiny_model

EFFECTS = [Condition(name, None, acts) for name, acts in effects().items() if name != "base"]
REFERENCES = [
    Reference("short", random_ids(1, 9), random_ids(5, 6), True),
    Reference("long", random_ids(2, 21), random_ids(6, 11), False),
    Reference("silent", random_ids(3, 12), (), True),
]


def by_hand(model: Model, one: Reference, condition: Condition, answer: int | None = None) -> float:
    """The mean KL divergence of uncached passes over the whole sequence, in float64."""
    base, steered = (logs(model, one, acts, answer) for acts in ((), condition.interventions))
    return float((np.exp(base) * (base - steered)).sum(axis=-1).mean())


def logs(
    model: Model, one: Reference, acts: tuple[Intervention, ...], answer: int | None = None
) -> Any:
    """Log-probabilities at every compared position, by one pass over the whole sequence."""
    ids, split = [*one.ids, *one.tokens], len(one.ids) - 1
    count = len(one.tokens) + one.ended
    logits = np.array(plain_logits(model, ids, acts, split, answer))[split : split + count]
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=-1, keepdims=True)
    return exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))


def measured(model: Model, conditions: list[Condition]) -> dict[str, Divergence]:
    return {one.prompt_id: one for one in divergences(model, REFERENCES, conditions)}


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_every_effect_is_as_far_from_base_as_plain_passes_say(family: str) -> None:
    model = tiny_model(family)
    found = measured(model, EFFECTS)
    assert set(found) == {"short", "long"}, "a response without tokens has nothing to compare"
    for one in REFERENCES[:2]:
        assert found[one.prompt_id].tokens == len(one.tokens) + one.ended
        for condition in EFFECTS:
            nats = found[one.prompt_id].nats[condition.name]
            assert nats == pytest.approx(by_hand(model, one, condition), rel=2e-3, abs=1e-5)
    assert found["short"].nats["strength 0"] < 1e-6
    assert found["short"].nats["layer 3, strong"] > 0.05, "steering must matter here"
    assert all(one.floor < 1e-6 for one in found.values())


def test_a_shut_gate_costs_nothing_and_an_open_one_all() -> None:
    model, acts = tiny_model(), effects()["layer 3"]
    never, always = (Gate(1, random_vector(9), threshold) for threshold in (1e6, -1e6))
    conditions = [
        Condition("plain", None, acts),
        Condition("shut", None, acts, (never,)),
        Condition("open", None, acts, (always,)),
    ]
    for one in measured(model, conditions).values():
        assert one.nats["shut"] == 0.0 and one.nats["open"] == one.nats["plain"] > 0.0
        assert one.opened == {"shut": False, "open": True}


def test_a_system_prompt_is_read_before_bases_response_and_others_may_be_left_out() -> None:
    model, acts = tiny_model(), effects()["layer 3"]
    one, under = REFERENCES[1], random_ids(4, 33)
    conditions = [
        Condition("prompt", "in other words"),
        Condition("both", "in other words", acts),
        Condition("plain", None, acts),
        Condition("left out", None, acts),
    ]
    ids = {"prompt": under, "both": under, "plain": one.ids}
    (found,) = divergences(model, [replace(one, under=ids)], conditions)
    assert set(found.nats) == set(ids)
    before = replace(one, ids=under)
    base = logs(model, one, ())
    for condition in conditions[:3]:
        read = one if condition.name == "plain" else before
        steered = logs(model, read, condition.interventions)
        wanted = float((np.exp(base) * (base - steered)).sum(axis=-1).mean())
        assert found.nats[condition.name] == pytest.approx(wanted, rel=2e-3), condition.name


def test_thinking_and_answer_are_each_steered_where_they_are() -> None:
    model = thinking_model()
    tokens = (*random_ids(7, 4), END, *random_ids(8, 3))
    one = Reference("thought", random_ids(4, 10), tokens, True)
    conditions = [CONDITIONS[name] for name in ("thinking", "answer", "all three", "all")]
    (found,) = divergences(model, [one], conditions)
    answer = len(one.ids) + tokens.index(END)
    for condition in conditions:
        wanted = by_hand(model, one, condition, answer)
        assert found.nats[condition.name] == pytest.approx(wanted, rel=2e-3), condition.name


def test_a_prompt_gives_the_same_digits_whatever_was_measured_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    whole = measured(model, EFFECTS)
    (rest,) = divergences(model, REFERENCES, EFFECTS, held={"short"})
    assert rest == whole["long"]
    # In parts, each of which has its own base: the same up to rounding.
    monkeypatch.setattr("mlx_steer.engine.divergence.LOGITS_AT_ONCE", 20_000)
    for name, one in measured(model, EFFECTS).items():
        for condition, nats in one.nats.items():
            assert nats == pytest.approx(whole[name].nats[condition], rel=1e-3, abs=1e-6)


def test_a_response_beyond_the_context_is_refused() -> None:
    one = Reference("too long", random_ids(1, CONTEXT - 4), random_ids(2, 9), True)
    with pytest.raises(GenerationError, match="exceed"):
        list(divergences(tiny_model(), [one], EFFECTS))
