"""Reads the header of a GGUF file, of a model or of control vectors, and nothing behind it.

Whatever the file says of its own size is held against its real one, so that a hostile file costs
neither time nor memory. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from mlx_steer.errors import GgufError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"}
_SCALARS |= {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# As many as ggml has.
_MOST_DIMENSIONS = 4
# Far beyond any model's, and read in a second.
_MOST_ENTRIES = 100_000

_T = TypeVar("_T")


@dataclass(frozen=True)
class Tensor:
    """One tensor: GGUF's type number, shape with the fastest dimension last, place in the data."""

    type: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself.

    Attributes:
        path: The file.
        metadata: Its keys, with plain Python values.
        types: GGUF's type number of each key's value.
        tensors: By name.
        data_start: Where the tensors' data begins, in bytes.
    """

    path: Path
    metadata: Mapping[str, object]
    types: Mapping[str, int]
    tensors: Mapping[str, Tensor]
    data_start: int

    def get(self, key: str, kind: type[_T], default: _T | None = None) -> _T:
        """Returns the value of `key`, or `default`; raises GgufError if it is absent or odd."""
        value = self.metadata.get(key, default)
        if value is None:
            raise GgufError(f"{self.path} has no '{key}'; use a complete GGUF file of the model.")
        if not isinstance(value, kind):
            raise GgufError(
                f"{self.path}: '{key}' is of type {type(value).__name__}, not {kind.__name__}; "
                "use another file."
            )
        return value

    def get_list(self, key: str, kind: type[_T], default: list[_T] | None = None) -> list[_T]:
        """Returns the list of `key`, all of one kind; otherwise as `get`."""
        values = self.get(key, list, default)
        if not all(isinstance(value, kind) for value in values):
            raise GgufError(f"{self.path}: '{key}' is no list of {kind.__name__}; copy it again.")
        return values

    def token_id(self, role: str) -> int | None:
        """Returns the id of the bos, eos, padding, ... token if the file names one."""
        key = f"tokenizer.ggml.{role}_token_id"
        if key not in self.metadata:
            return None
        index = self.get(key, int)
        if not 0 <= index < len(self.get("tokenizer.ggml.tokens", list)):
            raise GgufError(
                f"{self.path}: '{key}' is {index}, which is no token of the file; "
                "download or copy it again."
            )
        return index


class _Reader:
    """Reads little-endian values and refuses to go past the end of the file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size

    def take(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise EOFError
        return self.file.read(count)

    def scalar(self, code: str) -> int:
        """Reads one value; `code` as in `struct`."""
        value: int = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]
        return value

    def text(self) -> str:
        return self.take(self.scalar("Q")).decode("utf-8")

    def value(self, kind: int) -> object:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner in _SCALARS:
            code = _SCALARS[inner]
            raw = self.take(count * struct.calcsize(f"<{code}"))
            return list(struct.unpack(f"<{count}{code}", raw))
        return [self.value(inner) for _ in range(count)]


def read_header(path: Path) -> Header:
    """Reads everything before the data; raises GgufError if the file is no GGUF or damaged."""
    try:
        with path.open("rb") as file:
            reader = _Reader(file, os.fstat(file.fileno()).st_size)
            if file.read(4) != b"GGUF":
                raise GgufError(f"{path} is not a GGUF file; give a file that starts with 'GGUF'.")
            version = reader.scalar("I")
            if version not in (2, 3):
                raise GgufError(
                    f"{path} is GGUF version {version}; only little-endian versions 2 and 3 can "
                    "be read, so convert the model again with a current llama.cpp."
                )
            tensor_count, pair_count = reader.scalar("Q"), reader.scalar("Q")
            if max(tensor_count, pair_count) > _MOST_ENTRIES:
                raise GgufError(
                    f"{path} announces {tensor_count} tensors and {pair_count} keys, more than any "
                    "model has; download or copy it again."
                )
            metadata: dict[str, object] = {}
            types: dict[str, int] = {}
            for _ in range(pair_count):
                key, kind = reader.text(), reader.scalar("I")
                # Readers take an alignment of another type for the default one, or for damage.
                if key in metadata or (key == "general.alignment" and kind != 4):
                    raise KeyError(key)
                metadata[key], types[key] = reader.value(kind), kind
            tensors = {}
            for _ in range(tensor_count):
                name = reader.text()
                if name in tensors:
                    raise KeyError(name)  # which of the two is meant?
                # GGUF gives the fastest-moving dimension first; here as everywhere else it is last.
                dimensions = reader.scalar("I")
                if dimensions > _MOST_DIMENSIONS:
                    raise GgufError(
                        f"{path} has a tensor of {dimensions} dimensions, which GGUF does not "
                        "have; download or copy it again."
                    )
                shape = tuple(reader.scalar("Q") for _ in range(dimensions))[::-1]
                tensors[name] = Tensor(reader.scalar("I"), shape, reader.scalar("Q"))
            alignment = metadata.get("general.alignment", 32)
            if not isinstance(alignment, int) or alignment < 1:
                raise KeyError("general.alignment")
            data_start = -(-file.tell() // alignment) * alignment
    except OSError as error:
        raise GgufError(f"{path} cannot be read: {error.strerror or error}.") from error
    except EOFError:
        raise GgufError(f"{path} is truncated; download or copy it again.") from None
    except (KeyError, UnicodeDecodeError, RecursionError) as error:
        raise GgufError(
            f"{path} is damaged ({type(error).__name__} in the header); download or copy it again."
        ) from error
    return Header(path, metadata, types, tensors, data_start)
