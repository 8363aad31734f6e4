"""The real llama.cpp steers with an exported control vector as `steered` does, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_steer import steered
from mlx_steer.engine.steering import steerable
from mlx_steer.vectors import ModelInfo, SteeringVector, SteeringVectorSet
from mlx_steer.vectors.exchange.control_vector import write_control_vector
from scripts.llama_cpp import Float32, LlamaCpp, libraries, llama_cpp, load_control_vector
from tests.helpers.gguf_models import write_model
from tests.helpers.tiny import HIDDEN, LAYERS, random_ids, random_vector, tiny_network
from tests.helpers.vector_sets import vector_set

FAMILIES = ["llama", "qwen2"]
IDS = random_ids(3, 24)
TOLERANCE = 2e-4
"""Largest difference of values of up to 18; measured: 4.5e-5."""


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    try:
        libraries()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=FAMILIES)
def pair(
    installed: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[nn.Module, LlamaCpp]]:
    """The same weights here and in llama.cpp."""
    network = tiny_network(request.param)
    path = write_model(request.param, network, tmp_path_factory.mktemp("m") / "model.gguf")
    with llama_cpp(path) as theirs:
        yield network, theirs


def vectors_at(layers: Sequence[int]) -> SteeringVectorSet:
    info = ModelInfo(
        id="tiny", revision=None, model_type="llama", quantization=None, fingerprint="0"
    )
    metadata = vector_set((1,), hidden_size=HIDDEN, num_layers=LAYERS, model=info).metadata
    return SteeringVectorSet([SteeringVector(i, random_vector(i), 10.0) for i in layers], metadata)


def ours(network: nn.Module, vectors: SteeringVectorSet | None) -> tuple[Float32, list[Float32]]:
    """Logits and each block's output for the prompt."""
    states: dict[int, mx.array] = {}
    with steerable(network) as sites:
        for i, site in enumerate(sites):
            site.record = lambda h, i=i: states.update({i: h})
        if vectors is None:
            logits = network(mx.array([IDS]))
        else:
            with steered(network, vectors, layer=list(vectors), strength=1.0):
                logits = network(mx.array([IDS]))
        for site in sites:
            site.record = None
    return np.array(logits[0]), [np.array(states[i][0]) for i in range(LAYERS)]


def greedy(network: nn.Module, vectors: SteeringVectorSet, count: int) -> list[int]:
    tokens: list[int] = []
    with steered(network, vectors, layer=list(vectors), strength=1.0):
        for _ in range(count):
            logits = network(mx.array([[*IDS, *tokens]]))
            tokens.append(int(mx.argmax(logits[0, -1]).item()))
    return tokens


def exported(vectors: SteeringVectorSet, folder: Path) -> Float32:
    """Written by us, read by llama.cpp's own loader."""
    write_control_vector(vectors, folder / "x.gguf")
    return load_control_vector(folder / "x.gguf")


def test_unsteered_both_compute_the_same(pair: tuple[nn.Module, LlamaCpp]) -> None:
    network, theirs = pair
    theirs.steer(None)
    logits, states = theirs.run(IDS)
    our_logits, our_states = ours(network, None)
    for mine, other in zip(our_states, states, strict=True):
        np.testing.assert_allclose(other, mine, atol=TOLERANCE)
    np.testing.assert_allclose(logits, our_logits, atol=TOLERANCE)


@pytest.mark.parametrize("layers", [(1,), (3,), (LAYERS - 1,), (1, 2, 4)], ids=str)
def test_a_control_vector_acts_where_and_as_much_as_ours(
    layers: tuple[int, ...], pair: tuple[nn.Module, LlamaCpp], tmp_path: Path
) -> None:
    network, theirs = pair
    vectors = vectors_at(layers)
    theirs.steer(exported(vectors, tmp_path))
    logits, states = theirs.run(IDS)
    our_logits, our_states = ours(network, vectors)
    for mine, other in zip(our_states, states, strict=True):
        np.testing.assert_allclose(other, mine, atol=TOLERANCE)
    np.testing.assert_allclose(logits, our_logits, atol=TOLERANCE)
    assert theirs.greedy(IDS, 32) == greedy(network, vectors, 32)


def test_a_shift_by_one_layer_would_be_seen(
    pair: tuple[nn.Module, LlamaCpp], tmp_path: Path
) -> None:
    network, theirs = pair
    theirs.steer(exported(vectors_at([3]), tmp_path))
    logits, states = theirs.run(IDS)
    moved = SteeringVectorSet([SteeringVector(2, random_vector(3), 10.0)], vectors_at([2]).metadata)
    our_logits, our_states = ours(network, moved)
    assert np.abs(states[2] - our_states[2]).max() > 1
    assert np.abs(logits - our_logits).max() > 1


def test_llama_cpp_itself_refuses_a_direction_0(tmp_path: Path) -> None:
    from tests.helpers.gguf_files import write_gguf

    row = np.ones(HIDDEN, np.float32).tobytes()
    path = write_gguf(
        tmp_path / "x.gguf",
        {"general.architecture": "controlvector"},
        {"direction.0": (0, (HIDDEN,), row)},
    )
    with pytest.raises(ValueError, match="cannot read"):
        load_control_vector(path)


def test_llama_cpp_reads_our_bytes_and_zeros_for_layers_left_out(tmp_path: Path) -> None:
    vectors = vectors_at([2, 5])
    rows = exported(vectors, tmp_path)
    assert rows.shape == (5, HIDDEN)
    for layer in (2, 5):
        assert rows[layer - 1].tobytes() == vectors[layer].array.tobytes()
    assert not rows[[0, 2, 3]].any()
