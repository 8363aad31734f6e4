"""Vectors of a quantised model: close to the original's, and exactly those of its own weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import mlx.nn as nn
import numpy as np
import pytest

from mlx_steer import extract, load_model
from mlx_steer.errors import ModelError
from mlx_steer.model.load import Model
from mlx_steer.vectors import SteeringVectorSet, compare_vectors
from tests.helpers.tiny import LAYERS, tiny_folder
from tests.oracle.cases import BEHAVIOR, PAIRS, relative_error
from tests.reference import decoder

Bits = Literal[4, 8]
BITS: tuple[Bits, ...] = (4, 8)

# The same weights multiplied in another order: float32 rounding through six layers.
ROUNDING = 3e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def original(folder: Path) -> SteeringVectorSet:
    return extract(load_model(str(folder)), BEHAVIOR)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Converted models are kept for the module, and away from the person's own cache."""
    cache = tmp_path_factory.getbasetemp() / "quantised"
    monkeypatch.setenv("MLX_STEER_CACHE", str(cache))
    return cache


def converted(cache: Path, bits: int) -> Path:
    (found,) = (cache / "models").glob(f"*-{bits}bit")
    return found


def quantised_vectors(folder: Path, bits: Bits) -> SteeringVectorSet:
    return extract(load_model(str(folder), quantize=bits), BEHAVIOR)


def linear_layers(model: Model) -> set[type[nn.Module]]:
    return {type(m) for _, m in model.network.named_modules() if hasattr(m, "weight")}


def test_vectors_of_a_quantised_model_are_close_to_the_original_s_and_closer_in_more_bits(
    folder: Path, original: SteeringVectorSet
) -> None:
    # Sharp random weights suffer far more from 4 bits than a trained model's; a chance direction
    # has a cosine of about 0.1.
    rows = {bits: compare_vectors(quantised_vectors(folder, bits), original) for bits in BITS}
    for four, eight in zip(rows[4], rows[8], strict=True):
        assert 0.6 < four.cosine < 0.98 and 0.99 < eight.cosine < 0.9999, (four, eight)
        assert abs(four.norm_ratio - 1) < 0.2 and abs(eight.norm_ratio - 1) < 0.02, (four, eight)
    assert [row.layer for row in rows[4]] == list(range(LAYERS))


@pytest.mark.parametrize("bits", BITS)
def test_the_record_of_vectors_says_how_their_model_was_quantised(
    folder: Path, original: SteeringVectorSet, bits: Bits
) -> None:
    model = load_model(str(folder), quantize=bits)
    assert nn.QuantizedLinear in linear_layers(model)
    quantization = model.info.quantization
    assert quantization is not None
    assert (quantization["bits"], quantization["group_size"]) == (bits, 64)
    assert model.info.fingerprint != original.metadata.model.fingerprint
    assert quantised_vectors(folder, bits).metadata.model == model.info


@pytest.mark.parametrize("bits", BITS)
def test_dequantised_weights_give_the_vectors_of_the_quantised_ones(
    folder: Path, bits: Bits
) -> None:
    quantised = load_model(str(folder), quantize=bits)
    dequantised = load_model(str(folder), quantize=bits, dequantize=True)
    assert nn.QuantizedLinear not in linear_layers(dequantised)
    assert nn.QuantizedEmbedding not in linear_layers(dequantised)
    ours, expected = extract(dequantised, BEHAVIOR), extract(quantised, BEHAVIOR)
    for layer, vector in ours.items():
        assert relative_error(vector.array, expected[layer].array) < ROUNDING, layer
    # The record is of the model that was loaded, however it is run.
    assert ours.metadata.model == expected.metadata.model


@pytest.mark.parametrize("bits", BITS)
def test_the_reference_path_finds_the_vectors_of_the_quantised_folder(
    folder: Path, own_cache: Path, bits: Bits
) -> None:
    """It unpacks mlx-lm's quantised weights bit by bit, on its own."""
    model = load_model(str(folder), quantize=bits)
    chat, theirs = model.chat, decoder.load(converted(own_cache, bits))
    prompts = [chat.prompt_ids(p.prompt, p.system) for p in PAIRS]
    expected = theirs.mean_difference(
        [i + chat.response_ids(p.positive) for i, p in zip(prompts, PAIRS, strict=True)],
        [i + chat.response_ids(p.negative) for i, p in zip(prompts, PAIRS, strict=True)],
        range(LAYERS),
    )
    for layer, vector in extract(model, BEHAVIOR).items():
        assert relative_error(vector.array, expected[layer]) < ROUNDING, layer


def test_a_comparison_says_what_numpy_says_of_the_two_vectors(
    folder: Path, original: SteeringVectorSet
) -> None:
    vectors = extract(load_model(str(folder), quantize=4), BEHAVIOR, [1, -1])
    rows = compare_vectors(vectors, original)
    assert [row.layer for row in rows] == [1, LAYERS - 1]
    for row in rows:
        a, b = (np.asarray(v[row.layer].array, np.float64) for v in (vectors, original))
        sizes = np.linalg.norm(a), np.linalg.norm(b)
        assert row.cosine == pytest.approx(a @ b / (sizes[0] * sizes[1]), abs=1e-9)
        assert (row.norm_a, row.norm_b) == pytest.approx(sizes)
        assert row.norm_ratio == pytest.approx(sizes[0] / sizes[1])


def test_a_folder_is_quantised_once_and_then_found_in_the_cache(
    folder: Path, own_cache: Path
) -> None:
    load_model(str(folder), quantize=4)
    weights = converted(own_cache, 4) / "model.safetensors"
    before = weights.stat()
    load_model(str(folder), quantize=4)
    after = weights.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_weights_that_are_quantised_already_are_not_quantised_again(
    folder: Path, own_cache: Path
) -> None:
    load_model(str(folder), quantize=4)
    quantised = converted(own_cache, 4)
    assert "quantization" in json.loads((quantised / "config.json").read_text())
    with pytest.raises(ModelError, match="quantised already"):
        load_model(str(quantised), quantize=8)
