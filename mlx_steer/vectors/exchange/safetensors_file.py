"""Safetensors files with a tensor `layer_{i}` for each layer, ours and saklas's.

Both call the output of decoder block i layer i. Ours carry what is known of the vectors in the
header. A saklas profile has a JSON file of the same name beside it.
"""

import json
import struct
from pathlib import Path
from typing import TypedDict, cast

from mlx_steer.errors import VectorError
from mlx_steer.vectors.exchange.foreign import (
    OWN_KEY,
    ForeignVectors,
    check_size,
    float32,
    layer_number,
    own_metadata,
)
from mlx_steer.vectors.folder import written_beside
from mlx_steer.vectors.vector_set import SteeringVectorSet

_PREFIX = "layer_"
# Room for some 30,000 tensors; the library itself would take 100 MB.
_MOST_HEADER = 4 << 20


class _Tensor(TypedDict):
    dtype: str
    shape: list[int]
    data: bytes


_SAKLAS_NOTE = (
    "saklas scales the hidden state back to its norm after adding; here it is added and left so"
)


def read_safetensors(path: Path, kind: str | None = None) -> ForeignVectors:
    """Read a safetensors file of vectors.

    Args:
        path: The file.
        kind: `safetensors` or `saklas`; None if the file and what lies beside it shall say.

    Raises:
        VectorError: If the file is damaged or holds anything but one vector for each layer.
    """
    from safetensors import SafetensorError, deserialize

    size = check_size(path)
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0] if size >= 8 else 0
    if not 2 <= length <= min(_MOST_HEADER, size - 8):
        raise VectorError(
            f"{path} is no safetensors file of vectors: its header would have {length:,} bytes"
        )
    try:
        # It checks that places and sizes agree with the file.
        tensors = cast(list[tuple[str, _Tensor]], deserialize(data))  # type: ignore[no-untyped-call]
        about = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    except (SafetensorError, ValueError, RecursionError) as error:
        raise VectorError(f"{path} is no whole safetensors file ({error}); copy it again") from None
    arrays = {}
    for name, tensor in tensors:
        if not name.startswith(_PREFIX):
            raise VectorError(f"{path} holds {name[:60]!r}; each tensor must be called layer_<i>")
        layer = layer_number(name.removeprefix(_PREFIX), path, name)
        if len(tensor["shape"]) != 1:
            raise VectorError(f"{path}: {name} has shape {tensor['shape']}, and is no one vector")
        try:
            arrays[layer] = float32(tensor["data"], tensor["dtype"])
        except KeyError:
            raise VectorError(f"{path}: {name} holds {tensor['dtype']}, no float numbers") from None
    if not arrays:
        raise VectorError(f"{path} holds no tensor layer_<i>")
    if kind is None:
        kind = "saklas" if _has_saklas_notes(path) else "safetensors"
    own = about.get(OWN_KEY)
    return ForeignVectors(
        format=kind,
        arrays=dict(sorted(arrays.items())),
        notes=(_SAKLAS_NOTE,) if kind == "saklas" else (),
        own=own_metadata(own, path) if own is not None else None,
    )


def write_safetensors(vectors: SteeringVectorSet, path: Path) -> None:
    """Write a safetensors file, float32, with the set's metadata in its header.

    Raises:
        VectorError: If the file cannot be written.
    """
    from safetensors.numpy import save

    # A single key: the library writes several in an order that changes.
    about = {OWN_KEY: vectors.metadata.model_dump_json()}
    tensors = {f"{_PREFIX}{layer}": vector.array for layer, vector in vectors.items()}
    with written_beside(path) as part:
        part.write_bytes(save(tensors, about))


def _has_saklas_notes(path: Path) -> bool:
    beside = path.with_suffix(".json")
    try:
        return beside.stat().st_size < _MOST_HEADER and b'"saklas_version"' in beside.read_bytes()
    except OSError:
        return False
