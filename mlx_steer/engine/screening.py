"""Screening: how strongly a condition leans to the behavior, read off before anything is decoded.

The refusal score of Arditi et al. (2024): the log-odds of the first tokens of openings that show
the behavior against all other tokens, at the position that predicts the first response token. One
prefill for each prompt and condition, and no decoding.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_steer.behaviors import Behavior
from mlx_steer.config import BATCH_SIZE
from mlx_steer.engine.admit import Admission
from mlx_steer.engine.guard import forward_of
from mlx_steer.engine.jobs import Job, Sampling, check_jobs, waves
from mlx_steer.errors import DataError
from mlx_steer.model.load import Model

# Log-odds beyond this are as good as certain, and exp() of them still is a number.
_SURE = 100.0


def opening_tokens(model: Model, behavior: Behavior) -> tuple[list[int], list[int]]:
    """The first tokens of openings that show the behavior, and of those that do not.

    A token that begins openings of both kinds tells nothing and is left out.

    Raises:
        DataError: If the behavior has no openings, or none that the tokenizer tells apart.
    """
    shown, absent = (
        {model.chat.response_ids(text)[0] for text in behavior.openings.get(kind, ())}
        for kind in ("shown", "absent")
    )
    shown, absent = shown - absent, absent - shown
    if not shown or not absent:
        raise DataError(
            f"the behavior {behavior.name} has no openings that differ in their first token; "
            "give openings.shown and openings.absent in its behavior.yaml"
        )
    return sorted(shown), sorted(absent)


def screen(
    model: Model, jobs: Sequence[Job], shown: Sequence[int], batch_size: int = BATCH_SIZE
) -> dict[str, float]:
    """Log-odds of the tokens `shown` at the first response position of every job.

    Args:
        model: The model.
        jobs: With unique keys.
        shown: Token ids.
        batch_size: Rows at a time.

    Returns:
        By job key: log(p / (1 - p)), where p is the probability of all tokens in `shown` together.
    """
    check_jobs(model, jobs, Sampling(1), batch_size)
    scores: dict[str, float] = {}
    tokens = mx.array(list(shown))
    with forward_of(model.network) as forward:
        admission = Admission(model, forward, Sampling(1), jobs)
        for wave in waves(jobs, batch_size):
            batch = admission.admit(wave)
            logits = forward.step(batch.tokens, batch.caches, batch.plans)
            exact = logits.astype(mx.float32)
            wanted = mx.logsumexp(mx.take(exact, tokens, axis=-1), axis=-1)
            # Not from p: float32 cannot tell 1 - p from 0 where an opening is all but certain.
            exact[:, tokens] = -mx.inf
            odds = np.array(wanted - mx.logsumexp(exact, axis=-1)).astype(np.float64)
            for row, value in zip(batch.rows, odds.clip(-_SURE, _SURE), strict=True):
                scores[row.job.key] = round(float(value), 4)
            mx.clear_cache()
    return scores
