"""One steering vector: what it may be, its norm and its algebra."""

import math
from pathlib import Path

import numpy as np
import pytest

from mlx_steer.errors import VectorError
from mlx_steer.vectors import SteeringVector, relative_dose
from tests.helpers.vector_sets import SIZE, vector, vector_set

ROOT = Path(__file__).parents[2]
EXTREME = float(np.finfo(np.float32).max)


def test_a_vector_keeps_a_private_read_only_float32_copy():
    source = np.ones(SIZE)
    made = SteeringVector(np.int64(3), source, 2.0)
    source[:] = 5
    assert made.array.dtype == np.float32
    assert made.array.tolist() == [1.0] * SIZE
    assert type(made.layer) is int
    with pytest.raises(ValueError, match="read-only"):
        made.array[0] = 2.0
    with pytest.raises(ValueError, match="WRITEABLE"):
        made.array.flags.writeable = True
    with pytest.raises(AttributeError):
        made.layer = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("layer", "array", "hidden_norm", "says"),
    [
        (-1, np.ones(3), 1.0, "counts from 0"),
        (True, np.ones(3), 1.0, "whole number"),
        (1.5, np.ones(3), 1.0, "whole number"),
        (2, np.ones((1, 3)), 1.0, r"shape \(1, 3\)"),
        (2, np.float32(1), 1.0, r"shape \(\)"),
        (2, np.ones(0), 1.0, r"shape \(0,\)"),
        (2, np.array(["a"]), 1.0, "one row of numbers"),
        (2, np.array([None]), 1.0, "one row of numbers"),
        (2, np.array([True]), 1.0, "one row of numbers"),
        (2, np.array([1j]), 1.0, "one row of numbers"),
        (2, np.array([1.0, np.nan]), 1.0, "not finite"),
        (2, np.array([1.0, np.inf]), 1.0, "not finite"),
        (2, np.array([1e39]), 1.0, "not finite in float32"),
        (2, np.ones(3), 0.0, "hidden norm above 0"),
        (2, np.ones(3), -1.0, "hidden norm above 0"),
        (2, np.ones(3), math.nan, "hidden norm above 0"),
        (2, np.ones(3), math.inf, "hidden norm above 0"),
    ],
)
def test_a_vector_that_cannot_be_is_refused(layer, array, hidden_norm, says):
    with pytest.raises(VectorError, match=says):
        SteeringVector(layer, array, hidden_norm)


def test_the_relative_dose_of_a_band_is_of_all_that_it_adds_by_its_end() -> None:
    alike, across = (SteeringVector(k, [3.0, 4.0], 10.0 * (k + 1)) for k in (0, 1))
    assert relative_dose([alike], 2.0) == 1.0
    assert relative_dose([alike, across], 2.0) == 1.0, "twice the vector, half as much beside 20"
    turned = SteeringVector(1, [-4.0, 3.0], 20.0)
    assert relative_dose([alike, turned], 2.0) == pytest.approx(2**-0.5)
    assert relative_dose([alike, SteeringVector(1, [3.0, 4.0], None)], 2.0) is None


def test_the_norm_is_euclidean_and_the_relative_dose_is_strength_times_it_over_the_hidden_norm():
    made = SteeringVector(0, np.array([3.0, 4.0]), 20.0)
    assert made.norm == 5.0
    assert made.relative_dose(2.0) == 0.5
    assert made.relative_dose(-2.0) == -0.5
    assert made.relative_dose(0.0) == 0.0


@pytest.mark.parametrize("value", [1e-45, 1e-38, EXTREME])
def test_norms_neither_underflow_nor_overflow(value):
    made = SteeringVector(0, np.full(4, value, dtype=np.float32), 1.0)
    assert made.norm == pytest.approx(2 * float(np.float32(value)), rel=1e-12)
    assert made.normalised().norm == pytest.approx(1.0, rel=1e-6)
    assert made.cosine(made) == pytest.approx(1.0, abs=1e-12)


def test_vector_algebra_agrees_with_numpy():
    a, b = vector(values=1), vector(values=2, hidden_norm=20.0)
    x, y = a.array.astype(np.float64), b.array.astype(np.float64)
    for made, expected in [
        (a + b, x + y),
        (a - b, x - y),
        (a * 3, x * 3),
        (np.float64(3) * a, x * 3),
        (np.float32(3) * a, x * 3),
        (0 * a, x * 0),
        (a / 4, x / 4),
        (-a, -x),
        (a.normalised(), x / np.linalg.norm(x)),
    ]:
        assert isinstance(made, SteeringVector)
        assert made.layer == 12
        np.testing.assert_array_equal(made.array, expected.astype(np.float32))
    assert (a + b).hidden_norm == 15.0
    assert (a * 3).hidden_norm == 10.0
    assert a.cosine(b) == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-12)
    assert a.cosine(-a) == -1.0
    assert a.cosine(vector(layer=3, values=1)) == 1.0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda a: a + vector(layer=13), "layers 12 and 13 cannot be added"),
        (lambda a: a - vector(layer=13), "layers 12 and 13 cannot be added"),
        (lambda a: a + SteeringVector(12, np.ones(3), 1.0), "8 and 3 elements"),
        (lambda a: a.cosine(SteeringVector(12, np.ones(3), 1.0)), "8 and 3 elements"),
        (lambda a: a / 0, "divided by zero"),
        (lambda a: a * math.inf, "not finite"),
        (lambda a: a * math.nan, "not finite"),
        (lambda a: a * 1e60, "not finite"),
        (lambda a: a * 10**400, "not finite"),
        (lambda a: a * 0 / math.nan, "not finite"),
        (lambda a: (a * 0).normalised(), "zero and has no direction"),
        (lambda a: a.cosine(a * 0), "zero and has no direction"),
    ],
)
def test_vector_algebra_without_a_meaning_is_an_error(make, says):
    with pytest.raises(VectorError, match=says):
        make(vector())


@pytest.mark.parametrize(
    "make",
    [
        lambda a: a + 1,
        lambda a: a - np.ones(SIZE),
        lambda a: a * a,
        lambda a: a * np.ones(SIZE),
        lambda a: np.ones(SIZE) * a,
        lambda a: a * True,
        lambda a: a * "2",
        lambda a: a / a,
        lambda a: vector_set((4, 12)) * a,
        lambda a: vector_set((4, 12)) + a,
        lambda a: vector_set((4, 12)) - a,
        lambda a: vector_set((4, 12)) / "2",
    ],
)
def test_operands_of_other_types_are_type_errors(make):
    with pytest.raises(TypeError):
        make(vector())
