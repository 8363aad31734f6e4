"""No model folder gives anything but sizes or a ModelError before a model is loaded."""

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_steer.config import ModelConfig
from mlx_steer.experiment.model_facts import find_model
from mlx_steer.model.shape import Shape
from mlx_steer.model.size import stream_bytes_of, weight_bytes_of
from tests.helpers import fuzz
from tests.helpers.tiny import tiny_config

GOOD = {
    **tiny_config("qwen3_moe"),
    "quantization": {"bits": 4, "group_size": 64, "model.norm": {"bits": 8, "group_size": 32}},
    "torch_dtype": "bfloat16",
    "text_config": None,
}
TENSORS: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "model.embed_tokens.weight": {"dtype": "U32", "shape": [320, 8], "data_offsets": [0, 10]},
    "model.embed_tokens.scales": {"dtype": "F16", "shape": [320, 1], "data_offsets": [10, 12]},
    "model.norm.weight": {"dtype": "BF16", "shape": [64], "data_offsets": [12, 16]},
    "lm_head.weight": {"dtype": "F32", "shape": [320, 64], "data_offsets": [16, 20]},
}
INDEX = {"metadata": {"total_size": 20}, "weight_map": {"a": "model.safetensors"}}


def sizes(source: Path | dict[str, Any]) -> None:
    """Whatever is planned with, of a folder or of a config alone."""
    for dtype, quantize, dequantize in ((None, None, False), ("float32", 4, True)):
        size = weight_bytes_of(source, dtype=dtype, quantize=quantize, dequantize=dequantize)
        assert size >= 0
        assert stream_bytes_of(source, dtype) in (1, 2, 4, 8)


def shape(config: dict[str, Any]) -> None:
    """All numbers of a shape are whole and at least 1."""
    found = Shape.of(config)
    for name in ("layers", "hidden", "inner", "heads", "kv_heads", "head_dim", "vocabulary"):
        value = getattr(found, name)
        assert type(value) is int and value >= 1, name
    assert found.parameters >= found.active_parameters > 0
    assert found.kv_bytes(10, 2) > 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    header = json.dumps(TENSORS).encode()
    (path / "config.json").write_text(json.dumps(GOOD))
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return path


@settings(max_examples=80, deadline=None)
@given(fuzz.values(GOOD))
def test_no_config_gives_anything_but_sizes_or_an_error(config: Any) -> None:
    if isinstance(config, dict):
        fuzz.read_or_refused(lambda: shape(config))
        fuzz.read_or_refused(lambda: sizes(config))


def planned(folder: Path) -> None:
    find_model(ModelConfig(name=str(folder)))


@settings(max_examples=60, deadline=None)
@given(config=fuzz.json_files(GOOD), index=st.none() | fuzz.json_files(INDEX))
def test_no_config_file_gives_anything_but_facts_or_an_error(
    config: bytes, index: bytes | None
) -> None:
    with tempfile.TemporaryDirectory() as parent:
        path = Path(parent)
        header = json.dumps(TENSORS).encode()
        (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        (path / "config.json").write_bytes(config)
        (path / "vocab.json").write_text("{}")  # a tokenizer that is looked for, and not read
        if index is not None:
            (path / "model.safetensors.index.json").write_bytes(index)
        fuzz.read_or_refused(lambda: sizes(path))
        fuzz.read_or_refused(lambda: planned(path))


@settings(max_examples=80, deadline=None)
@given(
    header=fuzz.json_files(TENSORS),
    length=st.none() | st.sampled_from([0, 1, 2**32, 2**63, 2**64 - 1]),
    rest=st.binary(max_size=20),
)
def test_no_weights_give_anything_but_sizes_or_an_error(
    folder: Path, header: bytes, length: int | None, rest: bytes
) -> None:
    size = len(header) if length is None else length
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + header + rest)
    fuzz.read_or_refused(lambda: sizes(folder))
