"""What may be given to the statistics; a misuse raises ValueError."""

from collections.abc import Sequence, Sized

import numpy as np
import numpy.typing as npt

Booleans = Sequence[bool] | npt.NDArray[np.bool_]
Numbers = Sequence[float] | npt.NDArray[np.floating]


def booleans(name: str, values: Booleans) -> npt.NDArray[np.bool_]:
    """A flat array of booleans; refuses anything else."""
    array = np.asarray(values)
    # A verdict passed by mistake would count as true, "absent" included.
    if array.ndim != 1 or (array.size and array.dtype != np.bool_):
        raise ValueError(
            f"{name} must be a flat sequence of booleans, not of {array.dtype} values."
        )
    return array.astype(np.bool_)


def numbers(name: str, values: Numbers) -> npt.NDArray[np.float64]:
    """A flat array of at least one finite number; refuses anything else."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a flat sequence of at least one number.")
    finite = np.isfinite(array)
    if not finite.all():
        first = int(finite.argmin())
        raise ValueError(f"{name} must be finite, but holds {array[first]} at position {first}.")
    return array


def same_length(a: Sized, b: Sized) -> int:
    """The length of two sequences; refuses lengths that differ, and 0."""
    if len(a) != len(b):
        raise ValueError(f"Both sequences must be equally long, not {len(a)} and {len(b)}.")
    if len(a) == 0:
        raise ValueError("There is nothing to compare: both sequences are empty.")
    return len(a)


def check_resamples(resamples: int) -> None:
    """Refuse a bootstrap without resamples."""
    if resamples < 1:
        raise ValueError(f"A bootstrap needs at least 1 resample, not {resamples}.")


def check_open_unit(name: str, value: float) -> None:
    """Refuse what does not lie between 0 and 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, not {value}.")


def check_probabilities(values: Sequence[float], name: str = "a p-value") -> None:
    """Refuse what does not lie in [0, 1]."""
    for value in values:
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], not {value}.")
