"""Run on every rank: what sharded networks give, beside the same networks whole.

Usage: python -m tests.helpers.sharded OUT TYPE...; writes OUT/rank_N.json.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_steer.behaviors import load_behavior
from mlx_steer.conditions import Condition, Intervention
from mlx_steer.engine.complete import complete
from mlx_steer.engine.guard import traits_of
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.steered import steered
from mlx_steer.errors import ModelError
from mlx_steer.extraction.pairs import extract
from mlx_steer.model.load import Model
from mlx_steer.model.sharding import shard
from mlx_steer.team import team
from tests.zoo.examine import model_of, network_of

TOKENS = 5


@dataclass(frozen=True)
class Beside:
    """A sharded network beside the same one whole.

    Attributes:
        refused: Why it cannot be steered whole, or not be sharded.
        vectors: Largest relative difference of extracted vectors.
        logits: The same of steered logits.
        whole: Tokens of steered rows.
        sharded: Those of the sharded network.
        traits: Whether what the engine found out of both is the same.
        bytes: This rank's weights, as a part of the whole ones.
    """

    refused: str = ""
    vectors: float = 0.0
    logits: float = 0.0
    whole: tuple[tuple[int, ...], ...] = ()
    sharded: tuple[tuple[int, ...], ...] = ()
    traits: bool = True
    bytes: float = 1.0


def beside(model_type: str) -> Beside:
    """Compute the same with both."""
    networks = []
    for _ in range(2):
        mx.random.seed(5)  # biases begin where their network draws them
        networks.append(network_of(model_type))
    whole, part = networks
    try:
        traits = traits_of(whole)
        shard(part, model_of(model_type, whole).config, model_type, team())
    except ModelError as error:
        return Beside(refused=str(error))
    one, other = model_of(model_type, whole), model_of(model_type, part)
    vectors, logits, tokens = _computed(one)
    sharded_vectors, sharded_logits, sharded_tokens = _computed(other)
    return Beside(
        vectors=_relative(sharded_vectors, vectors),
        logits=_relative(sharded_logits, logits),
        whole=tokens,
        sharded=sharded_tokens,
        traits=traits_of(part) == traits,
        bytes=_bytes(other) / _bytes(one),
    )


def _computed(model: Model) -> tuple[np.ndarray, np.ndarray, tuple[tuple[int, ...], ...]]:
    """Vectors, steered logits, and tokens of rows under several strengths and layers."""
    whole = load_behavior("refusal")
    behavior = replace(whole, pairs=whole.pairs[:2])
    found = extract(model, behavior, layers=[1])
    vectors = np.stack([found[layer].array for layer in found])
    draw = np.random.default_rng(1).standard_normal(model.hidden_size).astype(np.float32)
    ids = [tuple(np.random.default_rng(i).integers(10, 300, 6 + i).tolist()) for i in range(3)]
    with steered(model, draw, layer=2, strength=1.0):
        logits = np.array(model.network(mx.array([ids[0]])))[0]
    jobs = [
        Job(f"{i} {layer}", own, Condition("c", None, (Intervention(layer, draw, 1.0 + i),)))
        for i, own in enumerate(ids)
        for layer in (1, 2)
    ]
    rows = complete(model, jobs, Sampling(TOKENS), batch_size=4)
    return vectors, logits, tuple(tuple(row.tokens) for row in rows)


def _relative(found: np.ndarray, wanted: np.ndarray) -> float:
    known = np.isfinite(wanted)
    if not np.array_equal(known, np.isfinite(found)):
        return float("inf")
    return float(np.abs(found[known] - wanted[known]).max() / np.abs(wanted[known]).max())


def _bytes(model: Model) -> int:
    leaves: list[tuple[str, Any]] = tree_flatten(model.network.parameters())
    return sum(value.nbytes for _, value in leaves)


if __name__ == "__main__":
    out, *types = sys.argv[1:]
    found = {name: asdict(beside(name)) for name in types}
    (Path(out) / f"rank_{team().rank}.json").write_text(json.dumps(found))
