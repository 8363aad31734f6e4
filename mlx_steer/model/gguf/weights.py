"""A model's tensors from a GGUF file: their names, shapes, values and order of rows."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from mlx_steer.errors import ModelError
from mlx_steer.gguf_header import Header
from mlx_steer.model.gguf.architectures import Architecture
from mlx_steer.model.gguf.config import ROPE_FACTORS
from mlx_steer.model.gguf.readable import byte_shape

# A file of weights is at most so large, and so is what is in memory at a time.
SHARD_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Wanted:
    """A tensor that the model needs.

    Attributes:
        source: Its name in the GGUF file.
        target: Its name in the folder.
        shape: Rows first.
        heads: Heads whose rows are stored as pairs that rotate together; 0 for other tensors.
        offset: What the stored values are larger by.
    """

    source: str
    target: str
    shape: tuple[int, ...]
    heads: int = 0
    offset: float = 0.0


def wanted_tensors(architecture: Architecture, config: Mapping[str, object]) -> list[Wanted]:
    """All tensors of the model that config.json describes."""
    size = {key: value for key, value in config.items() if isinstance(value, int)}
    hidden, inner, head_dim = size["hidden_size"], size["intermediate_size"], size["head_dim"]
    queries = size["num_attention_heads"] * head_dim
    keys = size["num_key_value_heads"] * head_dim
    matrices: dict[str, tuple[int, ...]] = {
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    offset = architecture.norm_offset
    embedding = (size["vocab_size"], hidden)
    wanted = [
        Wanted("token_embd.weight", "model.embed_tokens.weight", embedding),
        Wanted("output_norm.weight", "model.norm.weight", (hidden,), offset=offset),
    ]
    if not config["tie_word_embeddings"]:
        wanted.append(Wanted("output.weight", "lm_head.weight", embedding))
    pairs = {"attn_q": size["num_attention_heads"], "attn_k": size["num_key_value_heads"]}
    for layer in range(size["num_hidden_layers"]):
        for name, target in architecture.block.items():
            stem, _, kind = name.partition(".")
            source, target = f"blk.{layer}.{name}", f"model.layers.{layer}.{target}"
            if stem not in matrices:
                width = head_dim if stem in ("attn_q_norm", "attn_k_norm") else hidden
                wanted.append(Wanted(source, target, (width,), offset=offset))
                continue
            shape = matrices[stem] if kind == "weight" else matrices[stem][:1]
            heads = pairs.get(stem, 0) if architecture.rotates_pairs else 0
            wanted.append(Wanted(source, target, shape, heads))
    return wanted


def check_tensors(header: Header, architecture: Architecture, wanted: list[Wanted]) -> None:
    """Raises ModelError unless the file holds just the tensors that are wanted."""
    found = {name: t.shape for name, t in header.tensors.items() if name != ROPE_FACTORS}
    names = {w.source for w in wanted}
    problems = [f"it lacks '{w.source}'" for w in wanted if w.source not in found]
    problems += [f"'{name}' is unknown" for name in found if name not in names]
    problems += [
        f"'{w.source}' is {found[w.source]}, not {w.shape}"
        for w in wanted
        if found.get(w.source, w.shape) != w.shape
    ]
    if problems:
        rest = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(
            f"{header.path} does not hold the tensors of a {architecture.title} model: "
            f"{'; '.join(problems[:3])}{rest}. Use another file of this model."
        )


def save_weights(
    header: Header,
    wanted: list[Wanted],
    folder: Path,
    dtype: mx.Dtype,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write all tensors, dequantised, into a folder's safetensors files.

    Args:
        header: The GGUF file's.
        wanted: See `wanted_tensors`.
        folder: Is there already.
        dtype: Of all weights.
        shard_bytes: The size from which they are split among several files.
    """
    shards = list(_shards(wanted, dtype.size, shard_bytes))
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        several = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        name = f"model{several}.safetensors"
        weights = {w.target: _read(header, w).astype(dtype) for w in shard}
        mx.save_safetensors(str(folder / name), weights, {"format": "mlx"})
        places |= dict.fromkeys(weights, name)
    if len(shards) > 1:
        size = sum(math.prod(w.shape) for w in wanted) * dtype.size
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        text = json.dumps(index, indent=2)
        (folder / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")


def _shards(wanted: list[Wanted], item: int, most: int) -> Iterator[list[Wanted]]:
    shard: list[Wanted] = []
    size = 0
    for tensor in wanted:
        more = math.prod(tensor.shape) * item
        if shard and size + more > most:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += more
    yield shard


def _read(header: Header, wanted: Wanted) -> mx.array:
    tensor = header.tensors[wanted.source]
    rows = byte_shape(tensor)
    start = header.data_start + tensor.offset
    raw = np.fromfile(header.path, np.uint8, math.prod(rows), offset=start).reshape(rows)
    values: NDArray[np.float32] = dequantize(raw, GGMLQuantizationType(tensor.type))
    array = mx.array(values.reshape(wanted.shape))
    if wanted.heads:
        array = _unpermuted(array, wanted.heads)
    return array - wanted.offset if wanted.offset else array


def _unpermuted(array: mx.array, heads: int) -> mx.array:
    """Puts the rows of each head, stored as pairs that rotate together, back into two halves."""
    pairs = array.reshape(heads, array.shape[0] // heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(array.shape)
