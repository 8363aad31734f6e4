"""What steering costs where it should do nothing: KL(base || steered) over base's own responses.

Teacher-forced: base's response is read under each condition, and at each of its tokens (the one
that ends the turn included, if base ended it) the two distributions of the next token are compared,
in nats. Base and all conditions of a prompt are read side by side and nothing is kept, so the
digits of a prompt do not depend on which other prompts are measured.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_steer.conditions import Condition
from mlx_steer.engine.admit import Admission
from mlx_steer.engine.batch import Batch
from mlx_steer.engine.forward import Call, Forward
from mlx_steer.engine.guard import forward_of
from mlx_steer.engine.jobs import Job, Sampling, check_jobs
from mlx_steer.engine.limits import LOGITS_AT_ONCE
from mlx_steer.model.load import Model

_BASE, _AGAIN = Condition("base"), Condition("base again")


@dataclass(frozen=True)
class Reference:
    """Base's response to a prompt.

    Attributes:
        prompt_id: The prompt's.
        ids: Its token ids, generation prompt included.
        tokens: The response's, without the one that ended it.
        ended: Whether the model ended it; that prediction is compared too.
        under: By condition's name: the token ids of the prompt as that condition has it, with its
            system prompt; conditions that are not named are left out. None: all, under `ids`.
    """

    prompt_id: str
    ids: tuple[int, ...]
    tokens: tuple[int, ...]
    ended: bool
    under: Mapping[str, tuple[int, ...]] | None = None


@dataclass(frozen=True)
class Divergence:
    """How far conditions are from base on one prompt.

    Attributes:
        prompt_id: The prompt's.
        tokens: Predictions that were compared.
        nats: By condition's name: the mean KL divergence of a prediction.
        opened: By the name of a gated condition: whether its gates opened; shut, it is base.
        floor: Base against itself in another row: what rounding alone makes.
    """

    prompt_id: str
    tokens: int
    nats: Mapping[str, float]
    opened: Mapping[str, bool]
    floor: float


def divergences(
    model: Model,
    references: Sequence[Reference],
    conditions: Sequence[Condition],
    held: Collection[str] = (),
) -> Iterator[Divergence]:
    """Measure conditions against base on base's own responses.

    Args:
        model: The model.
        references: All prompts there are; their common beginning is read once.
        conditions: Their names are unique.
        held: Ids of prompts that have been measured before, which are left out.

    Yields:
        One value for each prompt that is not held and whose response is not empty.

    Raises:
        GenerationError: If a prompt and its response exceed the model's context.
        VectorError: If a vector does not fit the model.
    """
    jobs = {one.prompt_id: _jobs(one, conditions) for one in references}
    sampling = Sampling(max((len(one.tokens) for one in references), default=1) or 1)
    check_jobs(model, [job for group in jobs.values() for job in group], sampling, 1)
    with forward_of(model.network) as forward:
        known = [job for group in jobs.values() for job in group]
        admission = Admission(model, forward, sampling, known)
        for one in references:
            if one.prompt_id not in held and one.tokens:
                yield _measured(model, forward, admission, one, jobs[one.prompt_id])
                mx.clear_cache()


def _jobs(one: Reference, conditions: Sequence[Condition]) -> list[Job]:
    """Base, base again, and every condition that is measured on this prompt."""
    under = {c.name: one.ids for c in conditions} if one.under is None else one.under
    every = [(_BASE, one.ids), (_AGAIN, one.ids)]
    every += [(c, under[c.name]) for c in conditions if c.name in under]
    return [Job(f"{one.prompt_id} {i}", ids, c) for i, (c, ids) in enumerate(every)]


def _measured(
    model: Model, forward: Forward, admission: Admission, one: Reference, jobs: Sequence[Job]
) -> Divergence:
    count = len(one.tokens) + one.ended
    vocabulary = int(model.config.get("vocab_size") or 50_000)
    at_once = max(1, LOGITS_AT_ONCE // (count * vocabulary) - 1)
    base, *others = jobs
    nats: dict[str, float] = {}
    opened: dict[str, bool] = {}
    for i in range(0, len(others), at_once):
        # Prompts under different system prompts begin differently, and are admitted apart.
        waves: dict[tuple[int, ...], list[Job]] = {}
        for job in [base, *others[i : i + at_once]]:
            waves.setdefault(job.ids, []).append(job)
        batch = Batch.joined([admission.admit(wave) for wave in waves.values()])
        logits = _read(model, forward, batch, one)
        rows = {row.job.key: place for place, row in enumerate(batch.rows)}
        expected = _log_probabilities(logits[rows[base.key]])
        for job in others[i : i + at_once]:
            row = batch.rows[rows[job.key]]
            if job.condition.gates:
                opened[job.condition.name] = row.steered
            far = _kl(expected, logits[rows[job.key]]) if row.steered else 0.0
            nats[job.condition.name] = float(f"{far:.6g}")
    return Divergence(one.prompt_id, count, nats, opened, nats.pop(_AGAIN.name))


def _read(model: Model, forward: Forward, batch: Batch, one: Reference) -> mx.array:
    """Logits at every compared position: (rows, positions, vocabulary)."""
    count = cut = len(one.tokens) + one.ended
    sequences = [[row.job.ids[-1], *one.tokens][:count] for row in batch.rows]
    if any(row.answer_plans is not None for row in batch.rows):
        cut = 1 + _thought(one.tokens, model.chat.thinking_end or ())
    parts = []
    for start, end in ((0, cut), (cut, count)):
        if start >= end:
            continue
        if start:
            for row in batch.rows:
                row.answer_start = len(row.job.ids) - 1 + cut
            batch.begin_answers()
        some = [ids[start:end] for ids in sequences]
        parts.append(forward.read(some, batch.caches, Call(batch.plans)).logits)
    return mx.concatenate(parts, axis=1)


def _thought(tokens: Sequence[int], end: tuple[int, ...]) -> int:
    """The place of the token that ends the thinking; how many there are if none does."""
    ends = (i for i in range(len(tokens)) if tuple(tokens[: i + 1][-len(end) :]) == end)
    return next(ends, len(tokens))


def _kl(base: NDArray[np.float32], steered: mx.array) -> float:
    """Mean over positions of KL(base || softmax(steered)), in nats; never below 0.

    Args:
        base: Log-probabilities, (positions, vocabulary).
        steered: Logits of the same shape.
    """
    each = (np.exp(base) * (base - _log_probabilities(steered))).sum(axis=-1, dtype=np.float64)
    return max(0.0, float(each.mean()))


def _log_probabilities(logits: mx.array) -> NDArray[np.float32]:
    """Normalised logits, (positions, vocabulary)."""
    # MLX's exponential takes one number at a time on a CPU, numpy's some sixteen.
    values: NDArray[np.float32] = np.array(logits.astype(mx.float32))
    values -= values.max(axis=-1, keepdims=True)
    total = np.exp(values).sum(axis=-1, keepdims=True, dtype=np.float64)
    values -= np.log(total).astype(np.float32)
    return values
