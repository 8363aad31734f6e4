"""A GGUF file given as the model: every kind of tensor, loaded, extracted from and steered."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_steer.conditions import Intervention
from mlx_steer.engine.steered import steered
from mlx_steer.model.hub import locate
from mlx_steer.model.load import Model, load_model
from tests.helpers.gguf_files import F16, LAYERS, Q4_0, Q4_1, Q8_0, Tensors, tiny_arrays, tiny_gguf
from tests.helpers.plain import plain_logits
from tests.helpers.tiny import random_ids

KINDS = {"F16": F16, "Q8_0": Q8_0, "Q4_0": Q4_0, "Q4_1": Q4_1}
# Of a logit, on average, from the float32 file's: what the kind's rounding may do.
ROUNDING = {"F16": 0.01, "Q8_0": 0.15, "Q4_0": 2.0, "Q4_1": 2.0}
IDS = [i % 256 for i in random_ids(2, 24)]


def packed(kind: int, array: np.ndarray) -> bytes:
    """An array as llama.cpp would store it, by the nearest values of the kind."""
    if kind == F16:
        return array.astype(np.float16).tobytes()
    blocks = array.reshape(-1, 32)
    if kind == Q8_0:
        scale = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16)
        whole = np.rint(blocks / scale.astype(np.float32)).clip(-127, 127).astype(np.int8)
        return np.concatenate([scale.view(np.uint8), whole.view(np.uint8)], axis=1).tobytes()
    low = blocks.min(axis=1, keepdims=True).astype(np.float16)
    if kind == Q4_0:
        scale = (np.abs(blocks).max(axis=1, keepdims=True) / 7).astype(np.float16)
        parts, offset = [scale.view(np.uint8)], -8 * scale.astype(np.float32)
    else:
        spread = blocks.max(axis=1, keepdims=True) - low.astype(np.float32)
        scale = (spread / 15).astype(np.float16)
        parts, offset = [scale.view(np.uint8), low.view(np.uint8)], low.astype(np.float32)
    four = np.rint((blocks - offset) / scale.astype(np.float32)).clip(0, 15).astype(np.uint8)
    return np.concatenate([*parts, four[:, :16] | four[:, 16:] << 4], axis=1).tobytes()


def tensors(kind: int) -> Tensors:
    """Every matrix of the tiny model in this kind; norms stay float32, as they do."""
    matrices = {name: array for name, array in tiny_arrays().items() if array.ndim == 2}
    return {n: (kind, array.shape, packed(kind, array)) for n, array in matrices.items()}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MLX_STEER_CACHE", str(tmp_path / "cache"))


def logits(model: Model) -> mx.array:
    return model.network(mx.array([IDS]))[0].astype(mx.float32)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_every_kind_is_loaded_by_its_path_and_steered(name: str, tmp_path: Path) -> None:
    exact = load_model(str(tiny_gguf(tmp_path / "exact.gguf")), dtype="float32")
    path = tiny_gguf(tmp_path / "packed.gguf", tensors=tensors(KINDS[name]))
    model = load_model(str(path), dtype="float32")
    assert model.num_layers == LAYERS
    assert locate(str(path)).folder != locate(str(tmp_path / "exact.gguf")).folder

    away = mx.abs(logits(model) - logits(exact)).mean().item()
    assert 0 < away < ROUNDING[name]

    act = Intervention(1, np.random.default_rng(0).standard_normal(model.hidden_size), 2.0)
    before, expected = logits(model), plain_logits(model, IDS, [act], len(IDS) - 1)
    with steered(model, [act]):
        found = logits(model)
    assert mx.abs(found - expected).max().item() < 1e-3
    assert mx.abs(found - before).mean().item() > 0.1
    assert mx.array_equal(logits(model), before)
