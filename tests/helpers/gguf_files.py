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
F32, F16, Q4_0, Q4_1, Q8_0, IQ1_S = 0, 1, 2, 3, 8, 19
# Bytes of a block of 256 values, and where in it the float16 scales stand.
K_KINDS = {
    "Q2_K": (10, 84, (80, 82)),
    "Q3_K": (11, 110, (108,)),
    "Q4_K": (12, 144, (0, 2)),
    "Q5_K": (13, 176, (0, 2)),
    "Q6_K": (14, 210, (208,)),
}
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9

Tensors = dict[str, tuple[int, tuple[int, ...], bytes]]


def packed(value: Any) -> bytes:
    """A metadata value with its type number."""
    if isinstance(value, list):
        items = [packed(item) for item in value]
        inner = items[0][:4] if items else struct.pack("<I", STRING)
        if inner == struct.pack("<I", UINT32):  # llama.cpp reads lists of INT32 only
            inner = struct.pack("<I", INT32)
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


def family_metadata(architecture: str) -> dict[str, Any]:
    """A tiny model of another architecture, with the metadata that llama.cpp's converter writes."""
    own = {k.replace("llama.", f"{architecture}.", 1): v for k, v in tiny_metadata().items()}
    own |= {
        "general.architecture": architecture,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{architecture}.attention.key_length": FAMILY_HEAD_DIM[architecture],
        f"{architecture}.attention.value_length": FAMILY_HEAD_DIM[architecture],
    }
    if architecture != "gemma3":
        return own | {"tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.add_bos_token": False}
    # One layer in six is global, so that both kinds are there.
    own |= {"gemma3.block_count": 6, "gemma3.attention.sliding_window": 8}
    own |= gemma_vocabulary()
    del own["tokenizer.ggml.merges"]
    return own


# Qwen2's heads fill the hidden state; transformers' reader takes 128 for Qwen3's in any case.
FAMILY_HEAD_DIM = {"qwen2": 16, "qwen3": 128, "gemma3": 32}


def gemma_vocabulary() -> dict[str, Any]:
    """A SentencePiece vocabulary like Gemma's: runs of spaces and newlines, scores that mislead."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    runs = ["\n", "\n\n", "  ", "   "]
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    letters = ["▁", *"abcdehlnotw"]
    words = ["he", "ll", "lo", "▁w", "hell", "▁a", "ab", "bc", "▁ab", "hello", "▁the", "th", "the"]
    tokens = [*special, *runs, *bytes_, *letters, *words]
    types = [3, 3, 3, 2, 3, 3, *[4] * len(runs), *[6] * 256, *[1] * (len(letters) + len(words))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": [float(-1000 + i % 7) for i in range(len(tokens))],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eot_token_id": 5,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }


def family_arrays(architecture: str, metadata: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """Random weights for such metadata, as float32 arrays by GGUF's names."""
    get = {key.partition(".")[2]: value for key, value in metadata.items()}
    hidden, inner = get["embedding_length"], get["feed_forward_length"]
    head = get["attention.key_length"]
    queries, keys = get["attention.head_count"] * head, get["attention.head_count_kv"] * head
    block: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (hidden,),
        "attn_q.weight": (queries, hidden),
        "attn_k.weight": (keys, hidden),
        "attn_v.weight": (keys, hidden),
        "attn_output.weight": (hidden, queries),
        "ffn_norm.weight": (hidden,),
        "ffn_gate.weight": (inner, hidden),
        "ffn_up.weight": (inner, hidden),
        "ffn_down.weight": (hidden, inner),
    }
    if architecture == "qwen2":
        biased = (("q", queries), ("k", keys), ("v", keys))
        block |= {f"attn_{name}.bias": (size,) for name, size in biased}
    else:
        block |= {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}
    if architecture == "gemma3":
        block |= {"post_attention_norm.weight": (hidden,), "post_ffw_norm.weight": (hidden,)}
    shapes = {
        "token_embd.weight": (len(metadata["tokenizer.ggml.tokens"]), hidden),
        "output_norm.weight": (hidden,),
    }
    for layer in range(get["block_count"]):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    random = np.random.default_rng(seed)
    arrays = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    # Norms about one, as trained ones are; Gemma's are stored one larger than they act.
    return {n: a * 0.15 + 1 if "norm" in n else a * 0.2 for n, a in arrays.items()}


def k_blocks(
    kind: str, shape: tuple[int, ...], seed: int = 0
) -> tuple[int, tuple[int, ...], bytes]:
    """A tensor of random blocks of a K type, with scales that keep its values about one."""
    number, width, scales = K_KINDS[kind]
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (int(np.prod(shape)) // 256, width)).astype(np.uint8)
    for place in scales:
        small = (random.random((len(raw), 1)) * 2e-3 + 1e-4).astype(np.float16)
        raw[:, place : place + 2] = small.view(np.uint8)
    return number, shape, raw.tobytes()


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def weights_of(folder: Path) -> dict[str, mx.array]:
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    return weights
