"""What a network gives for one sequence: its logits and its blocks' outputs."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_steer.engine.steering import steerable
from tests.helpers.tiny import random_ids

IDS = random_ids(1, 24)


def logits(network: nn.Module, ids: Sequence[int] = IDS) -> mx.array:
    """Shape (positions, vocabulary)."""
    found: mx.array = network(mx.array(ids)[None])[0]
    return found


def outputs(network: nn.Module, ids: Sequence[int] = IDS) -> list[mx.array]:
    """Each block's output for one sequence, shape (positions, hidden_size)."""
    kept: list[mx.array] = []
    with steerable(network) as sites:
        for site in sites:
            site.record = kept.append
        network(mx.array(ids)[None])
        for site in sites:
            site.record = None
    return [h[0] for h in kept]
