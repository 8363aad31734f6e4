"""A verdict for every row of a run: the judge's, and a person's where there is one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mlx_steer.behaviors import PromptItem
from mlx_steer.judge import COHERENCE_THRESHOLD, Judgement, judge_response
from mlx_steer.judge.coherence import coherence
from mlx_steer.judge.log_ratio import judge_ratio
from mlx_steer.run.reader import RunData
from mlx_steer.run.records import ConditionRecord, Row
from mlx_steer.words import Split, Verdict


@dataclass(frozen=True)
class Scored:
    """What is known of one row beyond its text.

    Attributes:
        judgement: The judge's.
        coherence: In [0, 1].
        verdict: A person's if there is one, else the judge's.
        perplexity: Of the response under the unsteered model; None if not computed, or empty.
        human: A person's verdict.
        judge_model: The verdict of a judge model.
        rules: Of a behavior of two sentences: the verdict of a judge of rules beside the log-ratio.
        masked: The log-ratio without the tokens that the two sentences have too.
    """

    judgement: Judgement
    coherence: float
    verdict: Verdict
    perplexity: float | None = None
    human: Verdict | None = None
    judge_model: Verdict | None = None
    rules: Verdict | None = None
    masked: float | None = None


def judged(run: RunData) -> dict[str, Scored]:
    """Judge every row that is there, by row key.

    Raises:
        DataError: If the run's behavior names a judge there is not.
    """
    scored: dict[str, Scored] = {}
    for condition in run.conditions:
        for prompt_id, key in condition.rows.items():
            row = run.rows.get(key)
            if row is None or key in scored or run.prompts[prompt_id].split == "facts":
                continue
            if run.behavior.sentences is not None:
                if (found := _by_sentences(run, prompt_id, row)) is not None:
                    scored[key] = found
                continue
            judgement = judge_response(run.behavior.judge, run.prompts[prompt_id], row.text)
            human = run.labels.get(key)
            score = run.scores.get(key)
            scored[key] = Scored(
                judgement=judgement,
                coherence=coherence(row.text),
                verdict=human or judgement.verdict,
                perplexity=score.perplexity if score else None,
                human=human,
                judge_model=score.judge_model if score else None,
            )
    return scored


def _by_sentences(run: RunData, prompt_id: str, row: Row) -> Scored | None:
    """The verdict of a behavior of two sentences; None before the row's log-ratio is there."""
    said, score = run.behavior.sentences, run.scores.get(row.key)
    known = score is not None and score.says("log_ratio")
    if said is None or said.threshold is None or score is None or not known:
        return None
    if score.sentences != said.judge:
        return None
    judgement = judge_ratio(row.text, score.log_ratio, said.threshold, COHERENCE_THRESHOLD)
    human = run.labels.get(row.key)
    rules = None
    if said.rules is not None:
        rules = judge_response(said.rules, run.prompts[prompt_id], row.text).verdict
    return Scored(
        judgement=judgement,
        coherence=coherence(row.text),
        verdict=human or judgement.verdict,
        perplexity=score.perplexity,
        human=human,
        judge_model=score.judge_model,
        rules=rules,
        masked=score.masked,
    )


def rows_of(
    run: RunData, scored: Mapping[str, Scored], condition: ConditionRecord, split: Split
) -> Iterator[tuple[PromptItem, Scored]]:
    """A condition's rows of one split that are there, in the order of the prompts."""
    for prompt_id, item in run.prompts.items():
        if item.split == split and (row := scored.get(condition.rows.get(prompt_id, ""))):
            yield item, row
