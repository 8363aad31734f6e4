from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_steer.conditions import Condition, Gate, Intervention
from mlx_steer.engine.jobs import Job
from mlx_steer.engine.screening import opening_tokens, screen
from mlx_steer.engine.steered import gate_score
from mlx_steer.engine.steering import SteerableLayer
from mlx_steer.errors import DataError, GenerationError, ModelError, VectorError
from mlx_steer.experiment.leans import lean
from mlx_steer.model.load import Model
from tests.helpers.mixed import mixed_jobs
from tests.helpers.plain import plain_logits
from tests.helpers.tiny import HIDDEN, LAYERS, VOCABULARY, random_ids, random_vector, tiny_model
from tests.oracle.cases import BEHAVIOR

SHOWN = [12, 80, 199, 301]
PROMPT = random_ids(0, 20)


def log_odds(logits: mx.array, shown: Sequence[int]) -> float:
    """log(p / (1 - p)) of some tokens together, from logits of one position, in float64."""
    exact = np.array(logits.astype(mx.float32), np.float64)
    weights = np.exp(exact - exact.max())
    inside = np.isin(np.arange(len(weights)), shown)
    return float(np.log(weights[inside].sum()) - np.log(weights[~inside].sum()))


def by_hand(model: Model, job: Job, shown: Sequence[int] = SHOWN) -> float:
    """One plain uncached pass over the whole prompt, its blocks wrapped, its gates left out."""
    split = len(job.ids) - 1
    return log_odds(plain_logits(model, job.ids, job.condition.interventions, split)[-1], shown)


# --- the score ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3"])
def test_every_effect_scores_as_in_a_plain_pass_over_the_steered_prompt(family: str) -> None:
    model, jobs = tiny_model(family), mixed_jobs(45)
    found = screen(model, jobs, SHOWN)
    assert list(found) != [] and set(found) == {job.key for job in jobs}
    for job in jobs:
        assert found[job.key] == pytest.approx(by_hand(model, job), abs=2e-3), job.key
    assert np.std(list(found.values())) > 0.3, "steering must matter here"


def test_the_score_does_not_depend_on_the_batch_or_the_order() -> None:
    model, jobs = tiny_model(), mixed_jobs(30)
    whole = screen(model, jobs, SHOWN)
    for size in (1, 7):
        assert screen(model, jobs[::-1], SHOWN, size) == pytest.approx(whole, abs=2e-4)


def test_tokens_count_together_and_everything_else_against_them() -> None:
    model, job = tiny_model(), Job("row", PROMPT, Condition("base"))
    rest = [token for token in range(VOCABULARY) if token not in SHOWN]
    one = screen(model, [job], SHOWN)["row"]
    assert screen(model, [job], rest)["row"] == pytest.approx(-one, abs=1e-3)
    single = [screen(model, [job], [token])["row"] for token in SHOWN]
    chances = 1 / (1 + np.exp(-np.array(single)))
    assert 1 / (1 + np.exp(-one)) == pytest.approx(chances.sum(), abs=1e-5)


def test_strength_zero_scores_as_the_base() -> None:
    model, vector = tiny_model(), random_vector(1)
    conditions = {
        "base": Condition("base"),
        "zero": Condition("zero", None, (Intervention(2, vector, 0.0),)),
        "strong": Condition("strong", None, (Intervention(2, vector, 2.0),)),
    }
    found = screen(model, [Job(name, PROMPT, c) for name, c in conditions.items()], SHOWN)
    assert found["zero"] == found["base"] != found["strong"]


@pytest.mark.parametrize("wanted", [140.0, 40.0, 18.0, -18.0, -40.0, -140.0])
def test_an_opening_that_is_all_but_certain_or_impossible_keeps_its_own_odds(wanted: float) -> None:
    """Such as strong steering makes them: probabilities in float32 end at odds of about 16."""
    model = tiny_model()
    head = np.random.default_rng(0).standard_normal((VOCABULARY, HIDDEN)).astype(np.float32) * 0.01
    job = Job("row", PROMPT, Condition("base"))

    def score_of(shift: float) -> tuple[float, float]:
        changed = head.copy()
        changed[SHOWN[0]] += shift * direction
        model.network.lm_head.weight = mx.array(changed)
        return screen(model, [job], [SHOWN[0]])["row"], by_hand(model, job, [SHOWN[0]])

    # A direction along which the last state is 1, so that a shift of the head is one of the logit.
    model.network.lm_head.weight = mx.array(np.eye(VOCABULARY, HIDDEN, dtype=np.float32))
    last = np.array(model.network(mx.array(PROMPT)[None])[0, -1])[:HIDDEN]
    direction = last / (last @ last)
    _, base = score_of(0.0)
    found, plain = score_of(wanted - base)
    assert plain == pytest.approx(wanted, abs=1e-3)
    assert found == pytest.approx(np.clip(wanted, -100, 100), abs=1e-3)
    assert lean({"a": found, "b": found}, {"a": "target", "b": "other"}).target in (0.0, 1.0)


