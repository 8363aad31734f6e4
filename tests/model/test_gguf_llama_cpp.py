"""GGUF files of every architecture and every kind of value, against the real llama.cpp."""

from __future__ import annotations

import ctypes
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from mlx_steer.model.gguf import convert_gguf
from mlx_steer.model.gguf.readable import READABLE
from scripts.llama_cpp import libraries, llama_cpp
from tests.helpers.gguf_files import (
    K_KINDS,
    as_tensors,
    family_arrays,
    family_metadata,
    write_gguf,
)

IDS = [2, 40, 80, 120, 7, 200, 33, 34, 35, 36, 37, 90, 91, 92, 12, 250]
# Of the logits' standard deviation; llama.cpp looks Gemma's activation up in a table of float16.
ERROR = {"qwen2": 1e-4, "qwen3": 1e-4, "gemma3": 3e-3}
# Where a block holds float16 scales; the rest of it may be anything.
SCALES = {name: (0, 2) if name in ("Q4_1", "Q5_1") else (0,) for name in READABLE}
SCALES |= {name: places for name, (_, _, places) in K_KINDS.items()}


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    try:
        libraries()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("architecture", ERROR)
def test_llama_cpp_computes_the_same_logits_from_the_file(
    tmp_path: Path, architecture: str
) -> None:
    metadata = family_metadata(architecture)
    tensors = as_tensors(family_arrays(architecture, metadata))
    file = write_gguf(tmp_path / "x.gguf", metadata, tensors)
    convert_gguf(file, tmp_path / "model")
    network, _ = mlx_lm.load(str(tmp_path / "model"))
    ours = np.array(network(mx.array([IDS]))[0])
    with llama_cpp(file) as theirs:
        expected, _ = theirs.run(IDS)
    np.testing.assert_allclose(ours, expected, atol=ERROR[architecture] * expected.std())


class _Traits(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("values", ctypes.c_int64),
        ("interleaved", ctypes.c_int64),
        ("bytes", ctypes.c_size_t),
        ("quantized", ctypes.c_bool),
        (
            "to_float",
            ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64),
        ),
    )


@pytest.mark.parametrize("name", [name for name in READABLE if name != "F32"])
def test_values_are_bit_for_bit_what_ggml_makes_of_them(name: str) -> None:
    base, kind = libraries().base, GGMLQuantizationType[name]
    base.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    traits = base.ggml_get_type_traits(int(kind)).contents
    assert (traits.values, traits.bytes) == GGML_QUANT_SIZES[kind]
    random, blocks = np.random.default_rng(0), 512
    raw = random.integers(0, 256, (blocks, traits.bytes)).astype(np.uint8)
    for place in SCALES[name]:
        small = (random.standard_normal((blocks, 1)) * 0.01).astype(np.float16)
        raw[:, place : place + 2] = small.view(np.uint8)
    expected = np.empty(blocks * traits.values, np.float32)
    traits.to_float(raw.ctypes.data, expected.ctypes.data, expected.size)
    assert np.isfinite(expected).all() and expected.std() > 0
    assert np.array_equal(dequantize(raw, kind).ravel(), expected)
