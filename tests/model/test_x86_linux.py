"""The faster functions are mlx-lm's, to the last digits of float32."""

import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import activations, base, llama

from mlx_steer.model import x86_linux
from mlx_steer.model.x86_linux import by_groups, by_power, hasten, lay_out

only_here = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64") or mx.default_device() != mx.cpu,
    reason="for x86 Linux only",
)

EXTREME = [-1e30, -3e4, -100.0, -88.8, -20.0, -1e-6, 0.0, 1e-6, 20.0, 88.8, 100.0, 3e4, 1e30]


@mx.compile
def plain(gate: mx.array, x: mx.array) -> mx.array:
    return gate * mx.sigmoid(gate) * x


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: Any,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None = None,
) -> mx.array:
    """As mlx-lm's, which may have been replaced already."""
    return mx.fast.scaled_dot_product_attention(
        queries, keys, values, scale=scale, mask=mask, sinks=sinks
    )


def unused(*_: Any) -> mx.array:
    raise AssertionError("this call is one for the faster attention")


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three parts, however little there is to do."""
    monkeypatch.setattr(x86_linux, "_LEAST_WORK", 1)
    monkeypatch.setattr(x86_linux, "cores", lambda: 3)


def drawn(
    rows: int, length: int, keys: int, heads: tuple[int, int] = (6, 2)
) -> tuple[mx.array, mx.array, mx.array]:
    mx.random.seed(rows + length + keys)
    return (
        mx.random.normal((rows, heads[0], length, 16)),
        mx.random.normal((rows, heads[1], keys, 16)),
        mx.random.normal((rows, heads[1], keys, 8)),
    )


def causal(length: int, keys: int, shape: tuple[int, ...], padding: int = 0) -> mx.array:
    """A mask of the last `length` of all positions, the first ones of each row being padding."""
    places, own = mx.arange(keys), mx.arange(length) + keys - length
    seen = (places[None] <= own[:, None]) & (places[None] >= padding)
    return mx.broadcast_to(seen, (*shape, length, keys))


def test_the_activation_is_as_exact_as_the_one_it_replaces() -> None:
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


@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 7), (4, 1, 7), (1, 4, 7)])
def test_parts_of_an_activation_change_no_digit(
    shape: tuple[int, ...], request: pytest.FixtureRequest
) -> None:
    gate, x = 4 * mx.random.normal(shape), mx.random.normal(shape)
    whole = by_power(plain)(gate, x)
    request.getfixturevalue("in_parts")
    assert mx.array_equal(by_power(plain)(gate, x), whole)


@pytest.mark.parametrize("mask", [None, (1, 1), (4, 1)], ids=lambda m: f"mask {m}")
@pytest.mark.parametrize("rows", [4, 2, 1])
def test_the_attention_is_the_one_it_replaces(
    rows: int, mask: tuple[int, ...] | None, in_parts: None
) -> None:
    queries, keys, values = drawn(rows, 1, 9)
    own = mask and causal(1, 9, tuple(min(n, rows) for n in mask), padding=2)
    found = by_groups(unused)(queries, keys, values, None, 0.25, own)
    expected = attention(queries, keys, values, None, 0.25, own)
    assert found.shape == expected.shape
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-5, atol=1e-6)


def test_rows_whose_padding_differs_keep_their_own_masks(in_parts: None) -> None:
    queries, keys, values = drawn(5, 1, 9)
    mask = mx.concatenate([causal(1, 9, (1, 1), padding=n) for n in (0, 8, 3, 1, 5)])
    found = by_groups(attention)(queries, keys, values, None, 0.25, mask)
    expected = attention(queries, keys, values, None, 0.25, mask)
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-5, atol=1e-6)


def test_a_row_has_the_same_digits_in_any_company(in_parts: None) -> None:
    queries, keys, values = drawn(7, 1, 9)
    faster = by_groups(attention)
    together = faster(queries, keys, values, None, 0.25, None)
    for i in range(7):
        alone = faster(*(x[i : i + 1] for x in (queries, keys, values)), None, 0.25, None)
        assert mx.array_equal(alone[0], together[i])


def test_what_it_does_not_know_is_left_to_the_attention_it_replaces(in_parts: None) -> None:
    given: list[tuple[Any, ...]] = []

    def noted(*call: Any) -> mx.array:
        given.append(call)
        return mx.zeros((1,))

    queries, keys, values = drawn(4, 1, 9)
    bits = SimpleNamespace(bits=4)
    added = mx.zeros((4, 1, 1, 9))
    of_heads = mx.ones((4, 6, 1, 9), mx.bool_)
    half = [x.astype(mx.bfloat16) for x in (queries, keys, values)]
    calls: list[tuple[Any, ...]] = [
        (queries, keys, values, bits, 0.25, None, None),
        (queries, keys, values, None, 0.25, added, None),
        (queries, keys, values, None, 0.25, of_heads, None),
        (queries, keys, values, None, 0.25, "causal", None),
        (mx.concatenate([queries] * 2, axis=2), keys, values, None, 0.25, None, None),
        (queries, keys, values, None, 0.25, None, mx.zeros((6,))),
        (*half, None, 0.25, None, None),
    ]
    for call in calls:
        by_groups(noted)(*call)
    assert len(given) == len(calls)
    assert all(
        a is b
        for ours, theirs in zip(calls, given, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )


def test_other_threads_have_streams_of_their_own(in_parts: None) -> None:
    queries, keys, values = drawn(6, 1, 9)

    def found() -> np.ndarray[Any, Any]:
        return np.array(by_groups(attention)(queries, keys, values, None, 0.25, None))

    mx.eval(queries, keys, values)
    here = found()
    with ThreadPoolExecutor(2) as pool:
        for there in pool.map(lambda _: found(), range(4)):
            np.testing.assert_array_equal(there, here)


@only_here
def test_networks_that_are_loaded_already_get_them_too() -> None:
    hasten()
    for name, home in (("swiglu", activations), ("scaled_dot_product_attention", base)):
        function = getattr(llama, name)
        assert function is getattr(home, name)
        assert function.__module__ == "mlx_steer.model.x86_linux"


@only_here
def test_weights_that_are_laid_out_anew_multiply_to_the_same_bits() -> None:
    network = nn.Sequential(nn.Linear(192, 96), nn.Linear(96, 192, bias=False), nn.Embedding(8, 4))
    network.layers.append(nn.Linear(192, 64).to_quantized(64, 4))
    before = [np.array(layer.weight) for layer in network.layers]
    inputs = [mx.random.normal((rows, 1, 192)) for rows in (1, 7, 64)]

    def results() -> list[np.ndarray]:
        return [np.array(network.layers[1](network.layers[0](x))) for x in inputs]

    expected = results()
    lay_out(network)
    for found, wanted in zip(results(), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    for layer, weight in zip(network.layers, before, strict=True):
        np.testing.assert_array_equal(np.array(layer.weight), weight)
    first, second, *others = (memoryview(layer.weight) for layer in network.layers)
    assert first.f_contiguous and second.f_contiguous
    assert all(view.c_contiguous for view in others)
