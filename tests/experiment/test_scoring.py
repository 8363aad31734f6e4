"""Perplexity where tables quote it, and the price of steering, on a tiny model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_steer import Intervention
from mlx_steer.metrics import compute_metrics
from mlx_steer.metrics.halves import Price
from mlx_steer.model.load import Model, load_model
from mlx_steer.run.reader import RunData, load_run
from mlx_steer.run.records import ConditionRecord
from tests.helpers.behaviors import behavior_folder
from tests.helpers.plain import plain_logits
from tests.helpers.small_run import carry_out, config, left_behind
from tests.helpers.tiny import tiny_folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("scoring")
    tiny_folder("llama", folder / "model")
    behavior_folder(folder / "behavior", prompts=8, gate=True)
    with pytest.MonkeyPatch.context() as patch:
        # Fewer than there are, so that it shows that these are the first.
        for module in ("experiment.program", "metrics.measure"):
            patch.setattr(f"mlx_steer.{module}.SCORED_PROMPTS", 2)
            patch.setattr(f"mlx_steer.{module}.PRICED_PROMPTS", 7)
        carry_out(values(folder), folder / "run")
        write_metrics(folder / "run")
        yield folder


def values(folder: Path) -> Any:
    gate = {"layers": [2], "strengths": [1.0, 2.0], "false_positive_rate": 0.4}
    return config(
        folder / "model",
        folder / "behavior",
        sweep={"system_prompts": ["detailed"]},
        compare={"extent": "answer"},
        gate=gate,
        generation={"max_tokens": 4},
    )


def write_metrics(folder: Path) -> None:
    (folder / "metrics.json").write_text(compute_metrics(load_run(folder)).model_dump_json())


def settled(run: RunData) -> dict[str, ConditionRecord]:
    choice = run.choice
    assert choice is not None and choice.gated is not None
    cells = {"steering": choice, "prompt+steering": choice, "gated": choice.gated}
    found = {c.kind: c for c in run.conditions if c.kind in ("base", "prompt")}
    for kind, cell in cells.items():
        (found[kind],) = (
            c
            for c in run.conditions
            if (c.kind, c.layer, c.strength) == (kind, cell.layer, cell.strength)
        )
    return found


def first(run: RunData, name: str, most: int) -> list[str]:
    return [i for i, p in run.prompts.items() if (p.split, p.set) == ("test", name)][:most]


def test_the_settled_conditions_are_scored_on_the_first_prompts_and_no_other_row(
    shared: Path,
) -> None:
    run = load_run(shared / "run")
    prompts = [*first(run, "target", 2), *first(run, "other", 2)]
    wanted = {c.rows[prompt_id] for c in settled(run).values() for prompt_id in prompts}
    assert set(run.scores) == wanted
    metrics = compute_metrics(run)
    names = {c.name for c in settled(run).values()}
    for condition in metrics.test.conditions:
        assert (condition.perplexity.median is not None) == (condition.name in names)
    assert all(c.perplexity.median is None for c in metrics.select.conditions)


def test_the_price_is_that_of_plain_passes_over_bases_responses(shared: Path) -> None:
    run, model = load_run(shared / "run"), load_model(str(shared / "model"))
    found = settled(run)
    base, opened = found.pop("base"), set()
    del found["prompt+steering"]
    metrics = compute_metrics(run)
    for condition in found.values():
        nats = []
        for prompt_id in first(run, "other", 7):
            own, key = base.rows[prompt_id], condition.rows[prompt_id]
            if condition.gates:
                opened.add(condition.opened(prompt_id))
            wanted = 0.0 if own == key else by_hand(run, model, condition, prompt_id)
            nats.append(wanted)
            if own != key:
                assert run.prices[own, key].nats == pytest.approx(wanted, rel=2e-3, abs=1e-6)
        tested = metrics.test.named(condition.name)
        assert tested is not None and isinstance(tested.price, Price)
        assert tested.price.nats == pytest.approx(np.mean(nats), rel=2e-3, abs=1e-6)
        assert (tested.price.n, tested.price.asked) == (7, 7)
        assert tested.price.low <= tested.price.nats <= tested.price.high
        if condition.gates:
            some = [n for n in nats if n]
            assert tested.price.opened is not None and tested.price.opened.n == len(some)
            assert tested.price.opened.nats == pytest.approx(np.mean(some), rel=2e-3)
    assert opened == {True, False}, "the test must see both"
    assert metrics.test.price_floor == pytest.approx(0, abs=1e-6)
    assert all(c.price is None for c in metrics.test.conditions if c.name not in
               {c.name for c in found.values()})  # fmt: skip


def by_hand(run: RunData, model: Model, condition: ConditionRecord, prompt_id: str) -> float:
    (base,) = (c for c in run.conditions if c.kind == "base")
    row, prompt = run.rows[base.rows[prompt_id]], run.prompts[prompt_id].prompt
    count = len(row.tokens) + (row.finish_reason == "stop")
    acts = tuple(
        Intervention(i.layer, run.vectors[i.layer].array, i.strength)  # type: ignore[index]
        for i in condition.interventions
    )
    logs = []
    for system, effect in ((None, ()), (condition.system_text, acts)):
        ids = [*model.chat.prompt_ids(prompt, system), *row.tokens]
        split = len(ids) - len(row.tokens) - 1
        exact = np.array(plain_logits(model, ids, effect, split))[split : split + count]
        exact = exact.astype(np.float64)
        exact -= exact.max(axis=-1, keepdims=True)
        logs.append(exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True)))
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=-1).mean())


@pytest.mark.parametrize("kept", [0.0, 0.4, 0.8])
def test_scoring_that_was_stopped_goes_on_to_the_same_bytes_and_quotes_no_part(
    shared: Path, tmp_path: Path, kept: float
) -> None:
    whole = shared / "run"
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    for name in ("scores.jsonl", "prices.jsonl"):
        lines = (folder / name).read_bytes().splitlines(keepends=True)
        stay = lines[: int(kept * len(lines)) + 1]
        # The last line is torn, as a kill leaves it.
        (folder / name).write_bytes(b"".join(stay)[:-3])
    metrics = compute_metrics(load_run(folder))
    # Of its rows all were scored, or none is told of; a price says how many prompts it is over.
    assert {c.perplexity.n for c in metrics.test.conditions} <= {0, 4}
    for condition in metrics.test.conditions:
        assert condition.price is None or condition.price.n < condition.price.asked
    carry_out(values(shared), folder)
    write_metrics(folder)
    assert left_behind(folder) == left_behind(whole)


def test_the_speed_is_measured_once(shared: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shared / "run", tmp_path / "run"))
    speed = json.loads((folder / "manifest.json").read_text())["speed"]
    assert speed["rows"] == 7 and speed["steered"] > 0 < speed["unsteered"]
    carry_out(values(shared), folder)
    assert json.loads((folder / "manifest.json").read_text())["speed"] == speed
