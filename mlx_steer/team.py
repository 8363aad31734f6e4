"""The ranks that `mlx.launch` started together; a process on its own is a team of one.

All ranks of a team call the same methods in the same order, or they wait for one another without
end. Bytes travel as arrays on the CPU: ranks need not share a disk.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from mlx_steer.errors import TeamError

if TYPE_CHECKING:
    import mlx.core as mx

# Set by mlx.launch, Open MPI, and MPICH.
_RANK = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


@dataclass(frozen=True, eq=False)
class Team:
    """Some ranks, and which of them this process is.

    Attributes:
        rank: This process, counted from 0.
        size: How many there are.
        group: mlx's own; None for a process on its own.
    """

    rank: int = 0
    size: int = 1
    group: mx.distributed.Group | None = None

    def told(self, value: bytes = b"") -> bytes:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        import mlx.core as mx

        own = value if self.rank == 0 else b""
        length = int(self._sum(mx.array([len(own)], mx.int64))[0])
        # All but rank 0 add zeros.
        data = mx.array(bytearray(own), mx.uint8) if own else mx.zeros(length, mx.uint8)
        return bytes(memoryview(self._sum(data))) if length else b""

    def gathered(self, value: bytes) -> list[bytes]:
        """Every rank's value, by rank, on every rank."""
        if self.size == 1:
            return [value]
        import mlx.core as mx

        mine = mx.arange(self.size) == self.rank
        lengths: list[int] = self._sum(mx.where(mine, len(value), 0).astype(mx.int64)).tolist()  # type: ignore
        longest = max(lengths)
        if not longest:
            return [b""] * self.size
        rows = mx.zeros((self.size, longest), mx.uint8)
        if value:
            rows[self.rank, : len(value)] = mx.array(bytearray(value), mx.uint8)
        held = bytes(memoryview(self._sum(rows)))
        return [held[i * longest : i * longest + n] for i, n in enumerate(lengths)]

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

    def least(self, value: int) -> int:
        """The smallest of the ranks' numbers, on every rank."""
        return min(map(int, self.gathered(str(value).encode())))

    def _sum(self, value: mx.array) -> mx.array:
        import mlx.core as mx

        found = mx.distributed.all_sum(value, group=self.group, stream=mx.cpu)
        mx.eval(found)
        return found


def launched_rank() -> int | None:
    """This process's rank, as whoever started it says; None if it was started on its own."""
    found = next((os.environ[name] for name in _RANK if name in os.environ), "")
    return int(found) if found.isdecimal() else None


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
            f"{reason}; check the hosts given to mlx.launch"
        ) from error
    return Team(group.rank(), group.size(), group)
