"""All numbers of a run as one value; the same rows give the same value.

Rates are over all rows of a set, incoherent ones included. Differences are between the same prompts
under two conditions.
"""

from collections.abc import Mapping, Sequence

from mlx_steer.metrics.answer_rule import decide
from mlx_steer.metrics.choose import broken_limits, held_to
from mlx_steer.metrics.compare import (
    against_base,
    against_plain,
    against_prompt,
    controls,
    detectable,
)
from mlx_steer.metrics.gate_numbers import (
    FixedAnswer,
    fixed_answer_numbers,
    fixed_answers,
    gates,
)
from mlx_steer.metrics.halves import (
    Chosen,
    ChosenCell,
    ComparedCondition,
    Comparison,
    Primary,
    Sweep,
    SweptCondition,
)
from mlx_steer.metrics.measure import ScoredRun, agreement, measure, price, price_floor
from mlx_steer.metrics.metrics_file import (
    JudgeAgreement,
    LayerNumbers,
    Metrics,
    RowCounts,
    VectorNumbers,
    Words,
)
from mlx_steer.metrics.numbers import MEASURES
from mlx_steer.metrics.primary import by_rule, primary
from mlx_steer.metrics.sentence_numbers import sentence_numbers
from mlx_steer.metrics.verdicts import Scored, judged
from mlx_steer.run.reader import RunData
from mlx_steer.run.records import BehaviorRecord, Choice, ConditionRecord, GatedChoice
from mlx_steer.words import Verdict


def compute_metrics(run: RunData, scored: Mapping[str, Scored] | None = None) -> Metrics:
    """Every number of the report.

    Args:
        run: The run.
        scored: What `judged(run)` gave, if it is at hand.

    Returns:
        The numbers; they hold no times and no versions.
    """
    data = ScoredRun(run, judged(run) if scored is None else scored)
    tested = data.with_rows("test")
    main = primary(data, tested)
    select, test = _select(data), _test(data, tested, main)
    against, other = against_prompt(data, tested, main), controls(data, tested)
    return Metrics(
        behavior=_words(run.behavior),
        model=run.manifest.model,
        rows=_row_counts(run),
        vectors=_vectors(run),
        limits=run.config.sweep.limits,
        alpha=run.config.statistics.alpha,
        select=select,
        test=test,
        against_prompt=against,
        against_plain=tuple(against_plain(data, tested, main)),
        gates=tuple(gates(data)),
        controls=other,
        judge=_agreement(list(data.scored.values())),
        sentences=sentence_numbers(data, [c.name for c in tested]),
        answer=decide(data, select, test, against, other),
    )


def _words(behavior: BehaviorRecord) -> Words:
    verdicts: tuple[Verdict, ...] = ("shown", "absent", "incoherent")
    return Words(
        name=behavior.name,
        title=behavior.title,
        verdicts={verdict: behavior.verdict_word(verdict) for verdict in verdicts},
        sets={prompt_set: behavior.set_word(prompt_set) for prompt_set in MEASURES.values()},
    )


def _row_counts(run: RunData) -> RowCounts:
    missing = {c.name: sum(key not in run.rows for key in c.rows.values()) for c in run.conditions}
    named = {key for c in run.conditions for key in c.rows.values()}
    return RowCounts(
        expected=len(named),
        present=len(run.rows),
        missing=len(named) - len(run.rows),
        missing_by_condition={name: count for name, count in missing.items() if count},
        stale=run.stale,
    )


def _vectors(run: RunData) -> VectorNumbers | None:
    vectors = run.vectors
    if vectors is None:
        return None
    swept = run.config.sweep.strengths
    named = () if swept == "auto" else swept
    strengths = sorted({*named, *run.config.compare.strengths})
    about = vectors.metadata
    return VectorNumbers(
        behavior=about.behavior,
        method=about.method,
        token_position=about.token_position,
        dataset=about.dataset,
        hidden_size=about.hidden_size,
        num_layers=about.num_layers,
        strengths=tuple(strengths),
        layers=tuple(
            LayerNumbers(
                layer=layer,
                norm=vector.norm,
                hidden_norm=vector.hidden_norm,
                relative_dose=tuple(vector.relative_dose(strength) for strength in strengths),
                separation=run.separation.get(layer),
            )
            for layer, vector in vectors.items()
        ),
    )


