"""A GGUF file's hyper-parameters as the config.json of Hugging Face's model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_steer.errors import ModelError
from mlx_steer.gguf_header import Header
from mlx_steer.model.gguf.architectures import GEMMA3, LLAMA, QWEN2, QWEN3, Architecture
from mlx_steer.words import Dtype

ROPE_FACTORS = "rope_freqs.weight"

_LLAMA3_SCALING = {
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}
# llama.cpp's, where a file says nothing.
_ROPE_BASE = 10_000.0


@dataclass(frozen=True)
class Sizes:
    """A model's numbers.

    Attributes:
        layers: Decoder blocks.
        hidden: Width of the hidden state.
        inner: Width inside the MLP.
        heads: Attention heads.
        key_value_heads: Heads of keys and values.
        head_dim: Width of a head.
        vocabulary: Rows of the embedding.
        tied: Whether embedding and output matrix are one.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @staticmethod
    def of(header: Header, architecture: Architecture) -> "Sizes":
        """Read them from a file's header.

        Raises:
            ModelError: If one is missing or they contradict each other.
        """
        name, path = architecture.name, header.path
        hidden = header.get(f"{name}.embedding_length", int)
        heads = header.get(f"{name}.attention.head_count", int)
        key_value_heads = header.get(f"{name}.attention.head_count_kv", int, heads)
        layers = header.get(f"{name}.block_count", int)
        if min(hidden, heads, key_value_heads) < 1 or heads % key_value_heads:
            raise ModelError(
                f"{path}: {heads} attention heads over {key_value_heads} key-value heads and "
                f"hidden size {hidden} make no {architecture.title} model; use another file."
            )
        if not 1 <= layers <= len(header.tensors):
            raise ModelError(
                f"{path} has {layers} layers in {len(header.tensors)} tensors; use another file."
            )
        head_dim = header.get(f"{name}.attention.key_length", int, hidden // heads)
        rotary = header.get(f"{name}.rope.dimension_count", int, head_dim)
        if head_dim != rotary or head_dim % 2:
            raise ModelError(
                f"{path} rotates {rotary} of {head_dim} dimensions of a head; only models that "
                "rotate all of an even number can be converted."
            )
        embedding = header.tensors.get("token_embd.weight")
        rows = embedding.shape[0] if embedding and embedding.shape else 0
        tokens = len(header.get("tokenizer.ggml.tokens", list))
        if embedding and tokens > rows:
            raise ModelError(
                f"{path} has {tokens} tokens but {rows} embedding rows; use another file."
            )
        inner = header.get(f"{name}.feed_forward_length", int)
        tied = "output.weight" not in header.tensors
        return Sizes(layers, hidden, inner, heads, key_value_heads, head_dim, rows, tied)


def model_config(
    header: Header, architecture: Architecture, dtype: Dtype, model_id: str | None
) -> dict[str, object]:
    """The config.json: hyper-parameters, token ids, and `model_id` or the file's own name.

    Raises:
        ModelError: If the file contradicts itself, or scales its rotary embedding or its scores in
            a way this cannot express.
    """
    name, sizes = architecture.name, Sizes.of(header, architecture)
    return {
        "_name_or_path": model_id or header.get("general.name", str, header.path.stem),
        "architectures": [architecture.network],
        "attention_dropout": 0.0,
        "head_dim": sizes.head_dim,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.inner,
        "max_position_embeddings": header.get(f"{name}.context_length", int),
        "model_type": architecture.model_type,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.key_value_heads,
        "rms_norm_eps": _shortest(header.get(f"{name}.attention.layer_norm_rms_epsilon", float)),
        "rope_scaling": _rope_scaling(header, name, sizes.head_dim),
        "rope_theta": _shortest(header.get(f"{name}.rope.freq_base", float, _ROPE_BASE)),
        "tie_word_embeddings": sizes.tied,
        "torch_dtype": dtype,
        "vocab_size": sizes.vocabulary,
        **_own(header, architecture, sizes),
        **_token_ids(header),
    }


def generation_config(config: Mapping[str, object]) -> dict[str, object]:
    """The generation_config.json: where generation begins and ends."""
    return {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _own(header: Header, architecture: Architecture, sizes: Sizes) -> dict[str, object]:
    """What only this architecture has in its config.json."""
    if architecture is LLAMA:
        return {"attention_bias": False, "hidden_act": "silu", "mlp_bias": False}
    if architecture is QWEN2:
        if sizes.head_dim * sizes.heads != sizes.hidden:
            raise ModelError(
                f"{header.path} has {sizes.heads} heads of {sizes.head_dim} in a hidden size of "
                f"{sizes.hidden}, which no Qwen2 model has; use another file."
            )
        return {"hidden_act": "silu", "use_sliding_window": False}
    if architecture is QWEN3:
        return {"attention_bias": False, "hidden_act": "silu", "use_sliding_window": False}
    return _gemma3(header, sizes)


def _gemma3(header: Header, sizes: Sizes) -> dict[str, object]:
    name = GEMMA3.name
    if header.metadata.get(f"{name}.final_logit_softcapping"):
        raise ModelError(
            f"{header.path} caps its logits, which mlx-lm's Gemma 3 does not; use another file."
        )
    # The file does not say how scores are scaled; llama.cpp knows the 27B model by its layers.
    scaled_by = sizes.hidden // sizes.heads if sizes.layers == 62 else sizes.head_dim
    local_base = header.get(f"{name}.rope.freq_base_swa", float, _ROPE_BASE)
    return {
        "attention_bias": False,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scaled_by,
        "rope_local_base_freq": _shortest(local_base),
        "sliding_window": header.get(f"{name}.attention.sliding_window", int),
        "sliding_window_pattern": header.get(f"{name}.attention.sliding_window_pattern", int, 6),
    }


def _token_ids(header: Header) -> dict[str, object]:
    ends = [header.token_id(role) for role in ("eos", "eot", "eom")]
    unique = list(dict.fromkeys(end for end in ends if end is not None))
    return {
        "bos_token_id": header.token_id("bos"),
        "eos_token_id": unique if len(unique) > 1 else next(iter(unique), None),
        "pad_token_id": header.token_id("padding"),
    }


def _shortest(value: float) -> float:
    """Returns the float32 `value` with its shortest digits, so that 1e-05 stays 1e-05."""
    return float(str(np.float32(value)))


def _rope_scaling(header: Header, name: str, head_dim: int) -> dict[str, object] | None:
    kind = header.get(f"{name}.rope.scaling.type", str, "none")
    if kind == "linear":
        factor = _shortest(header.get(f"{name}.rope.scaling.factor", float))
        return {"factor": factor, "rope_type": "linear"}
    factors = header.tensors.get(ROPE_FACTORS)
    if kind == "none" and factors is None:
        return None
    if kind == "none" and factors is not None and factors.type == 0:
        base = header.get(f"{name}.rope.freq_base", float, _ROPE_BASE)
        with header.path.open("rb") as file:
            file.seek(header.data_start + factors.offset)
            found = np.frombuffer(file.read(4 * math.prod(factors.shape)), dtype="<f4")
        scaling = dict(_LLAMA3_SCALING, factor=_shortest(found.max(initial=1.0)))
        expected = _llama3_factors(base, head_dim, float(scaling["factor"]))
        if found.shape == expected.shape and np.allclose(found, expected, rtol=1e-3):
            return {**scaling, "rope_type": "llama3"}
    raise ModelError(
        f"{header.path} scales its rotary embedding in another way than 'linear' or Llama 3's; "
        "use an MLX or Hugging Face folder of this model."
    )


def _llama3_factors(base: float, head_dim: int, factor: float) -> NDArray[np.float64]:
    """The divisors of Llama 3.1's rotary frequencies, (head_dim / 2,).

    GGUF holds only these; comparing them proves the parameters they are derived from.
    """
    low, high = _LLAMA3_SCALING["low_freq_factor"], _LLAMA3_SCALING["high_freq_factor"]
    wavelengths = 2 * np.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    turns = _LLAMA3_SCALING["original_max_position_embeddings"] / wavelengths
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(1 / ((1 - smooth) / factor + smooth))
