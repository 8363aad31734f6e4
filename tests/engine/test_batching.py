from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import mlx.core as mx
import pytest

from mlx_steer.conditions import Condition, Intervention
from mlx_steer.engine.complete import complete, completions
from mlx_steer.engine.jobs import Completion, Job, Sampling
from mlx_steer.engine.steered import steered
from mlx_steer.errors import GenerationError
from mlx_steer.model.load import Model
from tests.helpers.mixed import effects, mixed_jobs
from tests.helpers.plain import plain_tokens
from tests.helpers.tiny import WINDOW, random_ids, random_vector, tiny_model

FAMILIES = [
    "llama",
    "gemma3_text",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3", "gemma2", "mixtral")),
]
TOKENS = 4
SAMPLING = Sampling(max_tokens=TOKENS)
# About one token in ten ends a response, so that rows leave the batch at different times.
STOPS = range(10, 40)


@dataclass(frozen=True)
class Case:
    model: Model
    jobs: list[Job]
    plain: list[tuple[int, ...]]


@cache
def case(family: str) -> Case:
    model, jobs = tiny_model(family, stops=STOPS), mixed_jobs(45)
    return Case(model, jobs, [plain_tokens(model, job, TOKENS) for job in jobs])


def differing(jobs: Sequence[Job], done: Sequence[Completion], plain: Sequence[tuple[int, ...]]):
    return [j.key for j, c, p in zip(jobs, done, plain, strict=True) if c.tokens != p]


