"""One condition on one split: its rates, coherence and perplexity, as JSON values."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from mlx_steer.behaviors import PromptItem
from mlx_steer.metrics.choose import Cell, cell_of
from mlx_steer.metrics.verdicts import Scored, rows_of
from mlx_steer.run.reader import RunData
from mlx_steer.run.records import CONTROL_KINDS, ConditionRecord
from mlx_steer.stats import Rate, mean_interval, wilson
from mlx_steer.words import PromptSet

Json = dict[str, Any]
ScoredRows = Sequence[tuple[PromptItem, Scored]]

MEASURES: Mapping[str, PromptSet] = {
    "target": "target",
    "false_positive": "other",
    "borderline": "borderline",
}
"""Each rate of shown rows, and the prompt set it is taken over."""

KIND_ORDER = (
    "base",
    "prompt",
    "steering",
    "gated",
    "prompt+steering",
    "prompt+gated",
)
"""The order of the comparison; unknown kinds follow, then the controls."""


@dataclass(frozen=True)
class ScoredRun:
    """A run together with the verdict on each of its rows."""

    run: RunData
    scored: Mapping[str, Scored]

    @cached_property
    def base(self) -> ConditionRecord | None:
        """The condition everything is compared with."""
        return next((c for c in self.run.conditions if c.kind == "base"), None)

    @cached_property
    def ordered(self) -> list[ConditionRecord]:
        """The conditions by kind, layer and strength; the controls last."""
        return sorted(self.run.conditions, key=_place)

    def with_rows(self, split: str) -> list[ConditionRecord]:
        """The conditions that have rows of this split, ordered."""
        return [c for c in self.ordered if any(True for _ in rows_of(*self._key(c, split)))]

    def rows(self, condition: ConditionRecord, split: str) -> ScoredRows:
        """A condition's rows of one split."""
        return list(rows_of(*self._key(condition, split)))

    def shown(self, condition: ConditionRecord) -> dict[str, bool]:
        """Whether each test prompt shows the behavior under a condition, by prompt id."""
        return {item.id: s.verdict == "shown" for item, s in self.rows(condition, "test")}

    def cell(self, condition: ConditionRecord, split: str) -> Cell:
        """A condition's cell on one split."""
        return cell_of(*self._key(condition, split))

    def _key(
        self, condition: ConditionRecord, split: str
    ) -> tuple[RunData, Mapping[str, Scored], ConditionRecord, str]:
        return (self.run, self.scored, condition, split)


def measure(data: ScoredRun, condition: ConditionRecord, split: str) -> Json:
    """Everything about one condition on one split; rates over no rows are nan."""
    run, rows = data.run, data.rows(condition, split)
    own = [run.rows[condition.rows[item.id]] for item, _ in rows]
    expected = sum(run.prompts[prompt_id].split == split for prompt_id in condition.rows)
    dose = condition.interventions[0].relative_dose if condition.interventions else None
    value: Json = {
        "name": condition.name,
        "kind": condition.kind,
        "layer": condition.layer,
        "strength": condition.strength,
        "relative_dose": dose,
        "system_prompt": condition.system_prompt,
        "n": len(rows),
        "missing": expected - len(rows),
        "incoherent": rate_json(_rate(s.verdict == "incoherent" for _, s in rows)),
        "coherence": _coherence(data, rows),
        "cut_off": sum(row.finish_reason == "length" for row in own),
    }
    for name, prompt_set in MEASURES.items():
        value[name] = rate_json(_rate(s.verdict == "shown" for i, s in rows if i.set == prompt_set))
    value["gap"] = value["target"]["rate"] - value["false_positive"]["rate"]
    perplexities = [s.perplexity for _, s in rows if s.perplexity is not None]
    value["perplexity"] = {
        "median": median(perplexities) if perplexities else math.nan,
        "n": len(perplexities),
    }
    if condition.gates:
        opened = [(item.set, condition.opened(item.id)) for item, _ in rows]
        value["opened"] = {
            name: rate_json(_rate(o for s, o in opened if s == prompt_set and o is not None))
            for name, prompt_set in MEASURES.items()
        }
    return value


def rate_json(rate: Rate) -> Json:
    """A rate as a JSON value."""
    return {
        "count": rate.count,
        "n": rate.n,
        "rate": rate.value,
        "low": rate.low,
        "high": rate.high,
    }


def rounded(value: Any) -> Any:
    """The same JSON value with floats to 6 significant digits, and None for nan and infinity."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _rate(flags: Iterable[bool]) -> Rate:
    values = list(flags)
    return wilson(sum(values), len(values))


def _coherence(data: ScoredRun, rows: ScoredRows) -> Json:
    if not rows:
        return {"mean": math.nan, "low": math.nan, "high": math.nan}
    statistics = data.run.config.statistics
    # A reader sees three digits; many more resamples would buy nothing but time.
    resamples = min(2_000, statistics.resamples)
    mean = mean_interval([s.coherence for _, s in rows], statistics.seed, resamples)
    return {"mean": mean.value, "low": mean.low, "high": mean.high}


def _place(condition: ConditionRecord) -> tuple[float, ...]:
    if condition.is_control:
        # In a kind of control the file's order: by name, random 10 would come before random 2.
        return (len(KIND_ORDER) + 1, CONTROL_KINDS.index(condition.kind))
    kinds = (*KIND_ORDER, condition.kind)
    layer = -1 if condition.layer is None else condition.layer
    return (kinds.index(condition.kind), layer, condition.strength or 0.0)
