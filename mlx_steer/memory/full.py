"""How it shows that memory is full: the errors of MLX, and of numpy and Python.

MLX has no error of its own for it. On Metal it raises RuntimeError, known by its words alone. On a
CPU (MLX 0.32) a failed allocation ends the process, which nothing here can prevent; finished rows
are safe, and a smaller batch goes on from them.
"""

from __future__ import annotations

# Of MLX's allocators, for one array and for all together, and of a command buffer on Metal.
_WORDS = (
    "unable to allocate",
    "maximum allowed buffer size",
    "insufficient memory",
    "kiogpucommandbuffercallbackerroroutofmemory",
)


def is_memory_full(error: BaseException) -> bool:
    """Whether an error says that memory is full; any other must not be taken for it."""
    if isinstance(error, MemoryError):
        return True
    said = str(error).casefold()
    return isinstance(error, RuntimeError) and any(word in said for word in _WORDS)
