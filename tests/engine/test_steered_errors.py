"""What `with steered(...)` refuses, and how it says so."""

import mlx.nn as nn
import pytest

from mlx_steer.conditions import Intervention
from mlx_steer.engine.steered import steered
from mlx_steer.errors import ModelError, VectorError
from mlx_steer.model.load import decoder_layers
from tests.helpers.one_sequence import logits
from tests.helpers.tiny import (
    HIDDEN,
    LAYERS,
    random_vector,
    tiny_network,
)
from tests.helpers.vector_sets import vector_set

A = random_vector(0)
SHAPE = {"hidden_size": HIDDEN, "num_layers": LAYERS}


@pytest.mark.parametrize("layer", [6, 99, -7])
def test_a_layer_the_model_lacks_is_refused(layer: int) -> None:
    network = tiny_network("llama")
    with (
        pytest.raises(ModelError, match=f"layers 0 to 5, and no layer {layer}"),
        steered(network, A, layer=layer),
    ):
        pass


def test_an_intervention_at_a_layer_the_model_lacks_is_refused() -> None:
    with (
        pytest.raises(ModelError, match="no layer 6"),
        steered(tiny_network("llama"), [Intervention(6, A, 1.0)]),
    ):
        pass


def test_a_layer_the_set_lacks_is_refused() -> None:
    with (
        pytest.raises(VectorError, match="2"),
        steered(tiny_network("llama"), vector_set([1, 3], **SHAPE), layer=2),
    ):
        pass


def test_a_set_or_an_array_without_a_layer_is_refused() -> None:
    for vectors in (vector_set([1, 3], **SHAPE), A):
        with (
            pytest.raises(VectorError, match="say which layer to steer"),
            steered(tiny_network("llama"), vectors),
        ):
            pass


def test_a_set_of_a_model_with_other_layers_is_refused() -> None:
    with (
        pytest.raises(VectorError, match="a model of 9 layers and this one has 6"),
        steered(tiny_network("llama"), vector_set([1, 3], **SHAPE | {"num_layers": 9}), layer=1),
    ):
        pass


def test_a_vector_of_another_hidden_size_is_refused() -> None:
    network = tiny_network("llama")
    for vectors in (
        A[:-1],
        vector_set([2], **SHAPE | {"hidden_size": 32}),
        [Intervention(2, A[:-1], 1.0)],
    ):
        with (
            pytest.raises(VectorError, match="was made for another model"),
            steered(network, vectors, layer=2),
        ):
            logits(network)
    assert type(network.layers[2]).__name__ == "TransformerBlock"


def test_a_network_whose_blocks_are_no_list_is_refused() -> None:
    class Odd(nn.Module):
        model_type = "odd"

        def __init__(self) -> None:
            super().__init__()
            self.layers = {"a": nn.Linear(2, 2)}

    with pytest.raises(ModelError, match="'odd' are not a plain list"):
        decoder_layers(Odd())
