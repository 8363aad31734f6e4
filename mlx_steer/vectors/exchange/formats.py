"""The formats by name: which one a file is of, and how to read and write it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from mlx_steer.errors import VectorError
from mlx_steer.vectors.exchange.control_vector import read_control_vector, write_control_vector
from mlx_steer.vectors.exchange.foreign import ForeignVectors
from mlx_steer.vectors.exchange.layer_files import read_layer_files, write_layer_files
from mlx_steer.vectors.exchange.matrices import read_axbench, read_persona
from mlx_steer.vectors.exchange.safetensors_file import read_safetensors, write_safetensors
from mlx_steer.vectors.exchange.torch_file import Tensor, TorchFile
from mlx_steer.vectors.metadata import METADATA_FILE
from mlx_steer.vectors.vector_set import SteeringVectorSet

ImportFormat = Literal[
    "auto",
    "gguf",
    "repeng",
    "cvector-generator",
    "safetensors",
    "saklas",
    "pt",
    "persona",
    "axbench",
]
ExportFormat = Literal["gguf", "safetensors", "pt"]

IMPORT_FORMATS: tuple[ImportFormat, ...] = get_args(ImportFormat)
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)

_WRITERS: dict[ExportFormat, Callable[[SteeringVectorSet, Path], None]] = {
    "gguf": write_control_vector,
    "safetensors": write_safetensors,
    "pt": write_layer_files,
}


@dataclass(frozen=True)
class ImportOptions:
    """What a user says of a file.

    Attributes:
        format: Its format; `auto` goes by the file, and refuses where that would be a guess.
        layer: AxBench only, whose files do not say it.
        concept: AxBench only: the row.
    """

    format: ImportFormat = "auto"
    layer: int | None = None
    concept: int | None = None


def read_foreign(path: Path, options: ImportOptions) -> ForeignVectors:
    """Read a file or folder of another tool's vectors.

    Raises:
        VectorError: If it is of no known format, is damaged, or its format would be a guess.
    """
    kind = options.format
    if kind == "auto":
        kind = _family(path)
    told = None if options.format == "auto" else kind
    if kind in ("gguf", "repeng", "cvector-generator"):
        return read_control_vector(path, told)
    if kind in ("safetensors", "saklas"):
        return read_safetensors(path, told)
    if kind == "persona":
        return read_persona(path)
    if kind == "axbench":
        return read_axbench(path, options.layer, options.concept)
    return read_layer_files(path)


def export_vectors(
    vectors: SteeringVectorSet, layers: tuple[int, ...], format: ExportFormat, out: Path
) -> SteeringVectorSet:
    """Write some layers of a set in another tool's format.

    Args:
        vectors: The set, scaled as it is to be applied at strength 1.
        layers: Which layers.
        format: The format.
        out: A file, or for `pt` a folder, that does not exist yet.

    Returns:
        What was written, without the set's gates, which no format can say.

    Raises:
        VectorError: If a layer is not in the set, the format cannot say it, or `out` cannot be
            written.
    """
    chosen = vectors.at(layers)
    _WRITERS[format](chosen, out)
    return chosen


def _family(path: Path) -> ImportFormat:
    """The format by the file's first bytes, its content and its name."""
    if path.is_dir():
        if (path / METADATA_FILE).is_file() and list(path.glob("layer_*.npy")):
            raise VectorError(f"{path} is a vectors folder already; use it as it is")
        return "pt"
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise VectorError(f"{path} cannot be read ({error.strerror or error})") from error
    if start == b"GGUF":
        return "gguf"
    if path.suffix == ".safetensors":
        return "safetensors"
    if path.suffix in (".pt", ".pth", ".bin") or start == b"PK\x03\x04":
        return _torch_family(path)
    raise VectorError(
        f"{path} is no format known here; give a .gguf, .safetensors or .pt file, or a folder of "
        "layer_<i>.pt"
    )


def _torch_family(path: Path) -> ImportFormat:
    content = TorchFile(path).content
    if not isinstance(content, Tensor) or len(content.shape) != 2:
        return "pt"
    if path.stem.endswith(("_avg_diff", "_last_diff")):
        return "persona"
    if path.stem.endswith("_weight"):
        return "axbench"
    raise VectorError(
        f"{path} holds a matrix, and its rows may be layers or concepts; give --format persona or "
        "--format axbench"
    )
