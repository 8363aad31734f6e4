"""Gates as classifiers of prompts: what opened them, and what answering with a fixed text would do.

Conditional steering claims to act only where it should. The honest comparison is the cheapest thing
one can do with the same gate: answer what opens it with a fixed text, and steer nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from mlx_steer.metrics.compare import Outcomes, differences
from mlx_steer.metrics.halves import FixedAnswerNumbers, OpenedQuality, OpenedRows, Quality
from mlx_steer.metrics.measure import ScoredRun, median_perplexity, share
from mlx_steer.metrics.metrics_file import (
    GateCandidateNumbers,
    GateCurve,
    GateFit,
    GateNumbers,
    GateSplit,
)
from mlx_steer.metrics.numbers import (
    MEASURES,
    Coherence,
    Differences,
    Measured,
    Perplexity,
    Share,
)
from mlx_steer.metrics.verdicts import Scored
from mlx_steer.run.records import ConditionRecord, GateRecord, GateUse
from mlx_steer.stats import auc, roc_curve, wilson
from mlx_steer.words import PromptSet

CANDIDATES = 5
HELD_OUT: GateSplit = "held out"
SPLITS: tuple[GateSplit, ...] = (HELD_OUT, "select", "test")
GATED_KINDS = ("gated", "prompt+gated")


@dataclass(frozen=True)
class FixedAnswer:
    """A gate that answers instead of steering.

    Attributes:
        name: In the comparison.
        condition: The gated condition whose gate it is.
        base: What prompts that leave the gate shut get.
        shown: Whether each test prompt shows the behavior: what opens the gate always does.
    """

    name: str
    condition: ConditionRecord
    base: ConditionRecord
    shown: Outcomes


def gates(data: ScoredRun) -> list[GateNumbers]:
    """Every gate of the run: how it was fitted, and which prompts open it."""
    # The file stays when a run goes on without gates.
    fits = {fit.name: fit for fit in data.run.gates if data.run.config.gate is not None}
    used = {gate.name: gate for c in data.run.conditions for gate in c.gates}
    return [_gate(data, at, fits.get(name)) for name, at in (used | fits).items()]


def fixed_answers(data: ScoredRun, tested: Sequence[ConditionRecord]) -> list[FixedAnswer]:
    """For each gate that steering was tested behind, the fixed answer in place of steering."""
    word = "refusal" if data.run.behavior.judge == "refusal" else "answer"
    found: dict[tuple[str, ...], FixedAnswer] = {}
    for condition in tested:
        base = _unsteered(data, tested, condition)
        key = tuple(gate.name for gate in condition.gates)
        if condition.kind not in GATED_KINDS or base is None or key in found:
            continue
        start = f"{base.name} + " if base.kind == "prompt" else ""
        shown = {
            prompt_id: bool(condition.opened(prompt_id)) or own
            for prompt_id, own in data.shown(base).items()
            if condition.opened(prompt_id) is not None
        }
        if shown:
            found[key] = FixedAnswer(f"{start}gate + fixed {word}", condition, base, shown)
    return list(found.values())


def fixed_answer_numbers(
    data: ScoredRun, fixed: FixedAnswer, steered: ConditionRecord, against_base: Differences | None
) -> FixedAnswerNumbers:
    """A fixed answer's rates, and what steering behind the same gate does instead.

    Args:
        data: The run.
        fixed: The fixed answer.
        steered: The gated condition it is compared with; of the same gate.
        against_base: Its difference from the base condition.
    """
    prompts = data.run.prompts
    left = [s for i, s in data.rows(fixed.base, "test") if steered.opened(i.id) is False]
    both = {m: _opened_rows(data, fixed.base, steered, MEASURES[m]) for m in MEASURES}
    scored = [
        (base, own) for base, own in both["target"] if None not in (base.perplexity, own.perplexity)
    ]
    rates = {
        m: wilson(*_counted(own for i, own in fixed.shown.items() if prompts[i].set == MEASURES[m]))
        for m in MEASURES
    }
    minus_fixed = differences(
        data, {steered.name: (fixed.shown, data.shown(steered))}, {steered.name}
    )
    return FixedAnswerNumbers(
        name=fixed.name,
        kind="fixed refusal",
        condition=steered.name,
        base=fixed.base.name,
        n=len(fixed.shown),
        missing=0,
        # What the gate answers is a text somebody wrote.
        incoherent=Share.of(wilson(sum(s.verdict == "incoherent" for s in left), len(fixed.shown))),
        coherence=Coherence(),
        perplexity=Perplexity(),
        target=Share.of(rates["target"]),
        false_positive=Share.of(rates["false_positive"]),
        borderline=Share.of(rates["borderline"]),
        gap=rates["target"].value - rates["false_positive"].value,
        against_base=against_base,
        steering_minus_fixed=minus_fixed[steered.name],
        opened=Measured.each(lambda m: _opened(both[m])),
        quality=OpenedQuality(
            n=len(both["target"]),
            scored=len(scored),
            base=_quality([base for base, _ in both["target"]], [base for base, _ in scored]),
            steered=_quality([own for _, own in both["target"]], [own for _, own in scored]),
        ),
    )


def _counted(flags: Iterable[bool]) -> tuple[int, int]:
    values = list(flags)
    return sum(values), len(values)


def _opened(rows: Sequence[tuple[Scored, Scored]]) -> OpenedRows:
    verdicts = [own.verdict for _, own in rows]
    return OpenedRows(
        n=len(rows),
        shown=verdicts.count("shown"),
        absent=verdicts.count("absent"),
        incoherent=verdicts.count("incoherent"),
        base_shown=sum(base.verdict == "shown" for base, _ in rows),
    )


def _gate(data: ScoredRun, at: GateUse | GateRecord, fit: GateRecord | None) -> GateNumbers:
    groups = _groups(data, at.name, fit)
    using = [c for c in data.run.conditions if any(g.name == at.name for g in c.gates)]
    return GateNumbers(
        name=at.name,
        system_prompt=fit.system_prompt if fit else next((c.system_prompt for c in using), None),
        layer=at.layer,
        threshold=at.threshold,
        conditions=tuple(c.name for c in using),
        fit=_fit(fit) if fit else None,
        opened={
            split: {
                measure: share(score >= 0 for score in groups[split, prompt_set])
                for measure, prompt_set in MEASURES.items()
                if (split, prompt_set) in groups
            }
            for split in SPLITS
            if any(split == own for own, _ in groups)
        },
        curves=tuple(
            _curve(groups, split, against)
            for split in SPLITS
            for against in ("other", "borderline")
            if (split, "target") in groups and (split, against) in groups
        ),
    )


_Groups = Mapping[tuple[GateSplit, PromptSet], Sequence[float]]


def _groups(data: ScoredRun, gate: str, fit: GateRecord | None) -> _Groups:
    """Scores minus threshold by split and set, of the prompts that have one."""
    scores: dict[str, float] = {}
    for condition in data.run.conditions:
        scores |= condition.gate_scores.get(gate, {})
    groups: dict[tuple[GateSplit, PromptSet], list[float]] = {}
    if fit:
        for prompt_id, score in fit.held_out_scores.items():
            groups.setdefault((HELD_OUT, fit.sets[prompt_id]), []).append(score)
    for prompt_id, item in data.run.prompts.items():
        if prompt_id in scores and item.split != "gate":
            groups.setdefault((item.split, item.set), []).append(scores[prompt_id])
    return groups


def _fit(fit: GateRecord) -> GateFit:
    sets = list(fit.sets.values())
    return GateFit(
        method=fit.method,
        auc=fit.auc,
        false_positive_rate=fit.false_positive_rate,
        prompts=Measured.each(lambda m: sets.count(MEASURES[m])),
        tried=len(fit.candidates),
        candidates=tuple(
            GateCandidateNumbers(layer=c.layer, method=c.method, auc=c.auc)
            for c in fit.candidates[:CANDIDATES]
        ),
    )


def _curve(groups: _Groups, split: GateSplit, against: PromptSet) -> GateCurve:
    target, rest = groups[split, "target"], groups[split, against]
    scores, labels = [*target, *rest], [True] * len(target) + [False] * len(rest)
    curve = roc_curve(scores, labels)
    opened = [sum(s >= 0 for s in own) / len(own) for own in (rest, target)]
    return GateCurve(
        split=split,
        against=against,
        auc=auc(scores, labels),
        false_positive_rates=tuple(curve.false_positive_rates),
        true_positive_rates=tuple(curve.true_positive_rates),
        operating=(opened[0], opened[1]),
    )


def _unsteered(
    data: ScoredRun, tested: Iterable[ConditionRecord], condition: ConditionRecord
) -> ConditionRecord | None:
    """What the condition is without its interventions: base, or its system prompt alone."""
    if condition.system_text is None and condition.system_prompt is None:
        return data.base
    wanted = (condition.system_prompt, condition.system_text)
    alone = (c for c in tested if c.kind == "prompt")
    return next((c for c in alone if (c.system_prompt, c.system_text) == wanted), None)


def _opened_rows(
    data: ScoredRun, base: ConditionRecord, steered: ConditionRecord, prompt_set: PromptSet
) -> list[tuple[Scored, Scored]]:
    """Base and steered row of the test prompts of one set that open the gate."""
    before = {item.id: scored for item, scored in data.rows(base, "test")}
    return [
        (before[item.id], scored)
        for item, scored in data.rows(steered, "test")
        if item.set == prompt_set and item.id in before and steered.opened(item.id)
    ]


def _quality(rows: Sequence[Scored], scored: Sequence[Scored]) -> Quality:
    return Quality(
        coherence=fmean(s.coherence for s in rows) if rows else None,
        perplexity=median_perplexity(scored).median,
    )
