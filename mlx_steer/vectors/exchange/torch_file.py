"""Tensors in PyTorch's files (.pt), read and written without PyTorch and without running anything.

Such a file is a zip archive of a pickle and of the tensors' raw numbers. A pickle is a program;
here its instructions are gone through one by one, and only those that name a tensor, a number, a
text, or a list or dict of these are known. Anything else is refused by name.
"""

import io
import mmap
import pickletools
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from mlx_steer.errors import VectorError
from mlx_steer.vectors.exchange.foreign import Float32, check_size, float32

_T = TypeVar("_T")

_MOST_ENTRIES = 10_000
_MOST_PICKLE = 256 << 10
_REBUILD = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_DICT = "collections OrderedDict"
_DTYPES = {
    "torch FloatStorage": ("F32", 4),
    "torch HalfStorage": ("F16", 2),
    "torch BFloat16Storage": ("BF16", 2),
    "torch DoubleStorage": ("F64", 8),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE")
_IGNORED = ("PROTO", "STOP", "FRAME")


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file: its numbers' place is known, and they are read when asked for.

    Attributes:
        shape: Its shape.
        numbers: The storage's bytes.
        dtype: As safetensors calls it.
    """

    shape: tuple[int, ...]
    numbers: memoryview
    dtype: str

    def read(self) -> Float32:
        """All of it as float32."""
        return float32(self.numbers, self.dtype).reshape(self.shape)

    def row(self, index: int) -> Float32:
        """One row of a matrix as float32."""
        width = len(self.numbers) // self.shape[0]
        return float32(self.numbers[index * width : (index + 1) * width], self.dtype)


@dataclass(frozen=True)
class _Global:
    """A name the pickle asked for, one of those above."""

    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    width: int
    data: memoryview


class _Refused(Exception):
    """What the pickle wants, in words."""


class TorchFile:
    """An open .pt file; tensors are read from it while it is open.

    Raises:
        VectorError: If it is no such file, is damaged, or asks for anything but tensors.
    """

    def __init__(self, path: Path) -> None:
        """Open the file and go through its pickle."""
        if check_size(path) < 22:
            raise VectorError(f"{path} is no PyTorch file: it is too short")
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        try:
            self.content = _content(data)
        except _Refused as error:
            raise VectorError(f"{path}: {error}") from None
        except Exception as error:  # a pickle's program and a zip's numbers may go wrong anywhere
            raise VectorError(
                f"{path} is no whole PyTorch file ({type(error).__name__}); copy it again"
            ) from None


def tensor_file(array: Float32, name: str) -> bytes:
    """A .pt file of one row of numbers, as torch.save writes it; the same array, the same bytes.

    Args:
        array: Float32, one dimension.
        name: The archive's folder, which torch.save calls as the file.
    """
    count = struct.pack("<BL", 0x4A, array.size)  # BININT
    text = [b"X" + struct.pack("<L", len(word)) + word for word in (b"storage", b"0", b"cpu")]
    program = b"".join(
        [
            b"\x80\x02",
            *(b"c" + _REBUILD.replace(" ", "\n").encode() + b"\n", b"("),
            *(b"(", text[0], b"ctorch\nFloatStorage\n", text[1], text[2], count, b"t", b"Q"),
            *(b"K\x00", count + b"\x85", b"K\x01\x85"),  # offset, shape, stride
            *(b"\x89", b"c" + _DICT.replace(" ", "\n").encode() + b"\n", b")R", b"tR."),
        ]
    )
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for path, data in (
            ("data.pkl", program),
            ("byteorder", b"little"),
            ("data/0", np.ascontiguousarray(array, "<f4").tobytes()),
            ("version", b"3\n"),
        ):
            archive.writestr(zipfile.ZipInfo(f"{name}/{path}"), data)
    return stream.getvalue()


def _content(data: memoryview) -> object:
    entries = _entries(data)
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise _Refused("this zip archive holds no data.pkl, so it is no PyTorch file")
    root = pickles[0].removesuffix("data.pkl")
    order = entries.get(f"{root}byteorder")
    if order is not None and bytes(order) != b"little":
        raise _Refused("its numbers are big-endian; save it again on another machine")
    program = entries[pickles[0]]
    if len(program) > _MOST_PICKLE:
        raise _Refused(f"its pickle has {len(program):,} bytes, more than tensors need")
    storages = {k.removeprefix(f"{root}data/"): v for k, v in entries.items()}
    return _Pickle(storages).run(bytes(program))


def _entries(data: memoryview) -> dict[str, memoryview]:
    """The archive's files; none may be compressed, as PyTorch never does."""
    if bytes(data[:4]) != b"PK\x03\x04":
        old = bytes(data[:2]) in (b"\x80\x02", b"\x80\x04")
        what = "a bare pickle, which is never loaded" if old else "not a zip archive"
        raise _Refused(f"it is {what}; PyTorch's torch.save has written zip archives since 1.6")
    end = bytes(data[-65_557:]).rfind(b"PK\x05\x06")
    end += max(0, len(data) - 65_557)
    count, _, place = struct.unpack_from("<HLL", data, end + 10)
    if count > _MOST_ENTRIES:
        raise _Refused(f"it announces {count:,} files, more than vectors need")
    entries: dict[str, memoryview] = {}
    for _ in range(count):
        magic, _, _, _, method, _, crc, packed, size, name, extra, comment = struct.unpack_from(
            "<4s4H4s3L3H", data, place
        )
        (start,) = struct.unpack_from("<L", data, place + 42)
        path = bytes(data[place + 46 : place + 46 + name]).decode()
        place += 46 + name + extra + comment
        if method != 0 or packed != size:
            raise _Refused(f"{path[:60]!r} in it is compressed, which PyTorch never does")
        name, extra = struct.unpack_from("<2H", data, start + 26)
        start += 30 + name + extra
        body = data[start : start + size]
        if magic != b"PK\x01\x02" or len(body) != size or path in entries:
            raise ValueError(path)
        if zlib.crc32(body) != crc:
            raise _Refused(f"{path[:60]!r} in it is damaged; copy it again")
        entries[path] = body
    return entries


class _Pickle:
    """Goes through a pickle's instructions; knows only those that tensors need."""

    def __init__(self, storages: Mapping[str, memoryview]) -> None:
        self.storages = storages
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def run(self, program: bytes) -> object:
        """What it makes."""
        for opcode, argument, _ in pickletools.genops(program):
            self._step(opcode.name, argument)
        (value,) = self.stack
        return value

    def _step(self, name: str, argument: object) -> None:
        stack = self.stack
        if name in _IGNORED:
            return
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _NUMBERS:
            if isinstance(argument, int) and abs(argument) >= 1 << 63:
                raise ValueError  # no size; and a dict of such numbers can be made to take ages
            stack.append(argument)
        elif name == "GLOBAL":
            if argument not in (_REBUILD, _PARAMETER, _DICT, *_DTYPES):
                raise _Refused(
                    f"it asks for {str(argument).replace(' ', '.')[:80]!r}, and nothing but "
                    "tensors is read from a pickle; save a tensor, or a dict of tensors by layer"
                )
            stack.append(_Global(str(argument)))
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[_number(argument)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[_number(argument)])
        elif name.startswith("EMPTY_"):
            stack.append({"LIST": list, "DICT": dict, "TUPLE": tuple}[name[6:]]())
        elif name.startswith("TUPLE"):
            stack.append(tuple(self._popped(int(name[5:]) if name[5:] else None)))
        elif name in ("SETITEM", "SETITEMS"):
            items = self._popped(2 if name == "SETITEM" else None)
            _a(dict, stack[-1]).update(zip(items[::2], items[1::2], strict=True))
        elif name in ("APPEND", "APPENDS"):
            items = self._popped(1 if name == "APPEND" else None)
            _a(list, stack[-1]).extend(items)
        elif name == "BINPERSID":
            stack.append(self._storage(_a(tuple, stack.pop())))
        elif name == "REDUCE":
            function, arguments = self._popped(2)
            stack.append(self._made(_a(_Global, function).name, _a(tuple, arguments)))
        else:
            raise _Refused(f"its pickle uses {name}, which tensors do not need")

    def _popped(self, count: int | None) -> list[object]:
        """The last `count` values, or those since the last mark."""
        start = self.marks.pop() if count is None else len(self.stack) - count
        if start < 0:
            raise IndexError
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _storage(self, parts: tuple[object, ...]) -> _Storage:
        kind, storage_type, key, _, count = parts
        dtype, width = _DTYPES[_a(_Global, storage_type).name]
        data = self.storages[_a(str, key)]
        if kind != "storage" or len(data) != width * _number(count):
            raise ValueError
        return _Storage(dtype, width, data)

    def _made(self, name: str, arguments: tuple[object, ...]) -> object:
        if name == _DICT and not arguments:
            return OrderedDict()
        if name == _PARAMETER:
            return _a(Tensor, arguments[0])
        if name != _REBUILD:
            raise ValueError
        storage = _a(_Storage, arguments[0])
        offset = _number(arguments[1])
        shape, stride = (tuple(map(_number, _a(tuple, part))) for part in arguments[2:4])
        plain = tuple(np.cumprod([1, *shape[:0:-1]], dtype=object)[::-1])
        if shape and stride != plain:
            raise _Refused("a tensor in it is not contiguous; save tensor.contiguous()")
        count = int(np.prod(shape, dtype=object))
        numbers = storage.data[offset * storage.width : (offset + count) * storage.width]
        if len(numbers) != count * storage.width:
            raise ValueError
        return Tensor(shape, numbers, storage.dtype)


def _a(kind: type[_T], value: object) -> _T:
    """The value, if it is of that kind; what else a pickle may hold is an error."""
    if not isinstance(value, kind):
        raise TypeError
    return value


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError
    return value
