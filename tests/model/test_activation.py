"""The faster activation is mlx-lm's, to the last digits of float32."""

import platform
import sys

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import activations, llama

from mlx_steer.model.activation import by_power, hasten_swiglu

EXTREME = [-1e30, -3e4, -100.0, -88.8, -20.0, -1e-6, 0.0, 1e-6, 20.0, 88.8, 100.0, 3e4, 1e30]


@mx.compile
def plain(gate: mx.array, x: mx.array) -> mx.array:
    return gate * mx.sigmoid(gate) * x


def test_it_is_as_exact_as_the_one_it_replaces() -> None:
    mx.random.seed(0)
    gate, x = 4 * mx.random.normal((64, 96)), mx.random.normal((64, 96))
    wide = np.array(gate, np.float64)
    exact = wide / (1 + np.exp(-wide)) * np.array(x, np.float64)
    with mx.stream(mx.cpu):
        found = [np.array(f(gate, x), np.float64) / exact - 1 for f in (by_power(plain), plain)]
    assert np.abs(found[0]).max() < max(1.5 * np.abs(found[1]).max(), 1e-6)


def test_extreme_values_have_the_same_limits() -> None:
    gate = mx.array(EXTREME)
    found = np.array(by_power(plain)(gate, mx.ones_like(gate)))
    assert np.isfinite(found).all()
    expected = np.array(plain(gate, mx.ones_like(gate)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-30)


def test_lower_precisions_are_left_as_they_are() -> None:
    gate = mx.array(EXTREME[3:10]).astype(mx.bfloat16)
    assert (by_power(plain)(gate, gate) == plain(gate, gate)).all()


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64") or mx.default_device() != mx.cpu,
    reason="nothing is replaced here",
)
def test_networks_that_are_loaded_already_get_it_too() -> None:
    hasten_swiglu()
    assert llama.swiglu is activations.swiglu
    assert llama.swiglu.__module__ == "mlx_steer.model.activation"
