"""llama.cpp's control vectors: GGUF files with a tensor `direction.N` for each layer.

llama.cpp adds `direction.N` to the output of its 0-based block N at all positions, and begins at 1,
so N is our layer and layer 0 cannot be said. Its loader reads no metadata; others ask for
`controlvector.model_hint`. llama.cpp's own cvector-generator writes the difference it read at block
i as `direction.{i + 1}`: such a file acts one block after where it was taken. Which file is one of
those cannot be told from it for certain, so it is asked.
"""

from pathlib import Path

from mlx_steer.errors import VectorError
from mlx_steer.gguf_header import Header, Tensor, read_header
from mlx_steer.vectors.exchange.foreign import (
    OWN_KEY,
    Float32,
    ForeignVectors,
    check_size,
    check_total,
    float32,
    layer_number,
    own_metadata,
)
from mlx_steer.vectors.folder import written_beside
from mlx_steer.vectors.vector_set import SteeringVectorSet

_ARCHITECTURE = "controlvector"
_COUNT, _HINT = f"{_ARCHITECTURE}.layer_count", f"{_ARCHITECTURE}.model_hint"
_INT32, _F32 = 5, 0
_PREFIX = "direction."

_NAMES = {
    "gguf": "llama.cpp control vector",
    "repeng": "repeng",
    "cvector-generator": "llama.cpp cvector-generator",
}


def read_control_vector(path: Path, kind: str | None = None) -> ForeignVectors:
    """Read a control vector.

    Args:
        path: A GGUF file.
        kind: `gguf` (N is the block it acts on), `repeng` (the same, read by repeng) or
            `cvector-generator` (N - 1 is the block it was taken from); None if the file must say.

    Raises:
        VectorError: If it is no control vector, is damaged, is of a variant that means something
            else, or does not say which of the three it is.
    """
    size = check_size(path)
    header = read_header(path)
    _check_kind(header)
    own = header.metadata.get(OWN_KEY)
    if kind is None:
        kind = "gguf" if own is not None else _told_kind(header)
    base = header.metadata.get("turbospark.layer_base", 1)
    if base not in (0, 1):
        raise VectorError(f"{path}: turbospark.layer_base is {str(base)[:20]}, not 0 or 1")
    shift = 1 if kind == "cvector-generator" or base == 0 else 0
    hint = header.metadata.get(_HINT)
    return ForeignVectors(
        format=_NAMES[kind],
        arrays={n - shift: array for n, array in _directions(header, size).items()},
        model=hint if isinstance(hint, str) else None,
        last_is_normed=kind == "repeng",
        notes=("its layer numbers were lowered by 1, as the file says",) if base == 0 else (),
        own=own_metadata(own, path) if own is not None else None,
    )


def write_control_vector(vectors: SteeringVectorSet, path: Path) -> None:
    """Write a control vector for llama.cpp, which will add all of its layers.

    Args:
        vectors: None of layer 0, which the format cannot say.
        path: A `.gguf` file that does not exist yet.

    Raises:
        VectorError: If layer 0 is among the vectors or the file cannot be written.
    """
    if 0 in vectors:
        raise VectorError(
            "a llama.cpp control vector begins at layer 1 and cannot hold layer 0; leave it out, "
            "or bake it into the model with mlx-steer bake"
        )
    from gguf import GGUFWriter

    with written_beside(path) as part:
        writer = GGUFWriter(str(part), _ARCHITECTURE)
        writer.add_string(_HINT, vectors.metadata.model.model_type)
        writer.add_int32(_COUNT, len(vectors))
        writer.add_string(OWN_KEY, vectors.metadata.model_dump_json())
        for layer, vector in vectors.items():
            writer.add_tensor(f"{_PREFIX}{layer}", vector.array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _check_kind(header: Header) -> None:
    """Raises VectorError for another kind of file, and for variants that mean something else."""
    path, metadata = header.path, header.metadata
    architecture = metadata.get("general.architecture", _ARCHITECTURE)
    if architecture != _ARCHITECTURE:
        raise VectorError(
            f"{path} is a GGUF file of architecture {str(architecture)[:40]!r}, and no control "
            "vector"
        )
    mode = metadata.get("glp.mode", "add")
    if mode != "add":
        raise VectorError(
            f"{path}: glp.mode is {str(mode)[:20]!r}: its directions are not to be added but to be "
            "projected out, which a vectors folder cannot say; only glp.mode 'add' is imported"
        )
    hook = metadata.get("glp.hook_point", "residual_stream_post_layer")
    if hook != "residual_stream_post_layer":
        raise VectorError(
            f"{path}: glp.hook_point is {str(hook)[:40]!r}; only vectors of a block's output "
            "(residual_stream_post_layer) can be imported"
        )


def _told_kind(header: Header) -> str:
    """What a file of unknown origin says of its making; raises VectorError where it matters."""
    if header.types.get(_COUNT) != _INT32:  # llama.cpp itself writes int32, repeng uint32
        return "repeng" if _COUNT in header.types else "gguf"
    raise VectorError(
        f"{header.path} may be of llama.cpp's cvector-generator, which writes block i's vector as "
        "direction.{i + 1}, and does not say so; give --format gguf to steer where llama.cpp "
        "does (layer N for direction.N), or --format cvector-generator to steer where the vector "
        "was taken (layer N - 1)"
    )


def _directions(header: Header, size: int) -> dict[int, Float32]:
    """The tensors by the number in their name, each checked before any is read."""
    path, tensors = header.path, header.tensors
    check_total(path, {name: t.shape for name, t in tensors.items()}, size // 4)
    numbered: dict[int, str] = {}
    for name, tensor in tensors.items():
        if not name.startswith(_PREFIX):
            raise VectorError(f"{path} holds {name[:60]!r}, which is no part of a control vector")
        number = layer_number(name.removeprefix(_PREFIX), path, name)
        if number == 0:
            raise VectorError(
                f"{path} holds direction.0; control vectors begin at 1, and what 0 means here "
                "cannot be known"
            )
        if tensor.type != _F32 or len(tensor.shape) != 1:
            raise VectorError(f"{path}: {name} is not one row of float32 (F32) numbers")
        if header.data_start + tensor.offset + 4 * tensor.shape[0] > size:
            raise VectorError(f"{path} is truncated; download or copy it again")
        numbered[number] = name
    if not numbered:
        raise VectorError(f"{path} holds no direction.N tensor, so it is no control vector")
    return {number: _read(header, tensors[name]) for number, name in sorted(numbered.items())}


def _read(header: Header, tensor: Tensor) -> Float32:
    with header.path.open("rb") as file:
        file.seek(header.data_start + tensor.offset)
        return float32(file.read(4 * tensor.shape[0]), "F32")
