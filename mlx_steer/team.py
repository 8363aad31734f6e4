"""The ranks that `mlx.launch` or `--processes` started; a process on its own is a team of one.

All ranks of a team call the same methods in the same order, or they wait for one another without
end. Bytes travel as arrays on the CPU: ranks need not share a disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from mlx_steer.errors import TeamError

_Unit = TypeVar("_Unit")

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np
    from numpy.typing import NDArray

    _Number = TypeVar("_Number", bound=np.generic)

_BACK_ENDS = ("[ring]", "[jaccl]", "[mpi]", "[nccl]")
# Set by mlx.launch, Open MPI, and MPICH.
_RANK = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


RANK_LOST = "another rank has ended; finished rows are kept, run the same command again"


@dataclass
class Traffic:
    """What sums over ranks took.

    Attributes:
        sent: Bytes that this rank has sent, as a ring sends them.
        seconds: In which it waited for others, or for what they sent.
    """

    sent: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Team:
    """Some ranks, and which of them this process is.

    Attributes:
        rank: This process, counted from 0.
        size: How many there are.
        group: mlx's own; None for a process on its own.
        traffic: What has come of it so far, a sharded model's own sums left out.
    """

    rank: int = 0
    size: int = 1
    group: mx.distributed.Group | None = None
    traffic: Traffic = field(default_factory=Traffic)

    def told(self, value: bytes = b"") -> bytes:
        """Rank 0's value, on every rank.

        Raises:
            TeamError: If another rank has ended.
        """
        if self.size == 1:
            return value
        import numpy as np

        own = sealed(value) if self.rank == 0 else b""
        (length,) = self.summed(np.array([len(own)], np.int64)).tolist()
        # All but rank 0 add zeros.
        data = np.frombuffer(own, np.uint8) if own else np.zeros(_sane(length), np.uint8)
        return opened(self.summed(data).tobytes())

    def gathered(self, value: bytes) -> list[bytes]:
        """Every rank's value, by rank, on every rank.

        Raises:
            TeamError: If another rank has ended.
        """
        if self.size == 1:
            return [value]
        import numpy as np

        own = sealed(value)
        lengths = np.zeros(self.size, np.int64)
        lengths[self.rank] = len(own)
        lengths = self.summed(lengths)
        rows = np.zeros((self.size, _sane(lengths.max())), np.uint8)
        rows[self.rank, : len(own)] = np.frombuffer(own, np.uint8)
        held = self.summed(rows)
        return [opened(row[:length].tobytes()) for row, length in zip(held, lengths, strict=True)]

    def share(self, units: Sequence[_Unit]) -> Sequence[_Unit]:
        """This rank's part of some units."""
        return part_of(units, self.rank, self.size)

    def agree(self, facts: Mapping[str, object]) -> None:
        """Make sure that ranks are of one mind, or name the rank that is not.

        Args:
            facts: What must be the same on every rank, by what it is called in the error.

        Raises:
            TeamError: On every rank alike.
        """
        own = {"host": socket.gethostname(), **{k: str(v) for k, v in facts.items()}}
        first, *others = map(json.loads, self.gathered(json.dumps(own).encode()))
        for rank, found in enumerate(others, 1):
            for name in facts:
                if found.get(name) != first[name]:
                    raise TeamError(
                        f"rank {rank} ({found['host']}) has another {name} than rank 0 "
                        f"({first['host']}): {str(found.get(name))[:80]}, not {first[name][:80]}; "
                        "make them the same and start again"
                    )

    def on_this_machine(self) -> int:
        """How many of the ranks share this rank's machine, by its host's name.

        Raises:
            TeamError: If another rank has ended.
        """
        own = socket.gethostname().encode()
        return self.gathered(own).count(own)

    def least(self, value: int) -> int:
        """The smallest of the ranks' numbers, on every rank."""
        return min(map(int, self.gathered(str(value).encode())))

    def summed(self, value: NDArray[_Number]) -> NDArray[_Number]:
        """The sum of all ranks' arrays, of one shape and dtype, on every rank (an all-reduce)."""
        import mlx.core as mx
        import numpy as np

        start = time.perf_counter()
        found = np.array(
            mx.distributed.all_sum(mx.array(value), group=self.group, stream=mx.cpu), copy=True
        )
        self.traffic.seconds += time.perf_counter() - start
        self.traffic.sent += 2 * (self.size - 1) * value.nbytes // self.size
        return found


def part_of(units: Sequence[_Unit], number: int, count: int) -> Sequence[_Unit]:
    """One of so many parts, counted from 0: neighbours, as many as in others or one more."""
    first, end = (len(units) * n // count for n in (number, number + 1))
    return units[first:end]


# Once a rank is gone, sums come back without an error and hold anything: what travels is sealed.
_SEAL = 8
_LARGEST = 2**40


def sealed(value: bytes) -> bytes:
    """A value with what tells that it has come whole."""
    return value + hashlib.sha256(value).digest()[:_SEAL]


def opened(value: bytes) -> bytes:
    """The value that was sealed.

    Raises:
        TeamError: If it has not come whole.
    """
    inner = value[:-_SEAL]
    if sealed(inner) != value:
        raise TeamError(RANK_LOST)
    return inner


def _sane(length: int) -> int:
    if not _SEAL <= length < _LARGEST:
        raise TeamError(RANK_LOST)
    return int(length)


def launched_rank() -> int | None:
    """This process's rank, as whoever started it says; None if it was started on its own."""
    found = next((os.environ[name] for name in _RANK if name in os.environ), "")
    return int(found) if found.isdecimal() else None


def is_rank_lost(error: BaseException) -> bool:
    """Whether an error comes from a rank that has ended: mlx names its back end in brackets."""
    return isinstance(error, RuntimeError) and any(name in str(error) for name in _BACK_ENDS)


@cache
def team() -> Team:
    """The team of this process.

    Raises:
        TeamError: If the others cannot be reached.
    """
    if launched_rank() is None:
        return Team()
    import mlx.core as mx

    try:
        group = mx.distributed.init()
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TeamError(
            f"rank {launched_rank()} ({socket.gethostname()}) cannot reach the other ranks: "
            f"{reason}; check the hosts, if mlx.launch was given any, and start again"
        ) from error
    return Team(group.rank(), group.size(), group)
