"""Contrast pairs that the model writes itself: its answers under two opposed sentences.

After Chen et al. 2025, "Persona vectors". Of every question's two answers a pair is made, unless
one is incoherent or the judge (judge/log_ratio.py) does not tell them apart. Vectors are made of
the pairs' texts, tokenised anew and read without the sentences, so that they can be made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from mlx_steer.behaviors import Behavior, ContrastPair, PromptItem, Sentences, pairs_sha256
from mlx_steer.behaviors.two_sentences import opposed
from mlx_steer.conditions import Condition
from mlx_steer.config import BATCH_SIZE, ExtractConfig
from mlx_steer.engine.complete import completions
from mlx_steer.engine.jobs import Job, Sampling, too_long
from mlx_steer.errors import DataError
from mlx_steer.extraction.directions import METHODS
from mlx_steer.extraction.pairs import pair_states
from mlx_steer.extraction.sentence_judge import SentenceJudge
from mlx_steer.files import json_line
from mlx_steer.judge import COHERENCE_THRESHOLD
from mlx_steer.judge.coherence import coherence
from mlx_steer.judge.log_ratio import LEAST_AUC, Calibration, calibrated
from mlx_steer.model.load import Model
from mlx_steer.vectors import SteeringVectorSet
from mlx_steer.vectors.metadata import PAIRS_FILE, WrittenInfo
from mlx_steer.words import TokenPosition

FEWEST_PAIRS = 10
"""Fewer contrast pairs make no vector worth the name."""

SAMPLED_AT = 0.7
"""The temperature of answers where there are several to a question; a single one is greedy."""

SIDES = ("positive", "negative")


@dataclass(frozen=True)
class Replies:
    """Both answers to one question.

    Attributes:
        id: Of the pair that they make.
        question: What was asked.
        texts: The answers under the positive and the negative sentence.
        ratios: Their log-ratios; None for an answer without tokens.
    """

    id: str
    question: PromptItem
    texts: tuple[str, str]
    ratios: tuple[float | None, float | None]


@dataclass(frozen=True)
class Written:
    """The pairs that a model wrote.

    Attributes:
        pairs: Those that are kept.
        calibration: The judge, from all coherent answers.
        dropped: How many pairs were left out, by reason.
        info: All of it as the vectors' metadata say it.
    """

    pairs: tuple[ContrastPair, ...]
    calibration: Calibration
    dropped: dict[str, int]
    info: WrittenInfo

    def behavior(self, behavior: Behavior) -> Behavior:
        """The behavior with these pairs."""
        return replace(behavior, pairs=self.pairs, sha256=pairs_sha256(self.pairs))

    @property
    def file(self) -> bytes:
        """The bytes of pairs.jsonl."""
        return pairs_file(self.pairs)


def pairs_file(pairs: Sequence[ContrastPair]) -> bytes:
    """Contrast pairs as the bytes of pairs.jsonl, as a behavior's folder has it, too."""
    return "".join(json_line({k: v for k, v in vars(pair).items() if v}) for pair in pairs).encode()


def samplings(config: ExtractConfig, seed: int = 0) -> list[Sampling]:
    """How the answers to a question are made, one after the other."""
    if config.answers == 1:
        return [Sampling(config.answer_tokens)]
    return [
        Sampling(config.answer_tokens, SAMPLED_AT, seed + number)
        for number in range(config.answers)
    ]


def pair_id(question: PromptItem, number: int) -> str:
    """The name of the pair of a question's answers, counted from 0."""
    return question.id if number == 0 else f"{question.id}.{number + 1}"


