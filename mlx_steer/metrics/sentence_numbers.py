"""What a behavior of two sentences has beside rates: how well the model judges, and the facts."""

from collections.abc import Sequence

from mlx_steer.judge.facts import is_right
from mlx_steer.metrics.measure import ScoredRun, agreement, share
from mlx_steer.metrics.metrics_file import FactsKnown, SentenceNumbers
from mlx_steer.metrics.numbers import Share
from mlx_steer.run.records import ConditionRecord
from mlx_steer.run.sentences import SentencesRecord


def sentence_numbers(data: ScoredRun, main: Sequence[str]) -> SentenceNumbers | None:
    """The numbers; None of another behavior, or before the judge is known.

    Args:
        data: The run.
        main: Names of the conditions of which masked ratios are counted, in order.
    """
    said = data.run.behavior.sentences
    if said is None or said.threshold is None or said.auc is None or said.error is None:
        return None
    conditions = {c.name: c for c in data.run.conditions}
    return SentenceNumbers(
        threshold=said.threshold,
        tokens=said.tokens,
        auc=(said.auc.value, said.auc.low, said.auc.high),
        masked_auc=said.masked_auc,
        error=(said.error.value, said.error.low, said.error.high),
        questions=said.questions,
        pairs=said.pairs,
        dropped=said.dropped,
        base_above_half_way=_above_half_way(data, said),
        masked={name: _masked(data, conditions[name], said) for name in main if name in conditions},
        rules=agreement(
            [(s.judgement.verdict, s.rules) for s in data.scored.values() if s.rules is not None]
        ),
        facts=tuple(known for c in data.ordered if (known := _facts(data, c)).right.n),
    )


def _above_half_way(data: ScoredRun, said: SentencesRecord) -> Share:
    """Base on the test half, judged by the half-way threshold in place of the chosen one."""
    rows = data.rows(data.base, "test") if data.base else []
    ratios = [data.run.scores[_key(data.base, item.id)].log_ratio for item, _ in rows]
    return share(
        s.judgement.verdict != "incoherent" and ratio is not None and ratio > (said.half_way or 0)
        for (_, s), ratio in zip(rows, ratios, strict=True)
    )


def _key(condition: ConditionRecord | None, prompt_id: str) -> str:
    return condition.rows[prompt_id] if condition else ""


def _masked(data: ScoredRun, condition: ConditionRecord, said: SentencesRecord) -> Share:
    """Test rows shown by the log-ratio without the tokens that the sentences have too."""
    limit = said.threshold or 0.0
    return share(
        s.judgement.verdict != "incoherent" and s.masked is not None and s.masked > limit
        for _, s in data.rows(condition, "test")
    )


def _facts(data: ScoredRun, condition: ConditionRecord) -> FactsKnown:
    """The share of short factual questions that are answered right."""
    asked = [
        (data.run.prompts[name], data.run.rows[key])
        for name, key in condition.rows.items()
        if data.run.prompts[name].split == "facts" and key in data.run.rows
    ]
    right = share(is_right(item.check, row.text) for item, row in asked)
    return FactsKnown(name=condition.name, kind=condition.kind, right=right)
