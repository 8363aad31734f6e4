"""The tiny models of `tiny.py` as GGUF files for llama.cpp: the same float32 weights, no texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from tests.helpers.gguf_files import as_tensors, write_gguf
from tests.helpers.tiny import tiny_config

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_model(family: str, network: nn.Module, path: Path) -> Path:
    """Write a Llama or Qwen2 network of `tiny_network` as a GGUF file."""
    config = tiny_config(family)
    arrays = {}
    for name, value in tree_flatten(network.parameters()):
        array = np.array(value)
        if family == "llama":  # whose rotary embedding is interleaved in GGUF
            heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
            key = heads.get(name.split(".")[-2])
            array = array if key is None else _interleaved(array, config[key])
        arrays[_name(name)] = array
    return write_gguf(path, _metadata(family, config), as_tensors(arrays))


def _name(name: str) -> str:
    stem, _, part = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{_NAMES[stem]}.{part}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{_NAMES[inner]}.{part}"


def _interleaved(array: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


def _metadata(arch: str, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "general.architecture": arch,
        "tokenizer.ggml.model": "no_vocab",
        f"{arch}.vocab_size": config["vocab_size"],
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.context_length": config["max_position_embeddings"],
        f"{arch}.embedding_length": config["hidden_size"],
        f"{arch}.feed_forward_length": config["intermediate_size"],
        f"{arch}.attention.head_count": config["num_attention_heads"],
        f"{arch}.attention.head_count_kv": config["num_key_value_heads"],
        f"{arch}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{arch}.rope.freq_base": config["rope_theta"],
    }
