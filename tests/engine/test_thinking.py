"""Vectors that act on the thinking or on the answer alone, in one batch with all others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import pytest

from mlx_steer.conditions import Condition, Gate, Intervention
from mlx_steer.engine.batch import Row
from mlx_steer.engine.complete import complete
from mlx_steer.engine.decode import Decoder
from mlx_steer.engine.jobs import Completion, Job, Sampling
from mlx_steer.engine.steered import steered
from mlx_steer.errors import VectorError
from mlx_steer.model.load import Model
from tests.engine.test_ties import with_twins
from tests.helpers.plain import plain_tokens
from tests.helpers.tiny import random_ids, random_vector, tiny_model

TOKENS = 8
SAMPLING = Sampling(max_tokens=TOKENS)
# The model's own continuations hold this token; a longer row of the head makes it frequent.
END, START = 113, 3
A, B, C = (random_vector(i) for i in range(3))
NEVER = Gate(1, A, 1e6)

CONDITIONS = {
    "none": Condition("none"),
    "thinking": Condition("thinking", None, (Intervention(2, A, 1.0, scope="thinking"),)),
    "answer": Condition("answer", None, (Intervention(2, A, 1.0, scope="answer"),)),
    "generated": Condition("generated", None, (Intervention(2, A, 1.0, scope="generated"),)),
    "all": Condition("all", None, (Intervention(1, C, 1.0),)),
    "all three": Condition(
        "all three",
        None,
        (
            Intervention(1, A, 0.7, scope="prompt"),
            Intervention(2, B, 1.0, "ablate", scope="thinking"),
            Intervention(2, C, 6.0, "clamp", scope="answer"),
            Intervention(3, A, 1.0, "ablate", scope="answer"),
            Intervention(4, B, 0.5, scope="answer"),
        ),
    ),
    "shut": Condition("shut", None, (Intervention(2, A, 1.0, scope="answer"),), (NEVER,)),
}


def set_ends(model: Model, *end: int, thinking: bool = True) -> Model:
    """Make the model one that ends its thinking with these tokens."""
    model.chat.thinking = thinking
    model.chat.tokenizer._think_start_tokens = (START,)
    model.chat.tokenizer._think_end_tokens = end
    return model


def thinking_model(**changes: str) -> Model:
    model = set_ends(tiny_model("qwen3", **changes), END)
    model.network.lm_head.weight[END] *= 2.4
    return model


def jobs_of(*names: str, prompts: int = 6) -> list[Job]:
    return [
        Job(f"{name} {i}", random_ids(i, 9 + 4 * i), CONDITIONS[name])
        for i in range(prompts)
        for name in names or CONDITIONS
    ]


def plain(model: Model, job: Job, thinking_end: int | None = END) -> tuple[int, ...]:
    """The row's tokens by a loop without a cache; a shut gate is as no vector."""
    if job.condition.gates:
        job = Job(job.key, job.ids, Condition("none"))
    return plain_tokens(model, job, TOKENS, thinking_end)


@dataclass(frozen=True)
class Case:
    model: Model
    jobs: list[Job]
    plain: list[tuple[int, ...]]


@cache
def case() -> Case:
    model, jobs = thinking_model(), jobs_of()
    return Case(model, jobs, [plain(model, job) for job in jobs])


