"""All numbers of a run as one JSON value; the same rows give the same value.

Rates are over all rows of a set, incoherent ones included. Differences are between the same prompts
under two conditions.
"""

from collections.abc import Mapping, Sequence

from mlx_steer.metrics.choose import broken_limits
from mlx_steer.metrics.compare import (
    against_base,
    against_plain,
    against_prompt,
    controls,
    detectable,
)
from mlx_steer.metrics.gating import FixedAnswer, fixed_answer_numbers, fixed_answers, gates
from mlx_steer.metrics.measure import Json, ScoredRun, measure, rounded
from mlx_steer.metrics.primary import by_rule, primary
from mlx_steer.metrics.verdicts import Scored, judged
from mlx_steer.run.reader import FORMAT_VERSION, RunData
from mlx_steer.run.records import Choice, ConditionRecord, GatedChoice
from mlx_steer.stats import cohens_kappa


def compute_metrics(run: RunData, scored: Mapping[str, Scored] | None = None) -> Json:
    """Every number of the report.

    Args:
        run: The run.
        scored: What `judged(run)` gave, if it is at hand.

    Returns:
        A JSON value: floats to 6 significant digits, None for what is not a number. It holds no
        times and no versions.
    """
    data = ScoredRun(run, judged(run) if scored is None else scored)
    tested = data.with_rows("test")
    main = primary(data, tested)
    names = {name for name in main.values() if name}
    fixed = fixed_answers(data, tested)
    differences = against_base(data, tested, names, {one.name: one.shown for one in fixed})
    value: Json = {
        "format_version": FORMAT_VERSION,
        "behavior": {
            "name": run.behavior.name,
            "title": run.behavior.title,
            "verdicts": {
                word: run.behavior.verdict_word(word) for word in ("shown", "absent", "incoherent")
            },
            "sets": {
                word: run.behavior.set_word(word) for word in ("target", "other", "borderline")
            },
        },
        "model": run.manifest.get("model"),
        "rows": _row_counts(run),
        "vectors": _vectors(run),
        "limits": run.config.sweep.limits.model_dump(),
        "alpha": run.config.statistics.alpha,
        "select": _select(data),
        "test": {
            "conditions": [
                {**measure(data, c, "test"), "against_base": differences.get(c.name)}
                for c in tested
            ],
            "fixed": [
                fixed_answer_numbers(
                    data, one, _steered(one, tested, main["gated"]), differences.get(one.name)
                )
                for one in fixed
            ],
            "primary": main,
            "by_rule": by_rule(data, "test", "steering"),
            "detectable": detectable(data, sum(name in names for name in differences)),
        },
        "against_prompt": against_prompt(data, tested, main),
        "against_plain": against_plain(data, tested, main),
        "gates": gates(data),
        "controls": controls(data, tested),
        "judge": _agreement(list(data.scored.values())),
    }
    numbers: Json = rounded(value)
    return numbers


def _row_counts(run: RunData) -> Json:
    missing = {c.name: sum(key not in run.rows for key in c.rows.values()) for c in run.conditions}
    named = {key for c in run.conditions for key in c.rows.values()}
    return {
        "expected": len(named),
        "present": len(run.rows),
        "missing": len(named) - len(run.rows),
        "missing_by_condition": {name: count for name, count in missing.items() if count},
        "stale": run.stale,
    }


def _vectors(run: RunData) -> Json | None:
    vectors = run.vectors
    if vectors is None:
        return None
    strengths = sorted({*run.config.sweep.strengths, *run.config.compare.strengths})
    about = vectors.metadata
    return {
        "behavior": about.behavior,
        "method": about.method,
        "token_position": about.token_position,
        "dataset": about.dataset.model_dump() if about.dataset else None,
        "hidden_size": about.hidden_size,
        "num_layers": about.num_layers,
        "strengths": strengths,
        "layers": [
            {
                "layer": layer,
                "norm": vector.norm,
                "hidden_norm": vector.hidden_norm,
                "relative_dose": [vector.relative_dose(strength) for strength in strengths],
                "separation": run.separation.get(layer),
            }
            for layer, vector in vectors.items()
        ],
    }


def _select(data: ScoredRun) -> Json:
    """The sweep; what the run chose from it, and what the rule chooses from the present verdicts.

    The two differ when the judge or a person's labels changed after the sweep.
    """
    choice = data.run.choice
    chosen: Json | None = None
    if choice is not None:
        chosen = {**choice.model_dump(), "condition": _named(data, "steering", choice)}
        if choice.gated is not None:
            chosen["gated"]["condition"] = _named(data, "gated", choice.gated)
    return {
        "conditions": [_swept(data, c) for c in data.with_rows("select")],
        "choice": chosen,
        "by_rule": by_rule(data, "select", "steering"),
        "gated_by_rule": by_rule(data, "select", "gated"),
        "system_prompt": by_rule(data, "select", "prompt"),
    }


def _swept(data: ScoredRun, condition: ConditionRecord) -> Json:
    """A condition of the sweep, with the limits it breaks (None where that cannot be said)."""
    value = measure(data, condition, "select")
    value["broken_limits"] = None
    if data.base is not None and condition.kind != "base":
        cell, base = data.cell(condition, "select"), data.cell(data.base, "select")
        if cell.complete and base.complete:
            limits = data.run.config.sweep.limits
            value["broken_limits"] = list(broken_limits(cell, base, limits))
    return value


def _named(data: ScoredRun, kind: str, cell: Choice | GatedChoice) -> str | None:
    """The name of the condition of a kind at a layer and strength."""
    wanted = (kind, cell.layer, cell.strength)
    found = (c.name for c in data.run.conditions if (c.kind, c.layer, c.strength) == wanted)
    return next(found, None)


def _steered(
    fixed: FixedAnswer, tested: Sequence[ConditionRecord], gated: str | None
) -> ConditionRecord:
    """The condition to compare a fixed answer with: at the chosen gated strength, if it was run."""
    chosen = next((c for c in tested if c.name == gated), fixed.condition)
    like = (fixed.condition.kind, fixed.condition.gates, chosen.layer, chosen.strength)
    found = (c for c in tested if (c.kind, c.gates, c.layer, c.strength) == like)
    return next(found, fixed.condition)


def _agreement(rows: Sequence[Scored]) -> Json:
    """The judge against a person and against a judge model, on the rows those have read."""
    person = [(s.judgement.verdict, s.human) for s in rows if s.human is not None]
    model = [(s.judgement.verdict, s.judge_model) for s in rows if s.judge_model is not None]
    return {"human": _agreed(person), "model": _agreed(model)}


def _agreed(pairs: Sequence[tuple[str, str]]) -> Json | None:
    if not pairs:
        return None
    ours, theirs = zip(*pairs, strict=True)
    return {
        "n": len(pairs),
        "agreed": sum(a == b for a, b in pairs),
        "kappa": cohens_kappa(ours, theirs),
    }
