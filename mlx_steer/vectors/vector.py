"""The steering vector of one layer, an immutable object with operators."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_steer.errors import VectorError
from mlx_steer.vectors.metadata import nine_digits

FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """The steering vector of one layer, immutable; operators give new ones.

    Attributes:
        layer: The decoder block whose output it is added to, counted from 0.
        array: float32, shape (hidden_size,), read-only; not normalised.
        hidden_norm: Mean norm of the hidden states it was taken from (kept to 9 digits); None where
            nobody knows it, as of most imported vectors.

    Raises:
        VectorError: If the array is not one finite row of numbers, the layer is negative or the
            hidden norm is not above zero.
    """

    layer: int
    array: FloatArray = field(repr=False)
    hidden_norm: float | None

    # numpy would otherwise spread `np.float64(2) * vector` over the elements itself
    __array_ufunc__ = None

    def __post_init__(self) -> None:
        """Checks the values and takes a private, read-only copy of the array."""
        if isinstance(self.layer, bool) or not isinstance(self.layer, int | np.integer):
            raise VectorError(f"A layer is a whole number from 0 up, not {self.layer!r}.")
        if self.layer < 0:
            raise VectorError(f"A steering vector's layer counts from 0, not {self.layer}.")
        source = np.asarray(self.array)
        where = f"The steering vector of layer {self.layer}"
        if source.dtype.kind not in "fiu" or source.ndim != 1 or source.size == 0:
            raise VectorError(
                f"{where} must be one row of numbers, not {source.dtype} of shape {source.shape}."
            )
        with np.errstate(over="ignore"):
            array = source.astype("<f4")
        if not np.isfinite(array).all():
            raise VectorError(f"{where} has values that are not finite in float32.")
        if self.hidden_norm is not None:
            if not (math.isfinite(self.hidden_norm) and self.hidden_norm > 0):
                raise VectorError(f"{where} needs a hidden norm above 0, not {self.hidden_norm}.")
            object.__setattr__(self, "hidden_norm", nine_digits(float(self.hidden_norm)))
        object.__setattr__(self, "layer", int(self.layer))
        # a view of bytes: no caller can make it writable again
        object.__setattr__(self, "array", np.frombuffer(array.tobytes(), dtype="<f4"))

    @property
    def hidden_size(self) -> int:
        """Number of elements."""
        return int(self.array.size)

    @property
    def norm(self) -> float:
        """Euclidean norm, summed without rounding in float64, so the same on every machine."""
        return math.sqrt(math.fsum(np.square(self.array, dtype=np.float64).tolist()))

    def relative_dose(self, strength: float) -> float | None:
        """How large `strength` times this vector is, in units of the hidden states' mean norm.

        None where that is unknown.
        """
        return None if self.hidden_norm is None else strength * self.norm / self.hidden_norm

    def normalised(self) -> "SteeringVector":
        """The vector of norm 1 in the same direction; raises VectorError for a zero vector."""
        return self._with(self._float64() / self._nonzero_norm())

    def cosine(self, other: "SteeringVector") -> float:
        """Cosine similarity in [-1, 1] with a vector of the same size, of any layer.

        Raises:
            VectorError: If the sizes differ or one vector is zero.
        """
        self._check_size(other)
        products = self._float64() * other._float64()
        cosine = math.fsum(products.tolist()) / (self._nonzero_norm() * other._nonzero_norm())
        return min(1.0, max(-1.0, cosine))

    def __add__(self, other: object) -> "SteeringVector":
        """Sum with a vector of the same layer and size; the hidden norm is the mean of both."""
        if not isinstance(other, SteeringVector):
            return NotImplemented
        return weighted_sum([self, other], [1.0, 1.0])

    def __sub__(self, other: object) -> "SteeringVector":
        """Difference from a vector of the same layer and size."""
        if not isinstance(other, SteeringVector):
            return NotImplemented
        return weighted_sum([self, other], [1.0, -1.0])

    def __mul__(self, factor: object) -> "SteeringVector":
        """Scaled by a number."""
        number = as_number(factor)
        if number is None:
            return NotImplemented
        with np.errstate(over="ignore", invalid="ignore"):
            return self._with(self._float64() * number)

    __rmul__ = __mul__

    def __truediv__(self, divisor: object) -> "SteeringVector":
        """Divided by a number other than zero."""
        number = as_number(divisor)
        if number is None:
            return NotImplemented
        if number == 0:
            raise VectorError(f"The steering vector of layer {self.layer} is divided by zero.")
        with np.errstate(over="ignore", invalid="ignore"):
            return self._with(self._float64() / number)

    def __neg__(self) -> "SteeringVector":
        """The opposite direction."""
        return self._with(-self.array)

    def _with(self, array: FloatArray) -> "SteeringVector":
        return SteeringVector(self.layer, array, self.hidden_norm)

    def _float64(self) -> npt.NDArray[np.float64]:
        return self.array.astype(np.float64)

    def _nonzero_norm(self) -> float:
        if not self.array.any():
            raise VectorError(f"The vector of layer {self.layer} is zero and has no direction.")
        return self.norm

    def _check_size(self, other: "SteeringVector") -> None:
        if self.hidden_size != other.hidden_size:
            raise VectorError(
                f"The steering vectors of layers {self.layer} and {other.layer} have "
                f"{self.hidden_size} and {other.hidden_size} elements; take vectors of one model."
            )


def relative_dose(vectors: Sequence[SteeringVector], strength: float) -> float | None:
    """How much one vector, or those of a band, add at a strength, in units of the hidden state.

    For a band the norm of the vectors' sum over the mean norm of the hidden states of its last
    layer: what has been added by the band's end, if its layers pass on what they get. Neighbouring
    layers' vectors point much the same way, so their doses add up and not their squares.

    Args:
        vectors: In the order of their layers.
        strength: The factor on each.

    Returns:
        None where the mean norm is unknown.
    """
    if len(vectors) == 1:
        return vectors[0].relative_dose(strength)
    *_, last = vectors
    total = np.sum([vector._float64() for vector in vectors], axis=0)
    return SteeringVector(last.layer, total, last.hidden_norm).relative_dose(strength)


def weighted_sum(vectors: Sequence[SteeringVector], weights: Sequence[float]) -> SteeringVector:
    """The sum in float64 of vectors of one layer, each times its weight."""
    first = vectors[0]
    total = np.zeros(first.hidden_size, dtype=np.float64)
    for vector, weight in zip(vectors, weights, strict=True):
        if vector.layer != first.layer:
            raise VectorError(
                f"Steering vectors of layers {first.layer} and {vector.layer} cannot be added; "
                "take both from one layer."
            )
        first._check_size(vector)
        total += weight * vector._float64()
    norms = [vector.hidden_norm for vector in vectors if vector.hidden_norm is not None]
    mean = math.fsum(norms) / len(norms) if len(norms) == len(vectors) else None
    return SteeringVector(first.layer, total, mean)


def as_number(value: object) -> float | None:
    """A real number as a float; None for anything else, arrays and booleans among it."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