def test_gated_conditions_score_as_what_their_gate_makes_of_them() -> None:
    model, direction = tiny_model(), random_vector(9, norm=1.0)
    prompts = [random_ids(i, 15 + i) for i in range(6)]
    act = (Intervention(2, random_vector(0), 1.5),)
    values = [gate_score(model.network, Gate(4, direction, 0.0), ids) for ids in prompts]
    gate = Gate(4, direction, float(np.mean(sorted(values)[2:4])))
    gated = Condition("gated", None, act, (gate,))
    found = screen(model, [Job(str(i), ids, gated) for i, ids in enumerate(prompts)], SHOWN)
    opened = [value >= gate.threshold for value in values]
    assert sum(opened) == 3
    for i, (ids, is_open) in enumerate(zip(prompts, opened, strict=True)):
        plain = Condition("", None, act if is_open else ())
        other = Condition("", None, () if is_open else act)
        assert found[str(i)] == pytest.approx(by_hand(model, Job("", ids, plain)), abs=2e-3)
        assert abs(found[str(i)] - by_hand(model, Job("", ids, other))) > 0.05


def test_a_half_precision_model_is_scored_from_its_own_logits() -> None:
    model = tiny_model(dtype="bfloat16")
    exact = tiny_model()
    job = Job("row", PROMPT, Condition("", None, (Intervention(2, random_vector(0), 1.0),)))
    assert screen(model, [job], SHOWN)["row"] == pytest.approx(
        screen(exact, [job], SHOWN)["row"], abs=0.3
    )


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model()
    before = model.network(mx.array(PROMPT)[None])
    screen(model, mixed_jobs(8), SHOWN, 3)
    with pytest.raises(VectorError):
        bad = Condition("", None, (Intervention(2, random_vector(0)[:-1], 1.0),))
        screen(model, [Job("row", PROMPT, bad)], SHOWN)
    assert not any(isinstance(block, SteerableLayer) for block in model.network.layers)
    assert mx.array_equal(before, model.network(mx.array(PROMPT)[None]))


@pytest.mark.parametrize(
    ("jobs", "size", "error", "message"),
    [
        (
            [Job("a", PROMPT, Condition("")), Job("a", PROMPT, Condition(""))],
            8,
            GenerationError,
            "two jobs",
        ),
        ([Job("a", PROMPT[:1], Condition(""))], 8, GenerationError, "one token"),
        ([Job("a", random_ids(0, 256), Condition(""))], 8, GenerationError, "exceed the 256"),
        ([Job("a", PROMPT, Condition(""))], 0, GenerationError, "batch size"),
        (
            [Job("a", PROMPT, Condition("", None, (Intervention(LAYERS, random_vector(0), 1.0),)))],
            8,
            ModelError,
            "no layer 6",
        ),
    ],
    ids=["key twice", "one token", "too long", "batch of none", "no such layer"],
)
def test_what_cannot_be_run_is_refused(
    jobs: list[Job], size: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        screen(tiny_model(), jobs, SHOWN, size)


def test_a_prompt_that_fills_the_context_but_for_one_token_is_scored() -> None:
    model, job = tiny_model(), Job("long", random_ids(0, 255), Condition("base"))
    assert screen(model, [job], SHOWN)["long"] == pytest.approx(by_hand(model, job), abs=2e-3)


# --- the tokens -----------------------------------------------------------------------------------


def first(model: Model, text: str) -> int:
    return model.chat.response_ids(text)[0]


def test_openings_stand_for_their_first_tokens_each_once() -> None:
    model = tiny_model()
    behavior = replace(
        BEHAVIOR,
        openings={
            "shown": ("No", "Never", "No, thank you", "Decline"),
            "absent": ("Sure, here", "Of course"),
        },
    )
    shown, absent = opening_tokens(model, behavior)
    assert shown == sorted({first(model, text) for text in ("No", "Never", "Decline")})
    assert absent == sorted({first(model, text) for text in ("Sure", "Of")})
    assert first(model, "No") == first(model, "No, thank you") != first(model, " No")


def test_a_token_that_begins_openings_of_both_kinds_is_left_out_of_both() -> None:
    model = tiny_model()
    openings = {"shown": ("I cannot", "No"), "absent": ("I can do this", "Sure")}
    assert first(model, "I cannot") == first(model, "I can do this")
    shown, absent = opening_tokens(model, replace(BEHAVIOR, openings=openings))
    assert (shown, absent) == ([first(model, "No")], [first(model, "Sure")])


@pytest.mark.parametrize(
    "openings",
    [
        {},
        {"shown": ("No",)},
        {"absent": ("Sure",)},
        {"shown": (), "absent": ("Sure",)},
        {"shown": ("I cannot",), "absent": ("I can", "Sure")},
        {"shown": ("I cannot", "No"), "absent": ("I can",)},
    ],
)
def test_openings_that_tell_nothing_apart_are_refused(openings: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(DataError, match=r"no openings that differ in their first token; give open"):
        opening_tokens(tiny_model(), replace(BEHAVIOR, openings=openings))  # type: ignore[arg-type]
