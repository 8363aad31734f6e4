"""After `with steered(...)` everything is as it was before, whatever happened inside."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from mlx_steer.conditions import Gate, Intervention
from mlx_steer.engine.steered import steered
from mlx_steer.engine.steering import SteerableLayer, steerable_class
from mlx_steer.errors import ModelError, VectorError
from tests.helpers.one_sequence import IDS, logits, outputs
from tests.helpers.tiny import (
    HIDDEN,
    random_vector,
    tiny_network,
)

A, B = random_vector(0), random_vector(1)


class Snapshot:
    """Everything that steering must leave as it was, bit by bit."""

    def __init__(self, network: nn.Module, folder: Path) -> None:
        self.logits = logits(network)
        self.names = [name for name, _ in tree_flatten(network.parameters())]
        self.trainable = [name for name, _ in tree_flatten(network.trainable_parameters())]
        self.modules = [(name, type(module)) for name, module in network.named_modules()]
        self.attributes = [sorted(vars(block)) for block in network.layers]
        network.save_weights(str(folder / "weights.safetensors"))
        self.weights = (folder / "weights.safetensors").read_bytes()

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Snapshot)
        assert bool(mx.array_equal(self.logits, other.logits).item())
        return all(vars(self)[k] == vars(other)[k] for k in vars(self) if k != "logits")


def normal(network: nn.Module) -> None:
    with steered(network, A, layer=[1, -1]):
        logits(network)


def raising(network: nn.Module) -> None:
    with pytest.raises(ZeroDivisionError), steered(network, A, layer=2):
        logits(network)
        raise ZeroDivisionError


def raising_in_the_forward(network: nn.Module) -> None:
    with pytest.raises(VectorError), steered(network, A[:-1], layer=2):
        logits(network)


def refused(network: nn.Module) -> None:
    with pytest.raises(ModelError), steered(network, A, layer=[1, 77]):
        pass


def nested(network: nn.Module) -> None:
    with steered(network, A, layer=2):
        once = logits(network)
        with steered(network, B, layer=2), steered(network, B, layer=4):
            assert not mx.array_equal(once, logits(network))
        assert mx.array_equal(once, logits(network))


def gated(network: nn.Module) -> None:
    act = Intervention(2, A, 1.0, scope="generated")
    with steered(network, [act], gate=Gate(0, A, 0.0)):
        cache = make_prompt_cache(network)
        for part in (IDS[:-1], IDS[-1:]):
            mx.eval(network(mx.array(part)[None], cache=cache))
    with steered(network, [act], gate=Gate(5, A, 1e9), prompt=IDS):
        logits(network)


def abandoned(network: nn.Module) -> None:
    def generator():
        with steered(network, A, layer=2):
            while True:
                yield logits(network)

    running = generator()
    next(running)
    running.close()


@pytest.mark.parametrize(
    "use", [normal, raising, raising_in_the_forward, refused, nested, gated, abandoned]
)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mixtral"])
def test_everything_is_bit_identical_afterwards(
    family: str, use: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    network = tiny_network(family)
    before = Snapshot(network, tmp_path)
    use(network)
    assert Snapshot(network, tmp_path) == before


def test_weights_saved_and_parameters_named_inside_steered_are_those_of_the_model(
    tmp_path: Path,
) -> None:
    network = tiny_network("qwen3")
    names = [name for name, _ in tree_flatten(network.parameters())]
    network.save_weights(str(tmp_path / "before.safetensors"))
    with steered(network, A, layer=[0, 3]):
        logits(network)
        assert [name for name, _ in tree_flatten(network.parameters())] == names
        network.save_weights(str(tmp_path / "inside.safetensors"))
        assert isinstance(network.layers[3], SteerableLayer)
        assert isinstance(network.layers[3], type(tiny_network("qwen3").layers[3]))
    before, inside = (tmp_path / f"{n}.safetensors" for n in ("before", "inside"))
    assert before.read_bytes() == inside.read_bytes()


def test_a_quantised_network_is_steered_and_restored() -> None:
    network = tiny_network("llama")
    nn.quantize(network, group_size=64, bits=4)
    before, base = logits(network), outputs(network)[3]
    with steered(network, A, layer=3):
        assert np.allclose(np.array(outputs(network)[3] - base), A, atol=1e-4)
    assert mx.array_equal(before, logits(network))


def test_the_steerable_class_is_made_once_and_behaves_as_the_block() -> None:
    block = tiny_network("llama").layers[0]
    made = steerable_class(type(block))
    assert steerable_class(type(block)) is made
    assert issubclass(made, type(block)) and issubclass(made, SteerableLayer)


def test_blocks_that_return_a_tuple_have_its_first_element_steered() -> None:
    class Pair(nn.Module):
        def __call__(self, x: mx.array, mask: None = None, cache: None = None):
            return x * 2, "second"

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [Pair()]

        def __call__(self, ids: mx.array, cache: object = None) -> mx.array:
            return self.layers[0](mx.ones((*ids.shape, HIDDEN)))[0]

    network = Network()
    with steered(network, A, layer=0):
        first, second = network.layers[0](mx.ones((1, 3, HIDDEN)))
    assert second == "second"
    assert np.allclose(np.array(first), 2 + A, atol=1e-6)
