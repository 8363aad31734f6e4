from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import llama

from mlx_steer.conditions import Condition, Gate, Intervention
from mlx_steer.engine.complete import complete
from mlx_steer.engine.jobs import Job, Sampling
from tests.helpers.tiny import LAYERS, random_ids, random_vector, tiny_model

LENGTH, HEAD = 30, 12
PROMPTS = [random_ids(0, HEAD) + random_ids(i, LENGTH - HEAD + 1)[1:] for i in range(1, 4)]
REST = len(PROMPTS) * (LENGTH - 1 - HEAD)
ONE_TOKEN = Sampling(max_tokens=1)


@pytest.fixture
def positions(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[int]]:
    """Positions run through each layer, padding included, as the blocks' own code sees them."""
    counts: Counter[int] = Counter()
    original = llama.TransformerBlock.__call__

    def counted(self: Any, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        counts[self.number] += x.shape[0] * x.shape[1]
        return original(self, x, *args, **kwargs)

    monkeypatch.setattr(llama.TransformerBlock, "__call__", counted)
    yield counts


def run(conditions: list[Condition], batch_size: int = 64) -> int:
    """Complete every prompt under every condition; returns the number of rows."""
    model = tiny_model()
    for number, block in enumerate(model.network.layers):
        block.number = number
    jobs = [Job(f"{c.name} {i}", ids, c) for (i, ids), c in product(enumerate(PROMPTS), conditions)]
    complete(model, jobs, ONE_TOKEN, batch_size)
    return len(jobs)


def steer(*layers: int, scope: Any = "all", strength: float = 1.0) -> Condition:
    acts = tuple(Intervention(k, random_vector(k), strength, scope=scope) for k in layers)
    return Condition(f"{layers} {scope} {strength}", None, acts)


def test_a_prompt_is_prefilled_once_however_many_conditions_leave_it_as_it_is(
    positions: Counter[int],
) -> None:
    unsteered = [Condition("base"), steer(2, scope="generated"), steer(1, strength=0.0)]
    rows = run(unsteered)
    assert positions == {k: HEAD + REST + rows for k in range(LAYERS)}


def test_layers_up_to_the_lowest_steered_one_are_not_run_again(positions: Counter[int]) -> None:
    rows = run([Condition("base"), steer(1), steer(1, strength=2.0), steer(4), steer(1, 3)])
    prefill = HEAD + REST
    # Above layer 1 three conditions run again, above layer 4 a fourth one.
    runs = [1, 1, 4, 4, 4, 5]
    assert positions == {k: runs[k] * prefill + rows for k in range(LAYERS)}


def test_steering_the_last_layer_costs_no_prefill_at_all(positions: Counter[int]) -> None:
    rows = run([Condition("base"), steer(LAYERS - 1), steer(LAYERS - 1, strength=-1.0)])
    assert positions == {k: HEAD + REST + rows for k in range(LAYERS)}


def test_a_shared_beginning_is_run_once_for_all_waves(positions: Counter[int]) -> None:
    # Four rows at a time: every prompt is a wave of its own.
    rows = run([Condition("base"), steer(1), steer(4), steer(2, scope="prompt")], batch_size=4)
    prefill = HEAD + REST
    runs = [1, 1, 2, 3, 3, 4]
    assert positions == {k: runs[k] * prefill + rows for k in range(LAYERS)}


def test_prompts_of_every_system_prompt_share_a_beginning_of_their_own(
    positions: Counter[int],
) -> None:
    model, jobs, heads = tiny_model(), [], {"brief": HEAD, "long": HEAD + 8}
    for number, block in enumerate(model.network.layers):
        block.number = number
    for seed, (system, head) in enumerate(heads.items()):
        opening, condition = random_ids(50 + seed, head), Condition(system, system)
        rests = [random_ids(i, LENGTH - head + 1)[1:] for i in (1, 2, 3)]
        jobs += [Job(f"{system} {i}", opening + r, condition) for i, r in enumerate(rests)]
    complete(model, jobs, ONE_TOKEN)
    once = sum(head + 3 * (LENGTH - 1 - head) for head in heads.values())
    assert positions == {k: once + len(jobs) for k in range(LAYERS)}


def test_a_prompt_whose_conditions_come_in_several_waves_is_prefilled_once(
    positions: Counter[int],
) -> None:
    unsteered = [steer(k, scope="generated") for k in range(5)]
    rows = run([Condition("base"), *unsteered], batch_size=2)
    assert positions == {k: HEAD + REST + rows for k in range(LAYERS)}


def test_gates_read_the_last_prompt_token_only(positions: Counter[int]) -> None:
    gate = Gate(3, random_vector(9), 1e9)
    gated = Condition("gated", None, steer(1).interventions, (gate,))
    rows = run([Condition("base"), gated])
    # The gate is shut, so nothing is run again but each prompt's last token, once, up to the gate.
    read = {k: len(PROMPTS) if k <= gate.layer else 0 for k in range(LAYERS)}
    assert positions == {k: HEAD + REST + read[k] + rows for k in range(LAYERS)}


def test_decoding_runs_one_position_a_row_and_step(positions: Counter[int]) -> None:
    model = tiny_model()
    for number, block in enumerate(model.network.layers):
        block.number = number
    jobs = [Job(str(i), ids, steer(2, scope="generated")) for i, ids in enumerate(PROMPTS)]
    done = complete(model, jobs, Sampling(9), 64)
    steps = sum(len(c.tokens) + (c.finish_reason == "stop") for c in done)
    assert positions == {k: HEAD + REST + steps for k in range(LAYERS)}


def test_finished_rows_stay_until_they_are_a_quarter_of_the_batch_and_change_nothing(
    positions: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    for number, block in enumerate(model.network.layers):
        block.number = number
    limits = range(1, 9)
    jobs = [Job(str(n), PROMPTS[0], steer(2, strength=0.1 * n)) for n in limits]
    # The n-th row's n-th token is made a stop token, so that rows end one after another.
    plain = complete(model, jobs, Sampling(9), 64)
    positions.clear()
    stops = {plain[n - 1].tokens[n - 1] for n in limits}
    monkeypatch.setattr(type(model.chat), "stop_ids", property(lambda _: frozenset(stops)))
    expected = [first_before(c.tokens, stops) for c in plain]
    done = complete(model, jobs, Sampling(9), 64)
    assert [c.tokens for c in done] == expected
    alive = sum(len(c.tokens) + (c.finish_reason == "stop") for c in done)
    # Idle rows cost at most what a quarter of eight rows costs in nine steps.
    decoded = positions[0] - HEAD - (LENGTH - 1 - HEAD)
    assert alive <= decoded <= alive + 9


def first_before(tokens: tuple[int, ...], stops: set[int]) -> tuple[int, ...]:
    """The tokens up to the first that stops."""
    return tokens[: next((i for i, t in enumerate(tokens) if t in stops), len(tokens))]
