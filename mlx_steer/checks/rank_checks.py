"""Do the ranks that mlx.launch started agree? Every rank makes these checks, rank 0 shows them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from mlx_steer.checks.steering_checks import Check, Status
from mlx_steer.engine.steered import steered
from mlx_steer.model.load import Model
from mlx_steer.model.machine import environment, versions
from mlx_steer.team import Team

_ROUNDS = 50
# Numbers of a hidden state: what a sharded block adds up for a token, twice.
_HIDDEN = 4096


def rank_checks(team: Team, models: Sequence[Model], own: Sequence[Check]) -> Iterator[Check]:
    """Whether ranks have the same, compute the same and reach one another.

    Args:
        team: The ranks; nothing is checked for one alone.
        models: What every rank has loaded.
        own: This rank's other checks.
    """
    if team.size == 1:
        return
    yield _alike(team, "same versions", "ranks", json.dumps(versions(), sort_keys=True))
    chips = json.dumps([environment()[name] for name in ("device", "blas", "metal")])
    # Two kinds of chip work together; what they compute is compared below.
    yield _alike(team, "same chips", "ranks", chips, "warn")
    for model in models:
        yield _alike(team, "same weights on every rank", model.info.id, _weights(model))
        yield _alike(team, "same steered step, bit for bit", model.info.id, _steered_step(model))
    failed = ", ".join(f"{c.name} ({c.subject})" for c in own if c.status == "fail")
    yield _alike(team, "every rank is sound", "ranks", failed)
    yield _all_reduce(team)


def _alike(team: Team, name: str, subject: str, own: str, unlike: Status = "fail") -> Check:
    """A check that fails on every rank if one says something else than rank 0."""
    first, *others = (value.decode() for value in team.gathered(own.encode()))
    odd = [rank for rank, said in enumerate(others, 1) if said != first]
    if not odd:
        return Check(name, subject, "pass")
    detail = f"rank {odd[0]}: {others[odd[0] - 1][:200]}; rank 0: {first[:200]}"
    return Check(name, subject, unlike, float(len(odd)), 0.0, detail)


def _weights(model: Model) -> str:
    return f"{model.info.fingerprint} over {model.team.size} ranks"


def _steered_step(model: Model) -> str:
    """The hash of logits under a vector at the middle layer."""
    vector = np.random.default_rng(2).standard_normal(model.hidden_size).astype(np.float32)
    ids = mx.array(list(model.chat.prompt_ids("What is the capital of France?")))[None]
    with steered(model, vector, layer=model.num_layers // 2, strength=1.0):
        logits = np.array(model.network(ids).astype(mx.float32))
    return hashlib.sha256(logits.tobytes()).hexdigest()


def _all_reduce(team: Team) -> Check:
    """The median time of a sum over ranks, of which a sharded block needs two for each token."""
    value = np.ones(_HIDDEN, np.float32)
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        found = team.summed(value)
        seconds.append(time.perf_counter() - start)
    status: Status = "pass" if (found == team.size).all() else "fail"
    detail = f"ms, the median of {_ROUNDS} sums of {_HIDDEN} numbers over {team.size} ranks"
    return Check("all-reduce", "ranks", status, 1e3 * float(np.median(seconds)), None, detail)
