"""Gates as classifiers of prompts: what opened them, and what answering with a fixed text would do.

Conditional steering claims to act only where it should. The honest comparison is the cheapest thing
one can do with the same gate: answer what opens it with a fixed text, and steer nothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from mlx_steer.metrics.compare import Outcomes, differences
from mlx_steer.metrics.measure import MEASURES, Json, ScoredRun, rate_json
from mlx_steer.metrics.verdicts import Scored
from mlx_steer.run.records import ConditionRecord, GateRecord
from mlx_steer.stats import auc, roc_curve, wilson
from mlx_steer.words import PromptSet

CANDIDATES = 5
HELD_OUT = "held out"
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


def gates(data: ScoredRun) -> list[Json]:
    """Every gate of the run: how it was fitted, and which prompts open it."""
    # The file stays when a run goes on without gates.
    fits = {fit.name: fit for fit in data.run.gates if data.run.config.gate is not None}
    used = {gate.name: gate for c in data.run.conditions for gate in c.gates}
    return [
        _gate(data, name, fits.get(name)) | {"layer": at.layer, "threshold": at.threshold}
        for name, at in (used | fits).items()
    ]


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
    data: ScoredRun, fixed: FixedAnswer, steered: ConditionRecord, against_base: Json | None
) -> Json:
    """A fixed answer's rates, and what steering behind the same gate does instead.

    Args:
        data: The run.
        fixed: The fixed answer.
        steered: The gated condition it is compared with; of the same gate.
        against_base: Its difference from the base condition.
    """
    prompts = data.run.prompts
    left = [s for i, s in data.rows(fixed.base, "test") if steered.opened(i.id) is False]
    value: Json = {
        "name": fixed.name,
        "kind": "fixed refusal",
        "condition": steered.name,
        "base": fixed.base.name,
        "n": len(fixed.shown),
        "missing": 0,
        # What the gate answers is a text somebody wrote.
        "incoherent": rate_json(
            wilson(sum(s.verdict == "incoherent" for s in left), len(fixed.shown))
        ),
        "coherence": {"mean": math.nan, "low": math.nan, "high": math.nan},
        "perplexity": {"median": math.nan, "n": 0},
        "against_base": against_base,
        "steering_minus_fixed": differences(
            data, {steered.name: (fixed.shown, data.shown(steered))}, {steered.name}
        )[steered.name],
        "opened": {},
    }
    for measure, prompt_set in MEASURES.items():
        outcomes = [own for i, own in fixed.shown.items() if prompts[i].set == prompt_set]
        value[measure] = rate_json(wilson(sum(outcomes), len(outcomes)))
        both = _opened_rows(data, fixed.base, steered, prompt_set)
        verdicts = [own.verdict for _, own in both]
        value["opened"][measure] = {
            "n": len(both),
            "shown": verdicts.count("shown"),
            "absent": verdicts.count("absent"),
            "incoherent": verdicts.count("incoherent"),
            "base_shown": sum(base.verdict == "shown" for base, _ in both),
        }
    value["gap"] = value["target"]["rate"] - value["false_positive"]["rate"]
    both = _opened_rows(data, fixed.base, steered, "target")
    value["quality"] = {
        "n": len(both),
        "base": _quality(base for base, _ in both),
        "steered": _quality(own for _, own in both),
    }
    return value


def _gate(data: ScoredRun, name: str, fit: GateRecord | None) -> Json:
    prompts = data.run.prompts
    scores: dict[str, float] = {}
    for condition in data.run.conditions:
        scores |= condition.gate_scores.get(name, {})
    groups: dict[tuple[str, PromptSet], list[float]] = {}
    if fit:
        for prompt_id, score in fit.held_out_scores.items():
            groups.setdefault((HELD_OUT, fit.sets[prompt_id]), []).append(score)
    for prompt_id, item in prompts.items():
        if prompt_id in scores:
            groups.setdefault((item.split, item.set), []).append(scores[prompt_id])
    splits = [s for s in (HELD_OUT, "select", "test") if any(s == split for split, _ in groups)]
    return {
        "name": name,
        "system_prompt": fit.system_prompt if fit else _system_prompt(data, name),
        "conditions": [c.name for c in data.run.conditions if any(g.name == name for g in c.gates)],
        "fit": fit and _fit(fit),
        "opened": {
            split: {
                measure: rate_json(wilson(sum(score >= 0 for score in own), len(own)))
                for measure, prompt_set in MEASURES.items()
                if (own := groups.get((split, prompt_set), []))
            }
            for split in splits
        },
        "curves": [
            _curve(split, against, groups[split, "target"], groups[split, against])
            for split in splits
            for against in ("other", "borderline")
            if (split, "target") in groups and (split, against) in groups
        ],
    }


def _fit(fit: GateRecord) -> Json:
    sets = list(fit.sets.values())
    return {
        "method": fit.method,
        "auc": fit.auc,
        "false_positive_rate": fit.false_positive_rate,
        "prompts": {measure: sets.count(name) for measure, name in MEASURES.items()},
        "tried": len(fit.candidates),
        "candidates": [c.model_dump() for c in fit.candidates[:CANDIDATES]],
    }


def _curve(split: str, against: str, target: list[float], rest: list[float]) -> Json:
    scores, labels = [*target, *rest], [True] * len(target) + [False] * len(rest)
    curve = roc_curve(scores, labels)
    return {
        "split": split,
        "against": against,
        "auc": auc(scores, labels),
        "false_positive_rates": curve.false_positive_rates,
        "true_positive_rates": curve.true_positive_rates,
        "operating": [sum(s >= 0 for s in own) / len(own) for own in (rest, target)],
    }


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


def _quality(rows: Iterable[Scored]) -> Mapping[str, float]:
    known = list(rows)
    perplexities = [s.perplexity for s in known if s.perplexity is not None]
    return {
        "coherence": fmean(s.coherence for s in known) if known else math.nan,
        "perplexity": median(perplexities) if perplexities else math.nan,
    }


def _system_prompt(data: ScoredRun, gate: str) -> str | None:
    found = (c for c in data.run.conditions if any(g.name == gate for g in c.gates))
    return next((c.system_prompt for c in found), None)
