"""What single model families need, in one place; the rest of the package asks of no family.

Whether rows of a family can be computed together, and what else holds for it, is not listed here:
`engine/guard.py` finds it out for each kind of network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

Together = Literal["padded", "even", "single"]
"""Which rows one call of a network may compute (see `Traits`)."""

if TYPE_CHECKING:
    import mlx.core as mx

# Model types whose sliding windows mlx-lm ignores, and whether one that config.json gives is used
# if use_sliding_window says nothing.
WINDOWED = {
    "mistral": True,
    "mixtral": True,
    "gemma2": True,
    "phi3": True,
    # Not ignored, but its caches hold one token less than its masks show: right up to the window.
    "plamo3": True,
    "qwen2": False,
    "qwen3": False,
    "qwen3_moe": False,
}


class GroupedHeadMask:
    """Mixed in front of Gemma 2's block, which computes on (rows, kv heads, repeats, ...).

    mlx-lm hands it a batch's mask as (rows, 1, ...), which does not broadcast to that shape.
    """

    self_attn: Any

    def __call__(self, x: mx.array, mask: mx.array | None = None, cache: Any = None) -> Any:
        """Run the block with a mask that broadcasts."""
        if mask is not None and mask.ndim == 4 and self.self_attn.repeats > 1:
            mask = mask[:, :, None]
        return super().__call__(x, mask, cache)  # type: ignore[misc]


# Blocks of mlx-lm that need help to run in a batch, by the module they are defined in.
HELP: dict[str, type] = {"mlx_lm.models.gemma2": GroupedHeadMask}

# Blocks that carry several streams of hidden states, (streams, rows, positions, hidden_size), and
# which of them a capture reads; a plan acts on all.
STREAM: dict[str, Callable[[Any], int]] = {
    "mlx_lm.models.gemma3n": lambda block: int(block.config.altup_active_idx),
}

# Model types whose rows mlx-lm cannot compute together, or not with padding, and what a plan and a
# run say of them. The guard finds this out by itself; this is for those who load nothing.
_EVEN = """baichuan_m1 bailing_moe_linear falcon_mamba jamba longcat_flash_ngram mamba nemotron_h
    olmo_hybrid recurrent_gemma rwkv7"""
_SINGLE = "afm7 gpt_bigcode llama4"
APART: dict[str, Together] = {
    **dict.fromkeys(_EVEN.split(), "even"),
    **dict.fromkeys(_SINGLE.split(), "single"),
}
NOTES: dict[Together, str] = {
    "even": "This kind of model reads the padding of a batch: its prompts are read in batches of "
    "one length each, with the same results, and take longer.",
    "single": "This kind of model cannot be run in a batch: its rows run one at a time, with the "
    "same results, and take longer.",
}

# Where a config.json gives the width of the hidden state.
HIDDEN_SIZE = ("hidden_size", "d_model", "n_embd", "model_dim", "n_embed", "hidden_dim")
