"""A model over ranks: each holds and multiplies its part of every block's matrices.

This is mlx-lm's `sharded_load` but for two things: weights that are missing are an error, and what
its wrappers around a language model (`mistral3`) leave out is found within them. The hidden state
is whole on every rank, so all that reads or changes it works as it does on one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_steer.errors import ModelError
from mlx_steer.model.machine import too_large, working_set
from mlx_steer.model.shape import text_config
from mlx_steer.team import Team

# Whole heads go to ranks. mlx-lm cuts matrices wherever the numbers come out even, and where a
# head is cut through, computes something else without a word.
_HEADS = (
    "num_attention_heads",
    "num_key_value_heads",
    "linear_num_key_heads",
    "linear_num_value_heads",
)


def shard(network: nn.Module, config: Mapping[str, Any], name: str, team: Team) -> None:
    """Leave in a network only what this rank holds of it; nothing for a team of one.

    Args:
        network: Of mlx-lm, its weights not yet in memory.
        config: The model's config.json.
        name: What the model is called in errors.
        team: The ranks.

    Raises:
        ModelError: If it cannot be sharded, or not over so many ranks.
    """
    if team.size == 1:
        return
    owner = next(
        (o for o in (network, getattr(network, "language_model", None)) if hasattr(o, "shard")),
        None,
    )
    if owner is None:
        raise ModelError(
            f"mlx-lm cannot shard model type {config.get('model_type')!r}; leave out `shard` and "
            f"start {name} on one machine"
        )
    text = text_config(config)
    for key in _HEADS:
        heads = text.get(key)
        if isinstance(heads, int) and heads % team.size:
            raise ModelError(
                f"{name} has a {key} of {heads}, which {team.size} ranks cannot share; start it "
                "on a number of ranks that divides it"
            )
    try:
        owner.shard(team.group)
    except Exception as error:  # whatever mlx-lm raises where the numbers do not come out even
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{name} cannot be sharded over {team.size} ranks: {reason or type(error).__name__}; "
            "take another number of ranks"
        ) from error
    leaves: list[tuple[str, mx.array]] = tree_flatten(network.parameters())  # type: ignore
    needed, usable = sum(part.nbytes for _, part in leaves), working_set()
    if needed > usable:
        raise too_large(f"a rank's part of {name}", needed, usable)
