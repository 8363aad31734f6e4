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
from math import fsum

from mlx_steer.behaviors import Behavior, ContrastPair, PromptItem, Sentences, pairs_sha256
from mlx_steer.behaviors.two_sentences import NEGATIVE, POSITIVE, opposed, pair_id
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
from mlx_steer.judge.log_ratio import LEAST_AUC, Calibration, Pair, calibrated
from mlx_steer.model.load import Model
from mlx_steer.sentences import ANSWERS_TEMPERATURE
from mlx_steer.stats import auc
from mlx_steer.vectors import SteeringVectorSet
from mlx_steer.vectors.metadata import PAIRS_FILE, WrittenInfo
from mlx_steer.words import TokenPosition

FEWEST_PAIRS = 10
"""Fewer contrast pairs make no vector worth the name."""

SIDES = (POSITIVE, NEGATIVE)


@dataclass(frozen=True)
class Replies:
    """Both answers to one question.

    Attributes:
        id: Of the pair that they make.
        question: What was asked.
        texts: The answers under the positive and the negative sentence.
        ratios: Their log-ratios; None for an answer without tokens.
        masked: The same without the tokens that the sentences have too.
    """

    id: str
    question: PromptItem
    texts: tuple[str, str]
    ratios: tuple[float | None, float | None]
    masked: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True)
class Written:
    """The pairs that a model wrote.

    Attributes:
        pairs: Those that are kept.
        calibration: The judge, from all coherent answers.
        masked_auc: The area as in `calibration`, without the tokens that the sentences have too.
        half_way: The middle between the means of both sides' log-ratios.
        dropped: How many pairs were left out, by reason.
        info: All of it as the vectors' metadata say it.
    """

    pairs: tuple[ContrastPair, ...]
    calibration: Calibration
    masked_auc: float | None
    half_way: float
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
        Sampling(config.answer_tokens, ANSWERS_TEMPERATURE, seed + number)
        for number in range(config.answers)
    ]


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
    fluent, numbers = _fluent(replies, model)
    found = _told_apart(replies, fluent, numbers, model)
    kept = [one for one, told in zip(fluent, found.told, strict=True) if told]
    least = min(FEWEST_PAIRS, len(replies))
    if len(kept) < least:
        others = [one for one, told in zip(fluent, found.told, strict=True) if not told]
        raise DataError(
            f"only {len(kept)} of {len(replies)} pairs of answers by {model} are told apart, and "
            f"{least} are needed; {_examples(others)}; use sentences that are further apart, or "
            "more answers (--answers)"
        )
    pairs = tuple(
        ContrastPair(one.id, one.question.prompt, *one.texts, one.question.category) for one in kept
    )
    dropped = {
        "incoherent": len(replies) - len(fluent),
        "not told apart": len(fluent) - len(kept),
    }
    info = WrittenInfo(
        file=PAIRS_FILE,
        sha256=hashlib.sha256(pairs_file(pairs)).hexdigest(),
        positive=sentences.positive,
        negative=sentences.negative,
        questions=len({one.question.id for one in replies}),
        answers=config.answers,
        answer_tokens=config.answer_tokens,
        temperature=samplings(config, seed)[0].temperature,
        seed=seed,
        dropped=dropped,
        threshold=found.threshold,
        auc=round(found.auc.value, 6),
    )
    masked = [(p, n) for p, n in (one.masked for one in fluent) if p is not None and n is not None]
    return Written(
        pairs,
        found,
        auc([x for pair in masked for x in pair], [True, False] * len(masked)) if masked else None,
        fsum(x for pair in numbers for x in pair) / (2 * len(numbers)),
        dropped,
        info,
    )


def _fluent(replies: Sequence[Replies], model: str) -> tuple[list[Replies], list[Pair]]:
    """The replies of which both answers are coherent, and their log-ratios."""
    fluent: list[Replies] = []
    numbers: list[Pair] = []
    for one in replies:
        positive, negative = one.ratios
        if positive is None or negative is None:
            continue
        if all(coherence(text) >= COHERENCE_THRESHOLD for text in one.texts):
            fluent.append(one)
            numbers.append((positive, negative))
    least = min(FEWEST_PAIRS, len(replies))
    if len(fluent) < max(2, least):
        raise DataError(
            f"only {len(fluent)} of {len(replies)} pairs of answers by {model} are coherent, and "
            f"{least} are needed; {_examples(replies)}; use other sentences or a larger model"
        )
    return fluent, numbers


def _told_apart(
    replies: Sequence[Replies], fluent: Sequence[Replies], numbers: Sequence[Pair], model: str
) -> Calibration:
    """The judge, if it tells the two sides apart at all."""
    found = calibrated(numbers, [one.question.id for one in fluent])
    if found.auc.value >= LEAST_AUC:
        return found
    same = sum(one.texts[0] == one.texts[1] for one in replies)
    alike = f" ({same} of {len(replies)} answers are the same)" if same else ""
    raise DataError(
        f"{model} cannot tell the two sentences' answers apart{alike}: AUC "
        f"{found.auc.value:.2f} on {len(fluent)} pairs of answers, at least {LEAST_AUC} is needed; "
        f"{_examples(replies)}; use sentences that are further apart, or a model that follows "
        "system prompts better"
    )


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
                jobs.append(Job(f"{side} {pair_id(item.id, number)}", ids, condition))
        for done in completions(model, jobs, sampling, batch_size, on_tokens):
            side, _, name = done.key.partition(" ")
            texts[side, name] = done.text
    asked = [(pair_id(item.id, n), item) for n in range(config.answers) for item in questions]
    told = [(f"{side} {name}", item, texts[side, name]) for name, item in asked for side in SIDES]
    ratios = {key: ratio for part in judge.ratios(told) for key, ratio in part}
    replies = []
    for name, item in asked:
        one, other = (ratios[f"{side} {name}"] for side in SIDES)
        both = (texts[SIDES[0], name], texts[SIDES[1], name])
        replies.append(
            Replies(name, item, both, (one.value, other.value), (one.masked, other.masked))
        )
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