def tokens_of(done: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [c.tokens for c in done]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_rows_of_all_scopes_in_one_batch_give_the_tokens_of_a_plain_loop(batch_size: int) -> None:
    of = case()
    assert tokens_of(complete(of.model, of.jobs, SAMPLING, batch_size)) == of.plain


def test_the_jobs_can_tell_a_mistake() -> None:
    of = case()
    rows: dict[str, list[tuple[int, ...]]] = {}
    for job, tokens in zip(of.jobs, of.plain, strict=True):
        rows.setdefault(job.condition.name, []).append(tokens)
    for name in ("answer", "thinking", "all three"):
        ends = [t.index(END) if END in t else None for t in rows[name]]
        assert sum(e is not None and e < TOKENS - 2 for e in ends) >= 2, "thinking that ends"
        assert None in ends, "thinking that never ends"
        assert len(set(ends)) >= 3, "rows end it at different times"
    # Until the thinking ends, rows of scope answer are those of none, and others' are steered.
    parted = 0
    for none, answer, generated, thinking in zip(
        *(rows[name] for name in ("none", "answer", "generated", "thinking")), strict=True
    ):
        end = none.index(END) + 1 if END in none else TOKENS
        assert answer[:end] == none[:end]
        end = generated.index(END) + 1 if END in generated else TOKENS
        assert thinking[:end] == generated[:end]
        parted += (answer != none) + (thinking != generated)
    assert parted >= 3


def test_only_the_first_end_of_thinking_counts() -> None:
    of = case()
    twice = [t for t in of.plain if t.count(END) > 1]
    assert twice, "a row must hold the token twice"


@pytest.mark.slow
def test_near_ties_around_the_switch_are_decided_as_each_row_alone_decides_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = with_twins(thinking_model(), gap=3e-6)
    model.network.lm_head.weight[END - 1 : END + 1] *= 2.4
    after: list[str] = []
    original = Decoder.alone

    def alone(self: Decoder, row: Row) -> tuple[int, float]:
        if row.answer_start == len(row.job.ids) + len(row.tokens) - 1:
            after.append(row.job.key)
        return original(self, row)

    monkeypatch.setattr(Decoder, "alone", alone)
    jobs = jobs_of()
    single = [complete(model, [job], SAMPLING)[0] for job in jobs]
    for job, one in zip(jobs, single, strict=True):
        if job.condition.name in ("none", "thinking", "answer"):  # others round as they may
            assert one.tokens == plain(model, job)
    for batch_size in (3, 64):
        after.clear()
        done = complete(model, jobs, SAMPLING, batch_size)
        assert [(c.tokens, c.margin) for c in done] == [(c.tokens, c.margin) for c in single]
        assert after, "ties at the very token that ends the thinking"


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_without_thinking_the_whole_response_is_answer(family: str) -> None:
    model = tiny_model(family)
    if family == "qwen3":
        set_ends(model, END, thinking=False)
    done = dict(zip([j.key for j in jobs_of()], complete(model, jobs_of(), SAMPLING), strict=True))
    for i in range(6):
        assert done[f"answer {i}"].tokens == done[f"generated {i}"].tokens
        assert done[f"thinking {i}"].tokens == done[f"none {i}"].tokens
    assert any(done[f"answer {i}"].tokens != done[f"none {i}"].tokens for i in range(6))


def test_a_prompt_that_opens_the_thinking_itself_is_answered_with_thinking() -> None:
    model = set_ends(thinking_model(), END, thinking=False)
    opened = [Job(j.key, (*j.ids, START), j.condition) for j in jobs_of(prompts=3)]
    assert tokens_of(complete(model, opened, SAMPLING)) == [plain(model, j) for j in opened]
    closed = [Job(j.key, (*j.ids, START, END), j.condition) for j in jobs_of(prompts=3)]
    wanted = [plain(model, j, None) for j in closed]
    assert tokens_of(complete(model, closed, SAMPLING)) == wanted


def test_a_completion_s_text_is_its_answer_and_its_thinking_stands_beside_it() -> None:
    model = set_ends(thinking_model(), END, thinking=False)
    jobs = [Job(j.key, (*j.ids, START), j.condition) for j in jobs_of("none", "all")]
    done = complete(model, jobs, SAMPLING)
    ended = [c for c in done if END in c.tokens]
    assert 0 < len(ended) < len(done)
    for c in done:
        end = c.tokens.index(END) if END in c.tokens else len(c.tokens)
        assert c.thinking == model.chat.decode(c.tokens[:end]).strip()
        assert c.text == model.chat.decode(c.tokens[end + 1 :]).lstrip()
    assert all(not c.thinking for c in complete(model, jobs_of("none"), SAMPLING))


@pytest.fixture
def switches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    counted: list[int] = []
    original = Decoder._ends_thinking

    def ends(self: Decoder, row: Row) -> bool:
        found = original(self, row)
        counted.extend([1] * found)
        return found

    monkeypatch.setattr(Decoder, "_ends_thinking", ends)
    yield counted


def test_plans_change_once_for_each_row_that_ends_its_thinking_and_for_no_other(
    switches: list[int],
) -> None:
    of = case()
    complete(of.model, of.jobs, SAMPLING, 64)
    parts = {"thinking", "answer", "all three"}
    ends = [
        j.key
        for j, tokens in zip(of.jobs, of.plain, strict=True)
        if j.condition.name in parts and END in tokens[: TOKENS - 1]
    ]
    assert sum(switches) == len(ends) > 0
    switches.clear()
    complete(of.model, jobs_of("none", "generated", "all", "shut"), SAMPLING, 64)
    assert switches == []


def test_thinking_that_several_tokens_end_together_ends_at_the_last_of_them() -> None:
    model = thinking_model()
    free = complete(model, jobs_of("none"), SAMPLING)
    # What the model writes before its END is what, with it, shall end the thinking.
    rows = tokens_of(free)
    pairs = [(t[i], END) for t in rows for i in range(len(t) - 2) if t[i + 1] == END]
    end = max(set(pairs), key=pairs.count)
    jobs = jobs_of("none", "answer", "thinking", "all three")
    at_one = tokens_of(complete(model, jobs, SAMPLING))
    set_ends(model, *end)
    done = tokens_of(complete(model, jobs, SAMPLING, 5))
    assert done == [plain_tokens(model, job, TOKENS, end) for job in jobs]
    assert done != at_one, "the first of the tokens, or the last alone, would do"


@pytest.mark.parametrize("scope", ["thinking", "answer"])
def test_inside_steered_thinking_and_answer_cannot_be_told_apart(scope) -> None:
    model = tiny_model("qwen3")
    with (
        pytest.raises(VectorError, match="scope='generated'"),
        steered(model, A, layer=2, scope=scope),
    ):
        pass