@pytest.mark.parametrize("batch_size", [7, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_of_any_size_gives_every_row_the_tokens_of_a_plain_loop(
    family: str, batch_size: int
) -> None:
    of = case(family)
    done = complete(of.model, of.jobs, SAMPLING, batch_size)
    assert differing(of.jobs, done, of.plain) == []
    ends = ["length" if len(tokens) == TOKENS else "stop" for tokens in of.plain]
    assert [c.finish_reason for c in done] == ends
    assert [c.text for c in done] == [of.model.chat.decode(tokens) for tokens in of.plain]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_job_run_by_itself_gives_the_tokens_it_gives_in_a_batch(family: str) -> None:
    of = case(family)
    chosen = slice(None, None, 1 if family == "llama" else 4)
    alone = [complete(of.model, [job], SAMPLING)[0] for job in of.jobs[chosen]]
    assert differing(of.jobs[chosen], alone, of.plain[chosen]) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mixed_jobs_can_tell_a_mistake(family: str) -> None:
    # The other tests of this file prove little if steering changes nothing, or all rows are alike.
    of = case(family)
    assert len(of.jobs) >= 40
    assert len({j.condition.name for j in of.jobs}) == len(effects())
    lengths = [len(j.ids) for j in of.jobs]
    assert min(lengths) <= 12 and max(lengths) > 5 * WINDOW
    base = [
        plain_tokens(of.model, Job(j.key, j.ids, Condition("base")), TOKENS) for j in of.jobs[:30]
    ]
    changed = {j.condition.name for j, b, p in zip(of.jobs, base, of.plain, strict=False) if b != p}
    unchanged = set(effects()) - changed
    assert {"base", "strength 0"} <= unchanged and len(unchanged) <= 5
    ends = {len(tokens) for tokens in of.plain}
    assert len(ends) >= 4, "rows end at different times"


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_every_row_equals_uncached_argmax_decoding_inside_steered(family: str) -> None:
    of = case(family)
    jobs = [j for j in of.jobs if {i.scope for i in j.condition.interventions} <= {"all"}][::3]
    done = complete(of.model, jobs, SAMPLING, 64)
    for job, completion in zip(jobs, done, strict=True):
        tokens: list[int] = []
        with steered(of.model, job.condition.interventions):
            while len(tokens) < TOKENS:
                logits = of.model.network(mx.array([*job.ids, *tokens])[None])[0, -1]
                token = int(mx.argmax(logits).item())
                if token in of.model.chat.stop_ids:
                    break
                tokens.append(token)
        assert completion.tokens == tuple(tokens), job.key


def test_a_wave_whose_longest_prompt_is_not_steered_gives_the_plain_tokens() -> None:
    model = tiny_model()
    act = Intervention(2, random_vector(0), 1.0)
    short, long = random_ids(1, 9), random_ids(2, 31)
    jobs = [
        Job("short", short, Condition("steered", None, (act,))),
        Job("long", long, Condition("base")),
    ]
    done = complete(model, jobs, SAMPLING, 64)
    assert [c.tokens for c in done] == [plain_tokens(model, j, TOKENS) for j in jobs]


@pytest.mark.parametrize(
    ("family", "lengths"),
    [
        ("llama", (2, 3, 20)),
        ("gemma3_text", (2, 3, 20)),
        ("llama", (2,)),
        ("gemma3_text", (2,)),
    ],
    ids=str,
)
def test_prompts_of_few_tokens_give_the_plain_tokens(family: str, lengths: tuple[int, ...]) -> None:
    model = tiny_model(family)
    acts = (Intervention(1, random_vector(0), 1.0),)
    conditions = [Condition("base"), Condition("steered", None, acts)]
    jobs = [
        Job(f"{length} {c.name}", random_ids(3, length), c)
        for length in lengths
        for c in conditions
    ]
    done = complete(model, jobs, SAMPLING, 64)
    assert differing(jobs, done, [plain_tokens(model, j, TOKENS) for j in jobs]) == []


def test_responses_longer_than_a_sliding_window_give_the_plain_tokens() -> None:
    # Rows enter while others' rotating caches have gone round already.
    model, jobs = tiny_model("gemma3_text", stops=range(10, 20)), mixed_jobs(12)
    tokens = 2 * WINDOW + 2
    plain = [plain_tokens(model, j, tokens) for j in jobs]
    assert sum(len(t) > WINDOW for t in plain) >= 5
    for batch_size in (5, 12):
        done = complete(model, jobs, Sampling(tokens), batch_size)
        assert differing(jobs, done, plain) == []


def test_prompts_of_no_and_of_an_empty_system_prompt_do_not_mix_up_their_heads() -> None:
    # Both give the same ids, so that a prompt belongs to both groups, which begin differently.
    model = tiny_model()
    shared = random_ids(1, 24)
    prompt, twin = (*shared, 60, 61, 62), (*shared, 50, 51, 52)
    other = (*shared[:10], 319, *random_ids(4, 16))
    none, empty = Condition("none", None), Condition("empty", "")
    jobs = [
        Job("1", prompt, none),
        Job("2", twin, none),
        Job("3", prompt, empty),
        Job("4", other, empty),
    ]
    done = complete(model, jobs, SAMPLING, 64)
    assert differing(jobs, done, [plain_tokens(model, j, TOKENS) for j in jobs]) == []


def test_a_prompt_with_more_conditions_than_the_batch_has_rows_is_run_in_parts() -> None:
    model = tiny_model()
    ids = random_ids(1, 20)
    jobs = [Job(name, ids, Condition(name, None, acts)) for name, acts in effects().items()]
    assert len(jobs) > 8
    done = complete(model, jobs, SAMPLING, 4)
    assert differing(jobs, done, [plain_tokens(model, j, TOKENS) for j in jobs]) == []


def test_prompts_may_begin_alike_or_not_at_all() -> None:
    model = tiny_model("gemma3_text")
    acts = (Intervention(1, random_vector(0), 1.0), Intervention(4, random_vector(1), 1.0))
    condition = Condition("steered", None, acts)
    whole = random_ids(1, 40)
    prompts = [whole, whole[:39], whole[:17], whole[:30] + random_ids(2, 11)[1:]]
    for group in (prompts, [*prompts, random_ids(3, 5)[1:]]):
        jobs = [Job(str(i), ids, condition) for i, ids in enumerate(group)]
        done = complete(model, jobs, SAMPLING, 64)
        assert differing(jobs, done, [plain_tokens(model, j, TOKENS) for j in jobs]) == []


def test_the_order_of_jobs_does_not_matter_and_completions_come_in_it() -> None:
    of = case("llama")
    backwards = complete(of.model, of.jobs[::-1], SAMPLING, 16)
    assert [c.key for c in backwards] == [j.key for j in of.jobs[::-1]]
    assert [c.tokens for c in backwards[::-1]] == of.plain


def test_completions_are_given_as_soon_as_their_rows_end() -> None:
    of = case("llama")
    steps: list[int] = []
    seen = {
        c.key: len(steps)
        for c in completions(of.model, of.jobs[:12], SAMPLING, 64, on_tokens=steps.append)
    }
    by_key = {j.key: p for j, p in zip(of.jobs, of.plain, strict=True)}
    # A row of n tokens takes n steps if it is cut off, and one more if it ends itself.
    assert seen == {k: min(len(by_key[k]) + 1, TOKENS) for k in seen}
    assert sum(steps) == sum(seen.values())
    assert len(seen) == 12


def test_an_abandoned_generator_leaves_the_network_as_it_was() -> None:
    model = tiny_model()
    jobs = mixed_jobs(8)
    classes = [type(block) for block in model.network.layers]
    before = model.network(mx.array(jobs[0].ids)[None])
    running = completions(model, jobs, SAMPLING, 8)
    next(running)
    running.close()
    assert [type(block) for block in model.network.layers] == classes
    assert mx.array_equal(before, model.network(mx.array(jobs[0].ids)[None]))


def test_complete_inside_steered_is_refused() -> None:
    model = tiny_model()
    outer = Intervention(2, random_vector(0), 1.0)
    job = Job("x", random_ids(1, 12), Condition("x"))
    with steered(model, [outer]), pytest.raises(GenerationError, match="as their conditions"):
        complete(model, [job], SAMPLING, 64)
