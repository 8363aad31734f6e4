"""What of a model's config.json decides about memory and speed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlx_steer.errors import ModelError

# Live copies, per token, of hidden states and of the wider states inside an MLP; and of the
# attention scores, where attention is not fused.
_HIDDEN_COPIES, _MLP_COPIES, _SCORE_COPIES = 8, 3, 1.25
# Head sizes that MLX's fused attention on Metal takes when it reads a prompt.
_FUSED_HEADS = (64, 80, 128)

# Beyond any model's numbers, and of layers so few that they can be counted through.
_LARGEST, _MOST_LAYERS = 2**31, 10_000

# What these models leave out of their config.json, as mlx-lm fills it in.
_LEFT_OUT: dict[str, dict[str, int]] = {
    "gemma3": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
    },
    "gemma3_text": {"head_dim": 256, "vocab_size": 262144},
}

Tensor = tuple[str, str, tuple[int, ...]]
"""Name, dtype as safetensors writes it, and shape."""


@dataclass(frozen=True)
class Shape:
    """What of a config.json decides about memory.

    Attributes:
        layers: Decoder blocks.
        hidden: Width of the hidden state.
        inner: Width inside the MLP, of all experts that a token goes through.
        heads: Attention heads.
        kv_heads: Heads of keys and values (grouped-query attention).
        head_dim: Width of a head.
        vocabulary: Number of tokens.
        experts: MLPs in a block.
        expert_inner: Width inside one MLP.
        tied: Whether embedding and output matrix are one.
        soft_capped: Whether attention scores are capped, which rules out fused attention.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    experts: int
    expert_inner: int
    tied: bool
    soft_capped: bool

    @staticmethod
    def of(config: Mapping[str, Any]) -> Shape:
        """Read a model's config.json.

        Raises:
            ModelError: If a value that is needed is missing.
        """
        left_out = _LEFT_OUT.get(str(config.get("model_type")), {})
        text: Mapping[str, Any] = {**left_out, **text_config(config)}

        def number(*names: str, default: int | None = None, most: int = _LARGEST) -> int:
            for name in names:
                value = text.get(name)
                if value is not None and value != 0:
                    if type(value) is not int or not 1 <= value <= most:
                        raise ModelError(
                            f"the config.json gives a {name} of {str(value)[:40]!r}, which no "
                            "model has; fetch the model again"
                        )
                    return value
            if default is None:
                raise ModelError(
                    f"the config.json gives no {names[0]}, so the memory the model takes is unknown"
                )
            return default

        hidden, heads = number("hidden_size"), number("num_attention_heads")
        experts = number("num_local_experts", "num_experts", default=1)
        inner = number(*(("moe_intermediate_size",) if experts > 1 else ()), "intermediate_size")
        at_once = number("num_experts_per_tok", default=1) if experts > 1 else 1
        if at_once > experts:
            raise ModelError(
                f"the config.json gives {at_once} experts per token of {experts}; fetch the model "
                "again"
            )
        return Shape(
            layers=number("num_hidden_layers", most=_MOST_LAYERS),
            hidden=hidden,
            inner=inner * at_once,
            heads=heads,
            kv_heads=number("num_key_value_heads", default=heads),
            head_dim=number("head_dim", default=max(1, hidden // heads)),
            vocabulary=number("vocab_size"),
            experts=experts,
            expert_inner=inner,
            tied=is_tied(config),
            soft_capped=bool(text.get("attn_logit_softcapping")),
        )

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(math.prod(shape) for _, _, shape in self.tensors("F32"))

    @property
    def active_parameters(self) -> int:
        """Parameters that each token is multiplied with; the embedding is only looked up."""
        idle = (self.experts * self.expert_inner - self.inner) * 3 * self.hidden * self.layers
        looked_up = 0 if self.tied else self.vocabulary * self.hidden
        return self.parameters - idle - looked_up

    def over(self, ranks: int) -> Shape:
        """What one of so many ranks holds of each block (see sharding.py)."""

        def part(whole: int) -> int:
            return -(-whole // ranks)

        return replace(
            self,
            inner=part(self.inner),
            heads=part(self.heads),
            kv_heads=part(self.kv_heads),
            expert_inner=part(self.expert_inner),
        )

    def kv_bytes(self, tokens: int, dtype_bytes: int) -> int:
        """Keys and values of one row of all layers, for so many allocated positions.

        Layers with a sliding window are counted in full: a window is longer than most rows.
        """
        return 2 * self.layers * self.kv_heads * self.head_dim * tokens * dtype_bytes

    def activation_bytes(self, rows: int, tokens: int, keys: int, item: int, metal: bool) -> int:
        """Activations of a forward pass over `tokens` positions of each row, with `keys` in all."""
        # Reading one position, Metal's attention is fused for every usual head size.
        fused = metal and (tokens == 1 or self.head_dim in _FUSED_HEADS) and not self.soft_capped
        scores = 0.0 if fused else _SCORE_COPIES * self.heads * keys
        wide = _HIDDEN_COPIES * self.hidden + _MLP_COPIES * self.inner
        return int(rows * tokens * item * (wide + scores))

    def tensors(self, dtype: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """(name, dtype, shape) of all weights, as far as they count in bytes."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "embed_tokens.weight", dtype, (self.vocabulary, self.hidden)
        if not self.tied:
            yield "lm_head.weight", dtype, (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            for name, size in (("q_proj", wide), ("k_proj", narrow), ("v_proj", narrow)):
                yield f"layers.{layer}.{name}.weight", dtype, (size, self.hidden)
            yield f"layers.{layer}.o_proj.weight", dtype, (self.hidden, wide)
            for name in ("gate_proj", "up_proj", "down_proj"):
                shape = (self.experts * self.expert_inner, self.hidden)
                yield f"layers.{layer}.{name}.weight", dtype, shape
            yield f"layers.{layer}.norms", dtype, (2 * self.hidden,)


def layer_of(index: int, count: int, name: str) -> int:
    """A layer counted from 0; negative numbers count from the end.

    Args:
        index: The layer as given.
        count: How many the model has.
        name: What it is called in the error.

    Raises:
        ModelError: If the model has no such layer.
    """
    if not -count <= index < count:
        raise ModelError(f"{name} has layers 0 to {count - 1}, and no layer {index}")
    return index % count


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether a config.json says, or leaves open, that embedding and output matrix are one."""
    text = text_config(config)
    # Where nothing is said mlx-lm ties them, too.
    return text.get("tie_word_embeddings", config.get("tie_word_embeddings")) is not False


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json that is about text, which in many is all of it."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) and text else config
