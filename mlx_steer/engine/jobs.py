"""What generation is asked for and what it gives; plain data, and the order jobs are run in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from mlx_steer.conditions import Condition
from mlx_steer.config import MAX_TOKENS
from mlx_steer.engine.limits import PREFILL_TOKENS
from mlx_steer.errors import GenerationError, VectorError
from mlx_steer.model.load import Model
from mlx_steer.words import FinishReason


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_tokens: Response tokens at most.
        temperature: 0 takes the best token; above, tokens are sampled from softmax(logits / t).
        seed: Of the sampling; each row draws its own numbers, whatever its neighbours.
        top_p: Sample among the most probable tokens that together have this probability; 1: all.
        top_k: Sample among so many of the most probable tokens; 0: all.
        min_p: Sample among tokens with at least this part of the best one's probability; 0: all.

    As in mlx-lm, `top_p`, `top_k` and `min_p` look at the probabilities at temperature 1.
    """

    max_tokens: int = MAX_TOKENS
    temperature: float = 0.0
    seed: int = 0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    @property
    def narrows(self) -> bool:
        """Whether some tokens are not sampled at all."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0 or self.min_p > 0)


@dataclass(frozen=True, eq=False)
class Job:
    """One prompt under one condition.

    Attributes:
        key: Names the job; also decides its random numbers when sampling.
        ids: The prompt's token ids, generation prompt included.
        condition: Its interventions and gates; its system prompt is in `ids` already.
    """

    key: str
    ids: tuple[int, ...]
    condition: Condition


@dataclass(frozen=True)
class Completion:
    """What a job gave.

    Attributes:
        key: The job's.
        tokens: Response tokens, without the one that stopped it; thinking is among them.
        text: The response; the answer alone where the model thought first.
        finish_reason: `stop` (the model ended) or `length` (`max_tokens` reached).
        margin: Smallest gap between the two best scores of any step. In float32 it is None unless
            it is within `TIE`, and then it is the row's own, run alone.
        gates: Score minus threshold of each of the condition's gates; empty without gates.
        steered: Whether the gates let the interventions act; True without gates.
        thinking: What the model wrote before its answer; empty if it did not think.
    """

    key: str
    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    margin: float | None
    gates: tuple[float, ...] = ()
    steered: bool = True
    thinking: str = ""


def too_long(model: Model, what: str, tokens: int, new: int = 0) -> str | None:
    """Why a sequence is too long for a model, as a sentence; None if it is not.

    Args:
        model: The model.
        what: What is that long, for the sentence.
        tokens: Its length.
        new: Tokens that are to be generated after it.
    """
    if model.context is None or tokens + new <= model.context:
        return None
    limit = f"that {model.info.id} computes correctly"
    if not new:
        return f"{what} has {tokens} tokens, more than the {model.context} {limit}; shorten it"
    return (
        f"{what} has {tokens} tokens; {new} new ones exceed the {model.context} {limit}; "
        "shorten the prompt or lower max_tokens"
    )


def check_jobs(model: Model, jobs: Sequence[Job], sampling: Sampling, batch_size: int) -> None:
    """Refuse what cannot be run, before anything is.

    Raises:
        GenerationError: See `completions`.
        ModelError: See `completions`.
        VectorError: See `completions`.
    """
    if batch_size < 1:
        raise GenerationError(f"the batch size must be at least 1, not {batch_size}")
    if sampling.max_tokens < 1:
        raise GenerationError(f"max_tokens must be at least 1, not {sampling.max_tokens}")
    if not sampling.temperature >= 0:
        raise GenerationError(f"the temperature must be 0 or more, not {sampling.temperature}")
    twice = [key for key, n in Counter(job.key for job in jobs).items() if n > 1]
    if twice:
        raise GenerationError(f"two jobs have the key {twice[0]!r}; keys must be unique")
    for job in jobs:
        if len(job.ids) < 2:
            count = "no tokens" if not job.ids else "one token"
            raise GenerationError(f"the prompt of {job.key} has {count}, and needs at least two")
        reason = too_long(model, f"the prompt of {job.key}", len(job.ids), sampling.max_tokens)
        if reason:
            raise GenerationError(reason)
    for condition in {id(job.condition): job.condition for job in jobs}.values():
        arrays = [(i.layer, i.vector) for i in condition.interventions]
        for layer, array in arrays + [(g.layer, g.direction) for g in condition.gates]:
            model.layer(layer)
            if len(array) != model.hidden_size:
                raise VectorError(
                    f"condition {condition.name!r} has a vector of {len(array)} values at layer "
                    f"{layer}, but the hidden state of {model.info.id} has {model.hidden_size}"
                )


def waves(jobs: Sequence[Job], batch_size: int) -> list[list[Job]]:
    """Jobs in the groups they are admitted in.

    A prompt's conditions stay together, so that it is prefilled once; prompts of like length and
    with the same system prompt come one after another. A wave is about a quarter of the batch:
    rows that end make room early, and prefilling stays efficient.
    """
    target = max(1, batch_size // 4)
    done: list[list[Job]] = []
    order = sorted(jobs, key=lambda j: (j.condition.system_prompt or "", len(j.ids), j.ids, j.key))
    for _, same_system in groupby(order, key=lambda j: j.condition.system_prompt or ""):
        wave: list[Job] = []
        for ids, group in groupby(same_system, key=lambda j: j.ids):
            members = list(group)
            full = len(wave) + len(members) > target
            heavy = (len(wave) + len(members)) * len(ids) > PREFILL_TOKENS
            if wave and (full or heavy):
                done.append(wave)
                wave = []
            wave += members
            while len(wave) > batch_size:
                done.append(wave[:batch_size])
                wave = wave[batch_size:]
        if wave:
            done.append(wave)
    return done


def take_waves(waiting: list[list[Job]], room: int) -> list[Job]:
    """The next waves as one, as far as there is room for them; they are taken from `waiting`.

    Prefilling many rows at once is faster, as long as they share a system prompt and their tokens
    are not too many. Empty if there is no room for the first wave.
    """
    taken: list[Job] = []
    while waiting and len(taken) + len(waiting[0]) <= room:
        new = waiting[0]
        longest = max(len(job.ids) for job in (*taken, *new))
        systems = {job.condition.system_prompt or "" for job in (*taken[:1], new[0])}
        if taken and (len(systems) > 1 or (len(taken) + len(new)) * longest > PREFILL_TOKENS):
            break
        taken += waiting.pop(0)
    return taken