# --- the select half ---


def _select(data: ScoredRun) -> Sweep:
    return Sweep(
        conditions=tuple(_swept(data, c) for c in data.with_rows("select")),
        choice=_choice(data),
        by_rule=by_rule(data, "select", "steering"),
        gated_by_rule=by_rule(data, "select", "gated"),
        system_prompt=by_rule(data, "select", "prompt"),
    )


def _swept(data: ScoredRun, condition: ConditionRecord) -> SweptCondition:
    """A condition of the sweep, with the limits it breaks."""
    broken = None
    if data.base is not None and condition.kind != "base":
        cell, base = data.cell(condition, "select"), data.cell(data.base, "select")
        base = held_to(data.run, data.scored, base, "select")
        if cell.complete and base.complete:
            broken = broken_limits(cell, base, data.run.config.sweep.limits)
    return SweptCondition(**dict(measure(data, condition, "select")), broken_limits=broken)


def _choice(data: ScoredRun) -> Chosen | None:
    """What the run recorded of its choice."""
    choice = data.run.choice
    if choice is None:
        return None
    chosen, gated = _chosen(data, "steering", choice), choice.gated
    return Chosen(
        **dict(chosen),
        system_prompt=choice.system_prompt,
        gated=_chosen(data, "gated", gated) if gated else None,
    )


def _chosen(data: ScoredRun, kind: str, cell: Choice | GatedChoice) -> ChosenCell:
    """A recorded cell with the name of its condition."""
    wanted = (kind, cell.layer, cell.strength)
    found = (c.name for c in data.run.conditions if (c.kind, c.layer, c.strength) == wanted)
    return ChosenCell(
        layer=cell.layer,
        strength=cell.strength,
        met_limits=cell.met_limits,
        condition=next(found, None),
    )


# --- the test half ---


def _test(data: ScoredRun, tested: Sequence[ConditionRecord], main: Primary) -> Comparison:
    fixed = fixed_answers(data, tested)
    differences = against_base(data, tested, main.names, {one.name: one.shown for one in fixed})
    return Comparison(
        conditions=tuple(
            ComparedCondition(
                **dict(measure(data, c, "test")),
                against_base=differences.get(c.name),
                price=None if c.kind == "base" else price(data, c),
            )
            for c in tested
        ),
        fixed=tuple(
            fixed_answer_numbers(
                data, one, _steered(one, tested, main.gated), differences.get(one.name)
            )
            for one in fixed
        ),
        primary=main,
        by_rule=by_rule(data, "test", "steering"),
        detectable=detectable(data, sum(name in main.names for name in differences)),
        price_floor=price_floor(data),
    )


def _steered(
    fixed: FixedAnswer, tested: Sequence[ConditionRecord], gated: str | None
) -> ConditionRecord:
    """The condition to compare a fixed answer with: at the chosen gated strength, if it was run."""
    chosen = next((c for c in tested if c.name == gated), fixed.condition)
    like = (fixed.condition.kind, fixed.condition.gates, chosen.layer, chosen.strength)
    found = (c for c in tested if (c.kind, c.gates, c.layer, c.strength) == like)
    return next(found, fixed.condition)


def _agreement(rows: Sequence[Scored]) -> JudgeAgreement:
    """The judge against a person and against a judge model, on the rows those have read."""
    person = [(s.judgement.verdict, s.human) for s in rows if s.human is not None]
    model = [(s.judgement.verdict, s.judge_model) for s in rows if s.judge_model is not None]
    return JudgeAgreement(human=agreement(person), model=agreement(model))
