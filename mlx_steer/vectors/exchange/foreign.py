"""What a file of another tool holds, in our layer numbers, and how it becomes a vectors set."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from mlx_steer.errors import VectorError
from mlx_steer.files import problems
from mlx_steer.vectors.metadata import ModelInfo, SourceInfo, VectorMetadata
from mlx_steer.vectors.vector import SteeringVector
from mlx_steer.vectors.vector_set import SteeringVectorSet

Float32 = NDArray[np.float32]

OWN_KEY = "mlx_steer"
"""Where an exported file carries the metadata of the set it was made from."""

# Far beyond any vectors: a model of 1,000 layers of 65,536 has 250 MB of them.
_MOST_BYTES = 1 << 30
_MOST_LAYERS = 10_000


@dataclass(frozen=True, eq=False)
class ForeignVectors:
    """What a reader found.

    Attributes:
        format: Name of the format, for the metadata.
        arrays: By our layer numbers, shape (hidden_size,).
        model: What the file calls its model.
        last_is_normed: Whether the format reads the last layer after the model's final norm.
        notes: What the user should know of the format, as sentences.
        own: The metadata of the exported set, if the file is of our own making.
    """

    format: str
    arrays: Mapping[int, Float32]
    model: str | None = None
    last_is_normed: bool = False
    notes: tuple[str, ...] = ()
    own: VectorMetadata | None = None


@dataclass(frozen=True)
class KnownModel:
    """The model that vectors are said to be of, which hardly any format can say."""

    info: ModelInfo
    hidden_size: int
    num_layers: int


def vectors_of(
    found: ForeignVectors, path: Path, model: KnownModel | None = None, behavior: str | None = None
) -> SteeringVectorSet:
    """A vectors set that says where it came from.

    Args:
        found: What the file holds.
        path: The file; its name and sha256 go into the metadata.
        model: The model, needed unless the file is of our own making.
        behavior: What the vectors steer; the file's name by default.

    Raises:
        VectorError: If no model is known, the vectors are not as large as its hidden state, it has
            fewer layers, or a value is not finite.
    """
    last = model.num_layers - 1 if model else None
    notes = list(found.notes)
    if found.last_is_normed and last in found.arrays:
        notes.append(
            f"layer {last} is the model's last, which {found.format} reads after the final norm, "
            "not as the block's output; do not steer there with it"
        )
    source = SourceInfo(format=found.format, file=path.name, sha256=_sha256(path), notes=notes)
    if found.own is not None:
        metadata = found.own.model_copy(update={"source": source, "gates": []})
    elif model is not None:
        metadata = _metadata(model, behavior or path.stem, source)
    else:
        hint = f" ({found.model!r} is all it says)" if found.model else ""
        raise VectorError(
            f"{path} does not say which model it is for{hint}; name it with --model, "
            "of which only the config is read"
        )
    norms = {k: info.hidden_norm for k, info in found.own.layers.items()} if found.own else {}
    try:
        made = [SteeringVector(k, array, norms.get(k)) for k, array in found.arrays.items()]
        vectors = SteeringVectorSet(made, metadata)
    except VectorError as error:
        raise VectorError(f"{path}: {error}") from error
    if model is not None:
        vectors.check_fits(model.hidden_size, model.num_layers, model.info.id)
    return vectors


def _metadata(model: KnownModel, behavior: str, source: SourceInfo) -> VectorMetadata:
    try:
        return VectorMetadata(
            behavior=behavior,
            method="unknown",
            token_position="unknown",
            hidden_size=model.hidden_size,
            num_layers=model.num_layers,
            model=model.info,
            chat_template_sha256=None,
            dataset=None,
            seed=None,
            source=source,
        )
    except ValidationError as error:
        raise VectorError(f"{behavior!r} cannot name a behavior; give --behavior") from error


def own_metadata(text: object, path: Path) -> VectorMetadata:
    """The metadata that an exported file carries.

    Raises:
        VectorError: If it is damaged.
    """
    try:
        return VectorMetadata.model_validate(json.loads(str(text)))
    except ValidationError as error:
        what = "; ".join(problems(error, VectorMetadata)[:3])
    except (ValueError, RecursionError) as error:
        what = str(error)
    raise VectorError(f"{path}: its record of mlx-steer is damaged ({what[:300]}); export again")


def float32(data: bytes | memoryview, dtype: str) -> Float32:
    """Numbers of a dtype as safetensors calls it, little-endian, as float32.

    Raises:
        KeyError: For a dtype that holds no vectors, such as whole numbers.
    """
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    with np.errstate(over="ignore"):  # what is too large is found as infinite later
        return np.frombuffer(data, {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype]).astype("<f4")


def layer_number(text: str, path: Path, name: str) -> int:
    """The layer in a tensor's name; raises VectorError unless it is a plain whole number."""
    if not (text.isascii() and text.isdecimal() and text == str(int(text[:9]))):
        raise VectorError(f"{path}: {name[:60]!r} names no layer; it ends in a number from 0 up")
    if int(text) > _MOST_LAYERS:
        raise VectorError(f"{path}: {name[:60]!r} names layer {text}, which no model has")
    return int(text)


def check_size(path: Path) -> int:
    """The size of a file in bytes.

    Raises:
        VectorError: If there is no such file, or it is larger than vectors can be.
    """
    try:
        if not path.is_file():
            raise VectorError(f"there is no file {path}")
        size = path.stat().st_size
    except OSError as error:
        raise VectorError(f"{path} cannot be read ({error.strerror or error})") from error
    if size > _MOST_BYTES:
        raise VectorError(f"{path} has {size:,} bytes, more than vectors take; is it a model?")
    return size


def check_total(path: Path, shapes: Mapping[str, tuple[int, ...]], size: int) -> None:
    """Raises VectorError where tensors hold more numbers than the file has bytes."""
    if sum(math.prod(shape) for shape in shapes.values()) > size:
        raise VectorError(f"{path} announces more numbers than it has bytes; copy it again")


def _sha256(path: Path) -> str:
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
