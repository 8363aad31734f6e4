"""What single model families need, in one place; the rest of the package asks of no family."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

# Model types whose sliding windows mlx-lm ignores, and whether one that config.json gives is used
# if use_sliding_window says nothing.
WINDOWED = {
    "mistral": True,
    "mixtral": True,
    "gemma2": True,
    "phi3": True,
    "qwen2": False,
    "qwen3": False,
    "qwen3_moe": False,
}


class GroupedHeadMask(nn.Module):
    """Mixed in front of Gemma 2's block, which computes on (rows, kv heads, repeats, ...).

    mlx-lm hands it a batch's mask as (rows, 1, ...), which does not broadcast to that shape.
    """

    def __call__(self, x: mx.array, mask: mx.array | None = None, cache: Any = None) -> Any:
        """Run the block with a mask that broadcasts."""
        if mask is not None and mask.ndim == 4 and self.self_attn.repeats > 1:
            mask = mx.expand_dims(mask, 2)
        return super().__call__(x, mask, cache)


# Blocks of mlx-lm that need help to run in a batch, by the module they are defined in.
HELP: dict[str, type[nn.Module]] = {"mlx_lm.models.gemma2": GroupedHeadMask}
