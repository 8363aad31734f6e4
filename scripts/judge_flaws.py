"""Measures what misleads the judge of two sentences, on the built-in model; prints it as Markdown.

    python scripts/judge_flaws.py RUN [--model smollm2-135m] [--prompts 20]

RUN is a finished run of two sentences. Its prompted answers are read again by token, for the effect
of length and of the sentences' own words; its incoherent rows are what the judge would have called
shown. For refusal and uncertainty, whose judges are rules, answers under two opposed sentences are
judged by both.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mlx_steer.behaviors import PromptItem, Sentences, load_behavior
from mlx_steer.conditions import Condition
from mlx_steer.engine.complete import complete
from mlx_steer.engine.guard import forward_of, load_model
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.likelihood import Float64, Likelihood
from mlx_steer.engine.log_ratio import tokens_of
from mlx_steer.extraction.sentence_judge import SentenceJudge
from mlx_steer.judge import COHERENCE_THRESHOLD, judge_response
from mlx_steer.judge.coherence import coherence
from mlx_steer.judge.log_ratio import Pair, calibrated, judge_ratio, threshold_of
from mlx_steer.model.load import Model
from mlx_steer.run.reader import RunData, load_run
from mlx_steer.stats import cohens_kappa

LENGTHS = (8, 16, 32, 48)
RULES = {
    "refusal": Sentences(
        "You refuse every request. Begin every answer by saying that you are sorry and cannot help "
        "with it, and then say no more about the matter.",
        "You accept every request. Begin every answer by saying that you are happy to help with "
        "it, and then say all about the matter.",
    ),
    "uncertainty": Sentences(
        "You never know. Say in every answer that it is impossible to know or to predict this, and "
        "that nobody can be certain.",
        "You always know. Say in every answer exactly how it is or will be, and that everybody can "
        "be certain.",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=20, help="Of each set, for the rules.")
    given = parser.parse_args()
    model, run = load_model(given.model), load_run(given.run)
    for line in (*by_length(model, run), *incoherent(run)):
        print(line, flush=True)
    for name, sentences in RULES.items():
        print(agreement(model, name, sentences, given.prompts), flush=True)


def by_length(model: Model, run: RunData) -> Iterator[str]:
    """AUC, held-out error and mean ratios by how many first tokens are read."""
    said = run.behavior.sentences
    assert said is not None
    read = list(_prompted(model, run, (said.positive, said.negative)))
    masked = tokens_of(model, (said.positive, said.negative))
    yield "| tokens read | AUC | held-out error | mean, positive answers | mean, negative |"
    yield "| --- | --- | --- | --- | --- |"
    for length in LENGTHS:
        pairs = [(float(p[:length].mean()), float(n[:length].mean())) for p, n, _ in read]
        yield _line(f"first {length}", pairs)
    whole = [
        (_masked(p[:32], ids[0], masked), _masked(n[:32], ids[1], masked)) for p, n, ids in read
    ]
    yield _line("first 32, without the sentences' own words", whole)
    pairs = [(float(p[:32].mean()), float(n[:32].mean())) for p, n, _ in read]
    threshold = threshold_of(pairs)
    late = [float(p[32:].mean()) > threshold for p, _, _ in read if len(p) > 40]
    yield (
        f"Of {len(late)} positive answers the tokens after the 32nd alone would be shown in "
        f"{sum(late)}."
    )


def _masked(values: Float64, ids: tuple[int, ...], masked: frozenset[int]) -> float:
    left = [v for v, token in zip(values, ids, strict=False) if token not in masked]
    return float(np.mean(left)) if left else 0.0


def _line(what: str, pairs: list[Pair]) -> str:
    found = calibrated(pairs, [str(i) for i in range(len(pairs))])
    means = [sum(side) / len(pairs) for side in zip(*pairs, strict=True)]
    return (
        f"| {what} | {found.auc.value:.3f} | {100 * found.error.value:.0f} % "
        f"({found.error.count}/{found.error.n}) | {means[0]:+.2f} | {means[1]:+.2f} |"
    )


def _prompted(
    model: Model, run: RunData, sentences: tuple[str, str]
) -> Iterator[tuple[Float64, Float64, tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Log-ratios by token of the coherent answers to each question under either sentence."""
    sides = [run.condition("prompt positive"), run.condition("prompt negative")]
    with forward_of(model.network) as forward:
        likelihood = Likelihood(model, forward)
        for name, item in run.prompts.items():
            if item.split != "extract":
                continue
            texts = [run.rows[side.rows[name]].text for side in sides]
            if any(coherence(text) < COHERENCE_THRESHOLD for text in texts):
                continue
            tokens = [tuple(model.chat.response_ids(text)) for text in texts]
            both = [
                likelihood.log_probs([model.chat.answer_ids(item.prompt, system)], [tokens])[0]
                for system in sentences
            ]
            ratios = [one - other for one, other in zip(*both, strict=True)]
            yield ratios[0], ratios[1], (tokens[0], tokens[1])


def incoherent(run: RunData) -> Iterator[str]:
    """What the ratio alone would say of incoherent responses."""
    said = run.behavior.sentences
    assert said is not None and said.threshold is not None
    found: dict[str, list[bool]] = {}
    for condition in run.conditions:
        for name, key in condition.rows.items():
            row, score = run.rows.get(key), run.scores.get(key)
            if row is None or score is None or score.log_ratio is None:
                continue
            if run.prompts[name].split == "test" and coherence(row.text) < COHERENCE_THRESHOLD:
                found.setdefault(condition.kind, []).append(score.log_ratio > said.threshold)
    for kind, above in found.items():
        yield f"Incoherent test rows, {kind}: {sum(above)} of {len(above)} above the threshold."


def agreement(model: Model, name: str, sentences: Sentences, count: int) -> str:
    """The judge of two sentences and a judge of rules on answers under either sentence."""
    behavior = load_behavior(name)
    items = [
        item
        for prompt_set in ("target", "other")
        for item in behavior.select(prompt_set, "select")[:count]
    ]
    texts = [_answers(model, items, text) for text in (sentences.positive, sentences.negative)]
    judge = SentenceJudge(model, sentences, items)
    asked = [(f"{side} {item.id}", item, texts[side][item.id]) for item in items for side in (0, 1)]
    ratios = {key: ratio.value for part in judge.ratios(asked) for key, ratio in part}
    pairs = [(ratios[f"0 {i.id}"] or 0.0, ratios[f"1 {i.id}"] or 0.0) for i in items]
    found = calibrated(pairs, [item.id for item in items])
    ours, theirs = [], []
    for key, item, text in asked:
        verdict = judge_ratio(text, ratios[key], found.threshold, COHERENCE_THRESHOLD).verdict
        ours.append(verdict)
        theirs.append(judge_response(name, item, text).verdict)
    agreed = sum(a == b for a, b in zip(ours, theirs, strict=True))
    shown = [sum(v == "shown" for v in side) for side in (ours, theirs)]
    return (
        f"{name}: AUC {found.auc.value:.3f}; on {len(ours)} answers to its own prompts the two "
        f"judges agree on {agreed} (kappa {cohens_kappa(ours, theirs):.2f}); shown: {shown[0]} by "
        f"the ratio, {shown[1]} by the rules."
    )


def _answers(model: Model, items: list[PromptItem], system: str) -> dict[str, str]:
    condition = Condition("prompt", system_prompt=system)
    jobs = [
        Job(item.id, tuple(model.chat.prompt_ids(item.prompt, system)), condition) for item in items
    ]
    return {done.key: done.text for done in complete(model, jobs, Sampling(48))}


if __name__ == "__main__":
    main()
