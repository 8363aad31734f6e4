"""How likely given responses are under conditions that steer; nothing is decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import mlx.core as mx

from mlx_steer.config import BATCH_SIZE
from mlx_steer.engine.admit import Admission
from mlx_steer.engine.forward import Call, Ids
from mlx_steer.engine.guard import forward_of
from mlx_steer.engine.jobs import Job, Sampling, check_jobs, waves
from mlx_steer.engine.likelihood import chosen_log_probs
from mlx_steer.engine.limits import LOGITS_AT_ONCE
from mlx_steer.model.load import Model


def forced(
    model: Model,
    jobs: Sequence[Job],
    responses: Mapping[str, Ids],
    batch_size: int = BATCH_SIZE,
    on_rows: Callable[[int], None] = lambda count: None,
) -> dict[str, float]:
    """The mean log-probability per token of a given response under each job's condition.

    Args:
        model: The model.
        jobs: With unique keys.
        responses: By job key: token ids, at least one.
        batch_size: Rows at a time, at most.
        on_rows: Called with the number of rows that were read since the last call.

    Raises:
        GenerationError: If a prompt and its response exceed the model's context.
        VectorError: If a vector does not fit the model.
    """
    longest = max(map(len, responses.values()), default=1)
    sampling = Sampling(longest)
    check_jobs(model, jobs, sampling, batch_size)
    vocabulary = int(model.config.get("vocab_size") or 50_000)
    at_once = max(1, min(batch_size, LOGITS_AT_ONCE // (longest * vocabulary)))
    found: dict[str, float] = {}
    with forward_of(model.network) as forward:
        admission = Admission(model, forward, sampling, jobs)
        for wave in waves(jobs, at_once):
            batch = admission.admit(wave)
            read = [responses[row.job.key] for row in batch.rows]
            sequences = [
                (row.job.ids[-1], *tokens[:-1])
                for row, tokens in zip(batch.rows, read, strict=True)
            ]
            logits = forward.read(sequences, batch.caches, Call(batch.plans)).logits
            for row, values in zip(batch.rows, chosen_log_probs(logits, read), strict=True):
                found[row.job.key] = round(float(values.mean()), 4)
            on_rows(len(batch))
            mx.clear_cache()
    return found
