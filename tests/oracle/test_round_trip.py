"""A folder of vectors goes from us to the reference path and back without losing a bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlx_steer import extract, load_vectors
from mlx_steer.vectors import SteeringVectorSet
from tests.helpers.tiny import LAYERS, tiny_model
from tests.oracle.cases import BEHAVIOR
from tests.reference import vectors as reference


@pytest.fixture(scope="module")
def extracted() -> SteeringVectorSet:
    return extract(tiny_model(), BEHAVIOR)


def test_a_vector_saved_by_us_is_read_bit_for_bit_by_the_reference_path(
    extracted: SteeringVectorSet, tmp_path: Path
) -> None:
    extracted.save(tmp_path / "ours")
    read = reference.read(tmp_path / "ours")
    assert list(read.vectors) == list(range(LAYERS))
    for layer, vector in extracted.items():
        assert read.vectors[layer].tobytes() == vector.array.tobytes()
        assert read.hidden_norm(layer) == vector.hidden_norm


def test_what_the_reference_path_writes_is_read_bit_for_bit_by_us(
    extracted: SteeringVectorSet, tmp_path: Path
) -> None:
    extracted.save(tmp_path / "ours")
    read = reference.read(tmp_path / "ours")
    norms = {layer: read.hidden_norm(layer) for layer in read.vectors}
    reference.write(tmp_path / "theirs", read.vectors, norms, read.metadata)
    again = load_vectors(tmp_path / "theirs")
    assert again.metadata == extracted.metadata
    for layer, vector in extracted.items():
        name = f"layer_{layer}.npy"
        assert again[layer].array.tobytes() == vector.array.tobytes()
        assert (tmp_path / "theirs" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()


def test_a_third_saving_after_the_round_trip_gives_the_first_one_s_bytes(
    extracted: SteeringVectorSet, tmp_path: Path
) -> None:
    extracted.save(tmp_path / "first")
    read = reference.read(tmp_path / "first")
    norms = {layer: read.hidden_norm(layer) for layer in read.vectors}
    reference.write(tmp_path / "second", read.vectors, norms, read.metadata)
    load_vectors(tmp_path / "second").save(tmp_path / "third")
    first = {p.name: p.read_bytes() for p in (tmp_path / "first").iterdir()}
    assert {p.name: p.read_bytes() for p in (tmp_path / "third").iterdir()} == first


def test_a_single_flipped_bit_is_noticed_by_the_reference_path_too(
    extracted: SteeringVectorSet, tmp_path: Path
) -> None:
    extracted.save(tmp_path)
    path = tmp_path / "layer_2.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"sha256 of layer_2\.npy"):
        reference.read(tmp_path)
    assert np.load(path).shape == (64,)
