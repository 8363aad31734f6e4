"""Reads and checks the header of a GGUF file, before its tensors are read.

The gguf library's own reader is not for files from strangers: it believes every count it is told,
so that a header of a few bytes keeps it busy for minutes. Only its tables and formats are used.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from mlx_steer.errors import ModelError
from mlx_steer.words import Dtype

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"}
_SCALARS |= {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4  # ggml's

# Types that lie in blocks of 32 values or single ones, and that need no more than 16 bits for them.
_EXACT = ("F32", "F16", "Q4_0", "Q4_1", "Q8_0")
_READABLE = {
    int(GGMLQuantizationType[name]): name
    for name in (
        *(*_EXACT, "BF16", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
        *("IQ4_NL", "IQ4_XS"),
    )
}

_T = TypeVar("_T")


@dataclass(frozen=True)
class Tensor:
    """One tensor: GGUF's type number, shape with the fastest dimension last, place in the data."""

    type: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself: metadata as plain Python values, tensors by name."""

    path: Path
    metadata: Mapping[str, object]
    tensors: Mapping[str, Tensor]
    data_start: int

    def get(self, key: str, kind: type[_T], default: _T | None = None) -> _T:
        """Returns the value of `key`, or `default`; raises ModelError if it is absent or odd."""
        value = self.metadata.get(key, default)
        if value is None:
            raise ModelError(f"{self.path} has no '{key}'; use a complete GGUF file of the model.")
        if not isinstance(value, kind):
            raise ModelError(
                f"{self.path}: '{key}' is of type {type(value).__name__}, not {kind.__name__}; "
                "use another GGUF file of the model."
            )
        return value

    def get_list(self, key: str, kind: type[_T], default: list[_T] | None = None) -> list[_T]:
        """Returns the list of `key`, all of one kind; otherwise as `get`."""
        values = self.get(key, list, default)
        if not all(isinstance(value, kind) for value in values):
            raise ModelError(f"{self.path}: '{key}' is no list of {kind.__name__}; copy it again.")
        return values

    def token_id(self, role: str) -> int | None:
        """Returns the id of the bos, eos, padding, ... token if the file names one."""
        key = f"tokenizer.ggml.{role}_token_id"
        if key not in self.metadata:
            return None
        index = self.get(key, int)
        if not 0 <= index < len(self.get("tokenizer.ggml.tokens", list)):
            raise ModelError(
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
    """Reads everything before the data; raises ModelError if the file is no GGUF or damaged."""
    try:
        with path.open("rb") as file:
            reader = _Reader(file, os.fstat(file.fileno()).st_size)
            if file.read(4) != b"GGUF":
                raise ModelError(f"{path} is not a GGUF file; give a file that starts with 'GGUF'.")
            version = reader.scalar("I")
            if version not in (2, 3):
                raise ModelError(
                    f"{path} is GGUF version {version}; only little-endian versions 2 and 3 can "
                    "be read, so convert the model again with a current llama.cpp."
                )
            tensor_count, pair_count = reader.scalar("Q"), reader.scalar("Q")
            metadata: dict[str, object] = {}
            for _ in range(pair_count):
                key, kind = reader.text(), reader.scalar("I")
                # Readers take an alignment of another type for the default one, or for damage.
                if key in metadata or (key == "general.alignment" and kind != 4):
                    raise KeyError(key)
                metadata[key] = reader.value(kind)
            tensors = {}
            for _ in range(tensor_count):
                name = reader.text()
                if name in tensors:
                    raise KeyError(name)  # which of the two is meant?
                # GGUF gives the fastest-moving dimension first; here as everywhere else it is last.
                dimensions = reader.scalar("I")
                if dimensions > _MOST_DIMENSIONS:
                    raise ModelError(
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
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from error
    except EOFError:
        raise ModelError(f"{path} is truncated; download or copy it again.") from None
    except (KeyError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(
            f"{path} is damaged ({type(error).__name__} in the header); download or copy it again."
        ) from error
    return Header(path, metadata, tensors, data_start)


def check_data(header: Header) -> None:
    """Raises ModelError for a type that cannot be read or a tensor past the end of the file."""
    size = header.path.stat().st_size
    types = {tensor.type for tensor in header.tensors.values()}
    if unreadable := sorted(types - _READABLE.keys()):
        known = {int(kind): kind.name for kind in GGMLQuantizationType}
        names = ", ".join(known.get(number, f"type {number}") for number in unreadable)
        raise ModelError(
            f"{header.path} holds {names} tensors, which cannot be read; use a file in "
            f"{', '.join(_READABLE.values())}."
        )
    for name, tensor in header.tensors.items():
        values, _ = _block(tensor)
        if tensor.shape and tensor.shape[-1] % values:
            raise ModelError(
                f"{header.path}: the rows of '{name[:100]}' are no whole number of blocks; "
                "download or copy it again."
            )
        if header.data_start + tensor.offset + math.prod(byte_shape(tensor)) > size:
            raise ModelError(f"{header.path} is truncated; download or copy it again.")


def byte_shape(tensor: Tensor) -> tuple[int, ...]:
    """A tensor's shape in bytes, of a type that can be read."""
    values, width = _block(tensor)
    *rows, last = tensor.shape or (1,)
    return (*rows, last // values * width)


def _block(tensor: Tensor) -> tuple[int, int]:
    """Values and bytes of a block of a tensor's type."""
    values, width = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.type)]
    return int(values), int(width)


def natural_dtype(header: Header) -> Dtype:
    """The dtype that a file is best converted to.

    Weights in a few bits are far from what they were before; 16 bits hold them well enough, and
    models in these formats are large. bfloat16, because some models overflow float16.
    """
    names = {_READABLE.get(tensor.type) for tensor in header.tensors.values()}
    return "float32" if names <= set(_EXACT) else "bfloat16"
