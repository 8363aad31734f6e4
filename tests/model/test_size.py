"""The bytes of weights, known before they are loaded or made."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Literal

import pytest

from mlx_steer.errors import ModelError
from mlx_steer.model.load import load_model
from mlx_steer.model.size import check_fits, stream_bytes_of, weight_bytes_of
from tests.engine.test_memory import network_bytes
from tests.helpers.tiny import tiny_folder


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "mixtral"])
def test_weights_on_disk_are_counted_as_they_will_be_loaded(family: str, tmp_path: Path) -> None:
    folder = tiny_folder(family, tmp_path / "model", dtype="bfloat16")
    for dtype, item in (("auto", 2), ("bfloat16", 2), ("float32", 4)):
        loaded = load_model(str(folder), dtype=dtype)  # type: ignore[arg-type]
        assert weight_bytes_of(folder, dtype=dtype) == network_bytes(loaded)
        assert stream_bytes_of(folder, dtype) == loaded.dtype.size == item
    config = json.loads((folder / "config.json").read_text())
    assert weight_bytes_of(config) == pytest.approx(
        network_bytes(load_model(str(folder))), rel=0.02
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_and_expanded_weights_are_counted_before_they_are_made(
    bits: Literal[4, 8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_STEER_CACHE", str(tmp_path / "cache"))
    folder = tiny_folder("llama", tmp_path / "model")
    small = load_model(str(folder), quantize=bits)
    assert weight_bytes_of(folder, quantize=bits) == network_bytes(small)
    (converted,) = (tmp_path / "cache" / "models").iterdir()
    assert weight_bytes_of(converted) == network_bytes(small)
    wide = load_model(str(converted), dequantize=True)
    assert weight_bytes_of(converted, dequantize=True) == network_bytes(wide)


def test_a_model_larger_than_the_machine_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path)
    needed = weight_bytes_of(folder)
    check_fits("tiny", folder, limit=needed)
    with pytest.raises(ModelError, match=r"^tiny needs .* this machine can use"):
        check_fits("tiny", folder, limit=needed - 1)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 4, struct.pack("<Q", 10**12), struct.pack("<Q", 4) + b"null"]
)
def test_a_damaged_weight_file_is_named(content: bytes, tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        weight_bytes_of(folder)
