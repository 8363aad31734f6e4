"""One condition on one split: its rates, coherence, perplexity and price."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median

from mlx_steer.bands import layer_order
from mlx_steer.behaviors import PromptItem
from mlx_steer.config import PRICED_PROMPTS, SCORED_PROMPTS
from mlx_steer.metrics.choose import Cell, cell_of
from mlx_steer.metrics.halves import ConditionNumbers, MeanPrice, Price
from mlx_steer.metrics.metrics_file import Agreement
from mlx_steer.metrics.numbers import MEASURES, Coherence, Measured, Perplexity, Share
from mlx_steer.metrics.verdicts import Scored, rows_of
from mlx_steer.run.reader import RunData
from mlx_steer.run.records import CONTROL_KINDS, ConditionRecord
from mlx_steer.stats import cohens_kappa, mean_interval, wilson
from mlx_steer.words import Split

ScoredRows = Sequence[tuple[PromptItem, Scored]]

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

    def with_rows(self, split: Split) -> list[ConditionRecord]:
        """The conditions that have rows of this split, ordered."""
        return [c for c in self.ordered if any(True for _ in rows_of(*self._key(c, split)))]

    def rows(self, condition: ConditionRecord, split: Split) -> ScoredRows:
        """A condition's rows of one split."""
        return list(rows_of(*self._key(condition, split)))

    def shown(self, condition: ConditionRecord) -> dict[str, bool]:
        """Whether each test prompt shows the behavior under a condition, by prompt id."""
        return {item.id: s.verdict == "shown" for item, s in self.rows(condition, "test")}

    def cell(self, condition: ConditionRecord, split: Split) -> Cell:
        """A condition's cell on one split."""
        return cell_of(*self._key(condition, split))

    def _key(
        self, condition: ConditionRecord, split: Split
    ) -> tuple[RunData, Mapping[str, Scored], ConditionRecord, Split]:
        return (self.run, self.scored, condition, split)


def measure(data: ScoredRun, condition: ConditionRecord, split: Split) -> ConditionNumbers:
    """Everything about one condition on one split; rates over no rows are None."""
    run, rows = data.run, data.rows(condition, split)
    own = [run.rows[condition.rows[item.id]] for item, _ in rows]
    expected = sum(run.prompts[prompt_id].split == split for prompt_id in condition.rows)
    rates = Measured.each(
        lambda m: share(s.verdict == "shown" for i, s in rows if i.set == MEASURES[m])
    )
    cell = data.cell(condition, split)
    return ConditionNumbers(
        name=condition.name,
        kind=condition.kind,
        layer=condition.layer,
        strength=condition.strength,
        relative_dose=condition.relative_dose,
        system_prompt=condition.system_prompt,
        n=len(rows),
        missing=expected - len(rows),
        incoherent=Share.of(cell.incoherent),
        coherence=_coherence(data, rows),
        cut_off=sum(row.finish_reason == "length" for row in own),
        target=rates.target,
        false_positive=rates.false_positive,
        borderline=rates.borderline,
        gap=cell.gap,
        perplexity=_perplexity(data, condition, rows),
        opened=_opened(condition, rows) if condition.gates else None,
    )


def share(flags: Iterable[bool]) -> Share:
    """The share of flags that are set."""
    values = list(flags)
    return Share.of(wilson(sum(values), len(values)))


def agreement(pairs: Sequence[tuple[str, str]]) -> Agreement | None:
    """How far two judges agree on the rows that both have read; None without any."""
    if not pairs:
        return None
    ours, theirs = zip(*pairs, strict=True)
    return Agreement(
        n=len(pairs),
        agreed=sum(a == b for a, b in pairs),
        kappa=cohens_kappa(ours, theirs),
    )


def median_perplexity(rows: Iterable[Scored]) -> Perplexity:
    """Over the rows that have one."""
    known = [s.perplexity for s in rows if s.perplexity is not None]
    return Perplexity(median=median(known), n=len(known)) if known else Perplexity()


def _perplexity(data: ScoredRun, condition: ConditionRecord, rows: ScoredRows) -> Perplexity:
    """Over the first prompts of either set; none unless all of them were scored.

    A gated condition shares rows with others, and of those that happen to be scored the median
    would mislead.
    """
    first = [
        (item, s)
        for name in ("target", "other")
        for item, s in [(item, s) for item, s in rows if item.set == name][:SCORED_PROMPTS]
    ]
    scores = [data.run.scores.get(condition.rows[item.id]) for item, _ in first]
    if not all(score and score.says("perplexity") for score in scores):
        return Perplexity()
    return median_perplexity(s for _, s in first)


def price(data: ScoredRun, condition: ConditionRecord) -> Price | None:
    """How far a condition is from base on other prompts of the test half; None if unmeasured."""
    if data.base is None:
        return None
    nats: dict[str, float] = {}
    asked = [i for i, _ in data.rows(data.base, "test") if i.set == "other"][:PRICED_PROMPTS]
    priced = [i.id for i in asked if data.run.prices.get((data.base.rows[i.id],) * 2)]
    for prompt_id in priced:
        own, row = data.base.rows[prompt_id], condition.rows.get(prompt_id, "")
        line = data.run.prices.get((own, row))
        if row == own:
            nats[prompt_id] = 0.0  # a shut gate
        elif line is not None:
            nats[prompt_id] = line.nats
    # A gated condition that was not measured has zeros where its gate is shut.
    if not nats or len(nats) < len(priced):
        return None
    opened = [value for name, value in nats.items() if condition.opened(name)]
    return Price(
        **dict(_mean_price(data, list(nats.values()))),
        asked=len(asked),
        opened=_mean_price(data, opened) if opened else None,
    )


def price_floor(data: ScoredRun) -> float | None:
    """Base against itself, which is what rounding makes: the mean over the priced prompts."""
    base = data.base
    lines = [data.run.prices.get((key, key)) for key in base.rows.values()] if base else []
    known = [line.nats for line in lines if line]
    return fmean(known) if known else None


def _mean_price(data: ScoredRun, values: Sequence[float]) -> MeanPrice:
    statistics = data.run.config.statistics
    found = mean_interval(values, statistics.seed, min(2_000, statistics.resamples))
    return MeanPrice(nats=found.value, low=found.low, high=found.high, n=found.n)


def _opened(condition: ConditionRecord, rows: ScoredRows) -> Measured[Share]:
    opened = [(item.set, condition.opened(item.id)) for item, _ in rows]
    return Measured.each(
        lambda m: share(
            o for prompt_set, o in opened if prompt_set == MEASURES[m] and o is not None
        )
    )


def _coherence(data: ScoredRun, rows: ScoredRows) -> Coherence:
    if not rows:
        return Coherence()
    statistics = data.run.config.statistics
    # A reader sees three digits; many more resamples would buy nothing but time.
    resamples = min(2_000, statistics.resamples)
    return Coherence.of(mean_interval([s.coherence for _, s in rows], statistics.seed, resamples))


def _place(condition: ConditionRecord) -> tuple[float, ...]:
    if condition.is_control:
        # In a kind of control the file's order: by name, random 10 would come before random 2.
        return (len(KIND_ORDER) + 1, CONTROL_KINDS.index(condition.kind))
    kinds = (*KIND_ORDER, condition.kind)
    order = layer_order(condition.layer)
    return (kinds.index(condition.kind), *order, condition.strength or 0.0)
