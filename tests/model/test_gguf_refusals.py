import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_steer.errors import ModelError
from mlx_steer.model.gguf import convert_gguf
from tests.helpers.gguf_files import HIDDEN, IQ1_S, Q8_0, as_tensors, converted, tiny_gguf

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "other architecture": (
        {"metadata": {"general.architecture": "phi3"}},
        "architecture 'phi3'; only llama, qwen2, qwen3, gemma3 can be converted",
    ),
    "quantisation": (
        {"tensors": {"output.weight": (IQ1_S, (256, HIDDEN), bytes(50 * 64))}},
        "holds IQ1_S tensors.* use a file in F32, F16, BF16, Q4_0.*Q6_K",
    ),
    "unknown type": (
        {"tensors": {"output.weight": (99, (262, HIDDEN), b"")}},
        "holds type 99 tensors",
    ),
    "no tokenizer": ({"without": ("tokenizer.ggml.tokens",)}, "holds no tokenizer"),
    "other tokenizer": ({"metadata": {"tokenizer.ggml.model": "t5"}}, "tokenizer of type 't5'"),
    "unknown rules": ({"metadata": {"tokenizer.ggml.pre": "poro"}}, "rules of 'poro'; known are"),
    "bad merge": ({"metadata": {"tokenizer.ggml.merges": ["h zz"]}}, "tokenizer is damaged"),
    "bad token id": ({"metadata": {"tokenizer.ggml.eos_token_id": 999}}, "999, which is no token"),
    "missing key": ({"without": ("llama.embedding_length",)}, "no 'llama.embedding_length'"),
    "wrong type": ({"metadata": {"llama.block_count": "two"}}, "is of type str, not int"),
    "experts": ({"metadata": {"llama.expert_count": 8}}, "mixture of experts"),
    "partial rotary": ({"metadata": {"llama.rope.dimension_count": 8}}, "rotates 8 of 16"),
    "yarn": ({"metadata": {"llama.rope.scaling.type": "yarn"}}, "another way than 'linear'"),
    "other rotary factors": (
        {"tensors": as_tensors({"rope_freqs.weight": np.linspace(1, 9, 8, dtype=np.float32)})},
        "another way than 'linear'",
    ),
    "missing tensor": ({"without": ("blk.1.ffn_up.weight",)}, "it lacks 'blk.1.ffn_up.weight'"),
    "bias": (
        {"tensors": as_tensors({"blk.0.attn_q.bias": np.zeros(HIDDEN, np.float32)})},
        "'blk.0.attn_q.bias' is unknown",
    ),
    "wrong shape": (
        {"tensors": as_tensors({"blk.0.attn_k.weight": np.zeros((HIDDEN, HIDDEN), np.float32)})},
        r"'blk.0.attn_k.weight' is \(64, 64\), not \(32, 64\)",
    ),
    "half a block": (
        {"tensors": {"blk.0.attn_norm.weight": (Q8_0, (HIDDEN + 8,), bytes(102))}},
        "rows of 'blk.0.attn_norm.weight' are no whole number of blocks",
    ),
    "too many tokens": (
        {"tensors": as_tensors({"token_embd.weight": np.zeros((9, HIDDEN), np.float32)})},
        "262 tokens but 9 embedding rows",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_converted_is_named_and_leaves_nothing(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        converted(tmp_path, **changes)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 a zip file", "is not a GGUF file"),
        (b"", "is not a GGUF file"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(64), "GGUF version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(64), "GGUF version 50331648"),
        (None, "cannot be read: No such file"),
    ],
    ids=["zip", "empty", "version 1", "big-endian", "absent"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "file.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        convert_gguf(tmp_path / "file.gguf", tmp_path / "folder")


def test_a_file_cut_anywhere_is_called_truncated(tmp_path: Path) -> None:
    whole = tiny_gguf(tmp_path / "whole.gguf").read_bytes()
    for cut in [8, 23, 30, 500, *range(1000, len(whole), len(whole) // 40), len(whole) - 1]:
        (tmp_path / "cut.gguf").write_bytes(whole[:cut])
        with pytest.raises(ModelError, match="is truncated"):
            convert_gguf(tmp_path / "cut.gguf", tmp_path / "folder")


def test_a_damaged_header_never_gives_anything_but_a_model_error(tmp_path: Path) -> None:
    whole = tiny_gguf(tmp_path / "whole.gguf").read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for position in random.integers(4, 1200, 60):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(random.integers(8))
        (tmp_path / "damaged.gguf").write_bytes(damaged)
        try:
            convert_gguf(tmp_path / "damaged.gguf", tmp_path / f"folder-{position}")
        except ModelError:
            refused += 1
    assert refused > 10
