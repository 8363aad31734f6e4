"""A vectors folder's files: read and checked byte by byte, written beside and then renamed."""

import hashlib
import io
import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from mlx_steer.conditions import Gate
from mlx_steer.errors import VectorError
from mlx_steer.files import made_beside, problems
from mlx_steer.vectors.metadata import (
    FORMAT_VERSION,
    METADATA_FILE,
    PAIRS_FILE,
    GateInfo,
    LayerInfo,
    VectorMetadata,
    WrittenInfo,
    gate_file,
    layer_file,
)
from mlx_steer.vectors.vector import FloatArray, SteeringVector

README_FILE = "README.md"
MADE_WITH = "Made with mlx-steer"
"""What every card ends with: a README.md without it is somebody's own, and is kept."""


def npy_bytes(array: FloatArray) -> bytes:
    """The array as a .npy file of version 1.0."""
    stream = io.BytesIO()
    exact = np.ascontiguousarray(array, dtype="<f4")
    np.lib.format.write_array(stream, exact, version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def _parse_npy(path: Path, data: bytes, hidden_size: int) -> FloatArray:
    # The header is read apart from the values: numpy.load would allocate whatever it claims.
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
    except ValueError as error:
        raise VectorError(f"{path} is not a .npy file; extract again.") from error
    if version != (1, 0):
        raise VectorError(f"{path} is a .npy file of version {version}; only (1, 0) is read.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy only warns of headers it had to repair
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # numpy evaluates the header's text: it may raise anything
        raise VectorError(f"{path} has a damaged .npy header; extract again.") from error
    if dtype.hasobject:
        raise VectorError(f"{path} holds pickled objects, which are never loaded.")
    if dtype != np.dtype("<f4"):
        raise VectorError(f"{path} has dtype {dtype.str}; it must be float32 (<f4).")
    if shape != (hidden_size,):
        raise VectorError(
            f"{path} has shape {shape}, but {METADATA_FILE} says hidden_size {hidden_size}."
        )
    values = data[stream.tell() :]
    if len(values) != 4 * hidden_size:
        how = "cut short" if len(values) < 4 * hidden_size else "followed by other bytes"
        raise VectorError(
            f"{path} is {how}: {len(values)} bytes, not {4 * hidden_size}; extract again."
        )
    array = np.frombuffer(values, dtype="<f4")
    if not np.isfinite(array).all():
        raise VectorError(f"{path} has values that are NaN or infinite; extract again.")
    return array


def _read_inside(root: Path, name: str) -> bytes:
    path = root / name
    try:
        if path.resolve().parent != root.resolve():
            raise VectorError(
                f"{path} is a link that leaves the folder; put the file itself there."
            )
        if not path.is_file():
            raise VectorError(f"{path} is missing; extract again or copy the whole folder.")
        return path.read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: links that go round in a circle
        raise VectorError(f"{path} cannot be read ({error}).") from error


def read_metadata(root: Path) -> VectorMetadata:
    """Reads and checks `metadata.json`."""
    path = root / METADATA_FILE
    try:
        raw = json.loads(_read_inside(root, METADATA_FILE).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise VectorError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    except (ValueError, RecursionError) as error:
        raise VectorError(f"{path} is not valid JSON ({error}); extract again.") from error
    if not isinstance(raw, dict):
        raise VectorError(f"{path} must hold a JSON object, not {type(raw).__name__}.")
    version = raw.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise VectorError(
            f"{path} has format_version {version}: made by a newer mlx-steer; upgrade mlx-steer."
        )
    # these have a default for those who build metadata in code; a file must say them
    wrong = [
        f"key {key!r} is missing"
        for key in ("format_version", "layer_convention", "layers")
        if key not in raw
    ]
    try:
        metadata = VectorMetadata.model_validate(raw)
    except ValidationError as error:
        wrong += problems(error, VectorMetadata)
    if wrong:
        raise VectorError(f"{path}: {'; '.join(wrong[:10])}.")
    if not metadata.layers:
        raise VectorError(f"{path} lists no layers; extract again.")
    return metadata


def read_layer(root: Path, layer: int, info: LayerInfo, hidden_size: int) -> SteeringVector:
    """Reads and checks one layer's file."""
    name = layer_file(layer)
    path = root / name
    if info.file != name:
        raise VectorError(
            f"{root / METADATA_FILE} names the file {info.file[:100]!r} for layer {layer}; it must "
            f"be {name!r} in the same folder."
        )
    data = _read_inside(root, name)
    array = _parse_npy(path, data, hidden_size)
    if hashlib.sha256(data).hexdigest() != info.sha256:
        raise VectorError(
            f"{path} has changed since it was saved (its sha256 differs); extract again."
        )
    vector = SteeringVector(layer, array, info.hidden_norm)
    if not math.isclose(vector.norm, info.norm, rel_tol=1e-6):
        raise VectorError(
            f"{path} has norm {vector.norm:.9g}, but {METADATA_FILE} says {info.norm:.9g}; "
            "extract again."
        )
    return vector


def read_gate(root: Path, info: GateInfo, hidden_size: int) -> Gate:
    """Reads and checks one gate's file."""
    name = gate_file(info.name)
    path = root / name
    if info.file != name:
        raise VectorError(
            f"{root / METADATA_FILE} names the file {info.file[:100]!r} for gate {info.name}; it "
            f"must be {name!r} in the same folder."
        )
    data = _read_inside(root, name)
    array = _parse_npy(path, data, hidden_size)
    if hashlib.sha256(data).hexdigest() != info.sha256:
        raise VectorError(
            f"{path} has changed since it was saved (its sha256 differs); fit the gate again."
        )
    return Gate(info.layer, array, info.threshold, info.name)


def read_pairs(root: Path, info: WrittenInfo) -> bytes:
    """Reads and checks the file of the contrast pairs that a model wrote."""
    if info.file != PAIRS_FILE:
        raise VectorError(
            f"{root / METADATA_FILE} names the file {info.file[:100]!r} for the pairs; it must be "
            f"{PAIRS_FILE!r} in the same folder."
        )
    data = _read_inside(root, PAIRS_FILE)
    if hashlib.sha256(data).hexdigest() != info.sha256:
        raise VectorError(
            f"{root / PAIRS_FILE} has changed since it was saved (its sha256 differs); extract "
            "again."
        )
    return data


def check_replaceable(target: Path) -> None:
    """Raises VectorError unless the path is free or holds nothing but a vectors folder."""
    if not target.exists():
        return
    if not target.is_dir():
        raise VectorError(f"{target} is a file; choose a folder for the vectors.")
    # Finder puts .DS_Store into every folder it shows
    present = {path.name: path for path in target.iterdir() if path.name != ".DS_Store"}
    for name, path in sorted(present.items()):
        if not _is_part(path):
            raise VectorError(
                f"{target} holds {name!r}, which is not part of a vectors folder; choose another."
            )
    if present and not _looks_like_metadata(target / METADATA_FILE):
        raise VectorError(
            f"{target} is not empty and has no {METADATA_FILE} of mlx-steer; choose another folder."
        )


def _is_part(path: Path) -> bool:
    """Whether a file is one of a vectors folder's own."""
    if not path.is_file():
        return False
    if path.name == README_FILE:
        return MADE_WITH.encode() in path.read_bytes()
    known = rf"{re.escape(METADATA_FILE)}|card\.json|{re.escape(PAIRS_FILE)}"
    return re.fullmatch(rf"{known}|(layer_\d+|gate_[\w-]+)\.npy", path.name) is not None


def _looks_like_metadata(path: Path) -> bool:
    try:
        raw = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return False
    return isinstance(raw, dict) and {"format_version", "layers"} <= raw.keys()


def check_absent(path: Path) -> None:
    """Raises VectorError if there is anything at a path: what is exported overwrites nothing."""
    if os.path.lexists(path):
        raise VectorError(f"{path} exists already; remove it or choose another name")


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A path to write a new file at, which gets its name when all went well.

    Raises:
        VectorError: If there is something of that name already, or it cannot be written.
    """
    check_absent(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with made_beside(path) as part:
            yield part
    except OSError as error:
        raise VectorError(f"{path} cannot be written ({error.strerror or error})") from error


def replace_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Writes the files beside the folder, then renames it into place."""
    with made_beside(target, replace=True) as fresh:
        fresh.mkdir()
        for name, data in files.items():
            (fresh / name).write_bytes(data)
