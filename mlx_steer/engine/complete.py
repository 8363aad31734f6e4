"""(prompt, condition) jobs into completions: one continuous batch, every row as if it ran alone.

Rows of all conditions decode together; each row's plan rides on its caches, and another takes its
place when the row's thinking ends and thinking and answer are steered apart. A row's tokens do not
depend on its neighbours. Batched float32 logits differ from solo ones by some 1e-5, so a step whose
two best scores lie within `TIE` is decided by running that row alone, uncached. In lower precision
that is out of reach: there the smallest margin of each row is kept, and rows may differ from the
first step whose margin is below one spacing of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx

from mlx_steer.config import BATCH_SIZE
from mlx_steer.engine.admit import Admission
from mlx_steer.engine.batch import Batch
from mlx_steer.engine.decode import Decoder
from mlx_steer.engine.guard import forward_of
from mlx_steer.engine.jobs import Completion, Job, Sampling, check_jobs, take_waves, waves
from mlx_steer.errors import GenerationError
from mlx_steer.model.load import Model


def complete(
    model: Model, jobs: Sequence[Job], sampling: Sampling, batch_size: int = BATCH_SIZE
) -> list[Completion]:
    """Run jobs and return their completions in the order of the jobs (see `completions`)."""
    done = {c.key: c for c in completions(model, jobs, sampling, batch_size)}
    return [done[job.key] for job in jobs]


def completions(
    model: Model,
    jobs: Sequence[Job],
    sampling: Sampling,
    batch_size: int = BATCH_SIZE,
    on_tokens: Callable[[int], None] = lambda count: None,
) -> Iterator[Completion]:
    """Run jobs in one continuous batch and yield each completion when it is finished.

    Args:
        model: The model.
        jobs: With unique keys.
        sampling: The same for all jobs.
        batch_size: Rows decoded at a time.
        on_tokens: Called after each step with the number of tokens it made.

    Raises:
        GenerationError: If a prompt is empty or too long for the model, or keys are not unique.
        ModelError: If a layer does not exist.
        VectorError: If a vector does not fit the model.
    """
    from mlx_lm.generate import wired_limit

    check_jobs(model, jobs, sampling, batch_size)
    waiting = waves(jobs, batch_size)
    with forward_of(model.network) as forward, wired_limit(model.network):
        if any(site.plan is not None for site in forward.sites):
            raise GenerationError(
                "jobs cannot run inside steered(...); give the steering as their conditions"
            )
        admission = Admission(model, forward, sampling, jobs)
        decoder = Decoder(model, forward)
        batch: Batch | None = None
        while waiting or batch is not None:
            if batch is None:
                batch = _with_more([], waiting, admission, batch_size)
            elif waiting and len(waiting[0]) <= batch_size - len(batch):
                if batch.flight is not None:  # rows join between steps
                    on_tokens(len(batch))
                    yield from decoder.land(batch)
                batch.drop_finished()
                batch = _with_more([batch] if len(batch) else [], waiting, admission, batch_size)
            on_tokens(len(batch))
            yield from decoder.step(batch)
            if not len(batch):
                batch = None
                mx.clear_cache()


def _with_more(
    parts: list[Batch], waiting: list[list[Job]], admission: Admission, batch_size: int
) -> Batch:
    """Batches and as many waiting jobs as there is room for, which are taken from the list."""
    while wave := take_waves(waiting, batch_size - sum(map(len, parts))):
        parts.append(admission.admit(wave))
    return Batch.joined(parts)
