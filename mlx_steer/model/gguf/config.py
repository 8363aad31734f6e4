"""A GGUF file's hyper-parameters as the config.json of Hugging Face's Llama."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mlx_steer.errors import ModelError
from mlx_steer.gguf_header import Header
from mlx_steer.words import Dtype

ROPE_FACTORS = "rope_freqs.weight"

_LLAMA3_SCALING = {
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}


def model_config(header: Header, dtype: Dtype, model_id: str | None) -> dict[str, object]:
    """The config.json: hyper-parameters, token ids, and `model_id` or the file's own name.

    Raises:
        ModelError: If the file is of a mixture of experts, contradicts itself, or scales its
            rotary embedding in a way this cannot express.
    """
    if header.metadata.get("llama.expert_count"):
        raise ModelError(
            f"{header.path} is a mixture of experts; only dense Llama models can be converted."
        )
    hidden_size = header.get("llama.embedding_length", int)
    heads = header.get("llama.attention.head_count", int)
    key_value_heads = header.get("llama.attention.head_count_kv", int, heads)
    layers = header.get("llama.block_count", int)
    if min(hidden_size, heads, key_value_heads) < 1 or heads % key_value_heads:
        raise ModelError(
            f"{header.path}: {heads} attention heads over {key_value_heads} key-value heads and "
            f"hidden size {hidden_size} make no Llama model; use another file."
        )
    if not 1 <= layers <= len(header.tensors):
        raise ModelError(
            f"{header.path} has {layers} layers in {len(header.tensors)} tensors; use another file."
        )
    head_dim = header.get("llama.attention.key_length", int, hidden_size // heads)
    rotary = header.get("llama.rope.dimension_count", int, head_dim)
    if head_dim != rotary or head_dim % 2:
        raise ModelError(
            f"{header.path} rotates {rotary} of {head_dim} dimensions of a head; only models that "
            "rotate all of an even number can be converted."
        )
    embedding = header.tensors.get("token_embd.weight")
    rows = embedding.shape[0] if embedding and embedding.shape else 0
    tokens = len(header.get("tokenizer.ggml.tokens", list))
    if embedding and tokens > rows:
        raise ModelError(
            f"{header.path} has {tokens} tokens but {rows} embedding rows; use another file."
        )
    config: dict[str, object] = {
        "_name_or_path": model_id or header.get("general.name", str, header.path.stem),
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "intermediate_size": header.get("llama.feed_forward_length", int),
        "max_position_embeddings": header.get("llama.context_length", int),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": key_value_heads,
        "rms_norm_eps": _shortest(header.get("llama.attention.layer_norm_rms_epsilon", float)),
        "rope_scaling": _rope_scaling(header, head_dim),
        "rope_theta": _shortest(header.get("llama.rope.freq_base", float, 10000.0)),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "torch_dtype": dtype,
        "vocab_size": rows,
    }
    ends = [header.token_id(role) for role in ("eos", "eot", "eom")]
    unique = list(dict.fromkeys(end for end in ends if end is not None))
    config["bos_token_id"] = header.token_id("bos")
    config["eos_token_id"] = unique if len(unique) > 1 else next(iter(unique), None)
    config["pad_token_id"] = header.token_id("padding")
    return config


def generation_config(config: Mapping[str, object]) -> dict[str, object]:
    """The generation_config.json: where generation begins and ends."""
    return {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _shortest(value: float) -> float:
    """Returns the float32 `value` with its shortest digits, so that 1e-05 stays 1e-05."""
    return float(str(np.float32(value)))


def _rope_scaling(header: Header, head_dim: int) -> dict[str, object] | None:
    kind = header.get("llama.rope.scaling.type", str, "none")
    if kind == "linear":
        factor = _shortest(header.get("llama.rope.scaling.factor", float))
        return {"factor": factor, "rope_type": "linear"}
    factors = header.tensors.get(ROPE_FACTORS)
    if kind == "none" and factors is None:
        return None
    if kind == "none" and factors is not None and factors.type == 0:
        base = header.get("llama.rope.freq_base", float, 10000.0)
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
