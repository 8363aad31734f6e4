"""A writer of small GGUF files, because MLX's own writes only floats, and a tiny model with it."""

import json
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tokenizers import pre_tokenizers

from mlx_steer.model import gguf
from mlx_steer.model.gguf import convert_gguf

HIDDEN, INNER, HEADS, KEY_VALUE_HEADS, LAYERS = 64, 96, 4, 2, 2
HEAD_DIM = HIDDEN // HEADS
F32, F16, Q4_0, Q4_1, Q4_K, Q8_0 = 0, 1, 2, 3, 12, 8
UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9

Tensors = dict[str, tuple[int, tuple[int, ...], bytes]]


def packed(value: Any) -> bytes:
    """A metadata value with its type number."""
    if isinstance(value, list):
        items = [packed(item) for item in value]
        inner = items[0][:4] if items else struct.pack("<I", STRING)
        return (
            struct.pack("<I", ARRAY)
            + inner
            + struct.pack("<Q", len(items))
            + b"".join(item[4:] for item in items)
        )
    if isinstance(value, str):
        return struct.pack("<IQ", STRING, len(value.encode())) + value.encode()
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    return struct.pack("<II", UINT32, value)


def write_gguf(path: Path, metadata: dict[str, Any], tensors: Tensors) -> Path:
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        header += packed(key)[4:] + packed(value)
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        header += packed(name)[4:] + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        header += struct.pack("<IQ", kind, len(data))
        data += raw + bytes(-len(raw) % 32)
    path.write_bytes(header + bytes(-len(header) % 32) + data)
    return path


def byte_tokens() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def tiny_metadata() -> dict[str, Any]:
    tokens = ["<|end|>", "<|start|>", *byte_tokens(), "he", "Ġhe", "12", "<tool>"]
    return {
        "general.architecture": "llama",
        "general.name": "Tiny",
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KEY_VALUE_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 500.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, *[1] * (len(tokens) - 3), 4],
        "tokenizer.ggml.merges": ["h e", "Ġ he", "1 2"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.chat_template": "{% for m in messages %}<|start|>{{ m['content'] }}{% endfor %}",
    }


def tiny_shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    keys = KEY_VALUE_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary, HIDDEN),
        "output_norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        block = {
            "attn_norm": (HIDDEN,),
            "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (keys, HIDDEN),
            "attn_v": (keys, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN),
            "ffn_norm": (HIDDEN,),
            "ffn_gate": (INNER, HIDDEN),
            "ffn_up": (INNER, HIDDEN),
            "ffn_down": (HIDDEN, INNER),
        }
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def tiny_arrays(vocabulary: int = 262, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        name: (random.standard_normal(shape) * (0.3 if len(shape) > 1 else 1)).astype(np.float32)
        for name, shape in tiny_shapes(vocabulary).items()
    }


def as_tensors(arrays: dict[str, np.ndarray]) -> Tensors:
    return {name: (F32, array.shape, array.tobytes()) for name, array in arrays.items()}


def tiny_gguf(
    path: Path,
    metadata: dict[str, Any] | None = None,
    tensors: Tensors | None = None,
    without: tuple[str, ...] = (),
) -> Path:
    """A whole tiny model, with some metadata and tensors replaced or left out."""
    pairs = tiny_metadata() | (metadata or {})
    all_tensors = as_tensors(tiny_arrays(len(pairs["tokenizer.ggml.tokens"]))) | (tensors or {})
    return write_gguf(
        path,
        {key: value for key, value in pairs.items() if key not in without},
        {name: tensor for name, tensor in all_tensors.items() if name not in without},
    )


def converted(tmp_path: Path, dtype: gguf.Dtype = "float32", **changes: Any) -> Path:
    convert_gguf(tiny_gguf(tmp_path / "tiny.gguf", **changes), tmp_path / "tiny", dtype)
    return tmp_path / "tiny"


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def weights_of(folder: Path) -> dict[str, mx.array]:
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    return weights