def written(
    replies: Sequence[Replies], sentences: Sentences, config: ExtractConfig, seed: int, model: str
) -> Written:
    """The pairs that are fit to make a vector of, and the judge that says so.

    Args:
        replies: Both answers to every question.
        sentences: Under which they were given.
        config: How they were made.
        seed: Of the sampling.
        model: The model's name, for messages.

    Raises:
        DataError: If the judge does not tell the answers apart, or too few pairs are left.
    """
    fluent = [
        (one, (one.ratios[0], one.ratios[1]))
        for one in replies
        if all(coherence(text) >= COHERENCE_THRESHOLD for text in one.texts)
        and one.ratios[0] is not None
        and one.ratios[1] is not None
    ]
    dropped = {"incoherent": len(replies) - len(fluent)}
    least = min(FEWEST_PAIRS, len(replies))
    if len(fluent) < max(2, least):
        raise DataError(
            f"only {len(fluent)} of {len(replies)} pairs of answers by {model} are coherent, and "
            f"{least} are needed; {_examples(replies)}; use other sentences or a larger model"
        )
    numbers = [ratios for _, ratios in fluent]
    found = calibrated(numbers, [one.question.id for one, _ in fluent])
    if found.auc.value < LEAST_AUC:
        same = sum(one.texts[0] == one.texts[1] for one in replies)
        alike = f" ({same} of {len(replies)} answers are the same)" if same else ""
        raise DataError(
            f"{model} cannot tell the two sentences' answers apart{alike}: AUC "
            f"{found.auc.value:.2f} on {len(fluent)} questions, at least {LEAST_AUC} is needed; "
            f"{_examples(replies)}; use sentences that are further apart, or a model that follows "
            "system prompts better"
        )
    kept = [one for (one, _), told in zip(fluent, found.told, strict=True) if told]
    dropped["not told apart"] = len(fluent) - len(kept)
    if len(kept) < least:
        others = [one for (one, _), told in zip(fluent, found.told, strict=True) if not told]
        raise DataError(
            f"only {len(kept)} of {len(replies)} pairs of answers by {model} are told apart, and "
            f"{least} are needed; {_examples(others)}; use sentences that are further apart, or "
            "more answers (--answers)"
        )
    pairs = tuple(
        ContrastPair(one.id, one.question.prompt, *one.texts, one.question.category) for one in kept
    )
    sampling = samplings(config, seed)[0]
    info = WrittenInfo(
        file=PAIRS_FILE,
        sha256=hashlib.sha256(pairs_file(pairs)).hexdigest(),
        positive=sentences.positive,
        negative=sentences.negative,
        questions=len({one.question.id for one in replies}),
        answers=config.answers,
        answer_tokens=config.answer_tokens,
        temperature=sampling.temperature,
        seed=seed,
        dropped=dropped,
        threshold=found.threshold,
        auc=round(found.auc.value, 6),
    )
    return Written(pairs, found, dropped, info)


def write_pairs(
    model: Model,
    behavior: Behavior,
    config: ExtractConfig,
    *,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    on_tokens: Callable[[int], None] = lambda count: None,
) -> Written:
    """Have the model answer a behavior's questions under both sentences, and make pairs of that.

    Args:
        model: The model.
        behavior: Of two sentences.
        config: How many answers, and how long.
        seed: Of the sampling, where there are several.
        batch_size: Rows decoded at a time.
        on_tokens: Called after each step with the number of tokens it made.

    Raises:
        DataError: See `written`; or if a sentence is too long for the model.
    """
    assert behavior.sentences is not None
    sentences, questions = behavior.sentences, behavior.select(split="extract")
    judge = SentenceJudge(model, sentences, questions)
    texts: dict[tuple[str, str], str] = {}
    for number, sampling in enumerate(samplings(config, seed)):
        jobs: list[Job] = []
        for side, text in zip(SIDES, (sentences.positive, sentences.negative), strict=True):
            condition = Condition(side, system_prompt=text)
            for item in questions:
                ids = tuple(model.chat.prompt_ids(item.prompt, item.system_under(text), item.tools))
                what = f"the question {item.id} under the {side} sentence"
                if reason := too_long(model, what, len(ids), sampling.max_tokens):
                    raise DataError(reason)
                jobs.append(Job(f"{side} {pair_id(item, number)}", ids, condition))
        for done in completions(model, jobs, sampling, batch_size, on_tokens):
            side, _, name = done.key.partition(" ")
            texts[side, name] = done.text
    asked = [(pair_id(item, n), item) for n in range(config.answers) for item in questions]
    told = [(f"{side} {name}", item, texts[side, name]) for name, item in asked for side in SIDES]
    ratios = {key: ratio.value for part in judge.ratios(told) for key, ratio in part}
    replies = [
        Replies(
            name,
            item,
            (texts[SIDES[0], name], texts[SIDES[1], name]),
            (ratios[f"{SIDES[0]} {name}"], ratios[f"{SIDES[1]} {name}"]),
        )
        for name, item in asked
    ]
    return written(replies, sentences, config, seed, model.info.id)


def _examples(replies: Sequence[Replies]) -> str:
    return "for example " + "; ".join(_shown(replies[:2])) if replies else "there are none"


def _shown(replies: Sequence[Replies]) -> Iterator[str]:
    for one in replies:
        first, second = (" ".join(text.split())[:80] for text in one.texts)
        yield f"{one.question.prompt!r} got {first!r} (positive) and {second!r} (negative)"


def made_again(model: Model, vectors: SteeringVectorSet) -> SteeringVectorSet:
    """Vectors made again from the pairs that the model wrote: by the same model, the same bytes.

    Args:
        model: The model.
        vectors: With `pairs`, the bytes of pairs.jsonl, and `metadata.written`.
    """
    own = vectors.metadata
    assert own.written is not None
    # Not as a user's file: it was checked by its hash, and a model may write what nobody would.
    pairs = tuple(ContrastPair(**json.loads(line)) for line in vectors.pairs.splitlines())
    behavior = opposed(own.written.positive, own.written.negative, own.behavior)
    behavior = replace(behavior, pairs=pairs, sha256=pairs_sha256(pairs))
    position: TokenPosition = "last" if own.token_position == "last" else "mean"
    states = pair_states(model, behavior, list(vectors), token_position=position)
    made = states.vectors(next(name for name in METHODS if name == own.method))
    return made.with_pairs(own.written, vectors.pairs)
