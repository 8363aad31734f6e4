"""A folder of `layer_{i}.pt`, each a bare tensor, with JSON files beside them; or one such dict.

The toolkit of the published log writes such folders; it hooks the output of `model.layers[i]` and
keeps the raw vector, so its layers are ours. A single .pt file may hold a dict of layer -> tensor,
as the `layer_activations` of the steering-vectors package are.
"""

import json
from pathlib import Path

from mlx_steer.errors import VectorError
from mlx_steer.vectors.exchange.foreign import (
    OWN_KEY,
    Float32,
    ForeignVectors,
    check_size,
    check_total,
    layer_number,
    own_metadata,
)
from mlx_steer.vectors.exchange.torch_file import Tensor, TorchFile, tensor_file
from mlx_steer.vectors.folder import check_absent, replace_folder
from mlx_steer.vectors.metadata import METADATA_FILE
from mlx_steer.vectors.vector_set import SteeringVectorSet

_PREFIX = "layer_"
_MOST_JSON = 4 << 20


def read_layer_files(path: Path) -> ForeignVectors:
    """Read a folder of tensors by layer, or one file with a dict of them.

    Raises:
        VectorError: If a file is damaged, holds anything but one vector, or there is none.
    """
    if path.is_dir():
        files = sorted(path.glob(f"{_PREFIX}*.pt"))
        found: dict[object, object] = {f.stem: TorchFile(f).content for f in files}
        about = _about(path / METADATA_FILE)
    else:
        found, about = _dict(path), {}
    arrays: dict[int, Float32] = {}
    for name, tensor in found.items():
        layer = layer_number(str(name).removeprefix(_PREFIX), path, str(name))
        if not isinstance(tensor, Tensor) or len(tensor.shape) != 1 or layer in arrays:
            raise VectorError(f"{path}: {str(name)[:40]!r} is not the one vector of its layer")
        arrays[layer] = tensor.read()
    if not arrays:
        raise VectorError(f"{path} holds no {_PREFIX}<i>.pt")
    own, model = about.get(OWN_KEY), about.get("model")
    return ForeignVectors(
        format="tensors by layer",
        arrays=arrays,
        model=model if isinstance(model, str) else None,
        own=own_metadata(own, path / METADATA_FILE) if own is not None else None,
    )


def write_layer_files(vectors: SteeringVectorSet, path: Path) -> None:
    """Write a new folder of tensors by layer.

    Raises:
        VectorError: If there is something at the path already, or it cannot be written.
    """
    check_absent(path)
    own = vectors.metadata
    about = {
        "behavior": own.behavior,
        "model": own.model.id,
        "layers": list(vectors),
        "layer_convention": own.layer_convention,
        OWN_KEY: own.model_dump_json(),
    }
    files = {METADATA_FILE: _json(about)}
    for layer, vector in vectors.items():
        name = f"{_PREFIX}{layer}"
        files[f"{name}.pt"] = tensor_file(vector.array, name)
        files[f"{name}.json"] = _json(
            {"layer": layer, "hidden_size": vector.hidden_size, "norm": own.layers[layer].norm}
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_folder(path, files)
    except OSError as error:
        raise VectorError(f"{path} cannot be written ({error.strerror or error})") from error


def _dict(path: Path) -> dict[object, object]:
    content = TorchFile(path).content
    if isinstance(content, Tensor) and len(content.shape) == 1 and path.stem.startswith(_PREFIX):
        return {path.stem: content}
    if not isinstance(content, dict):
        raise VectorError(
            f"{path} holds neither a dict of layer -> tensor nor, as layer_<i>.pt, one vector"
        )
    shapes = {str(k): v.shape for k, v in content.items() if isinstance(v, Tensor)}
    check_total(path, shapes, check_size(path))  # one tensor may stand there many times
    return content


def _about(path: Path) -> dict[str, object]:
    if not path.exists():
        return {}
    if check_size(path) > _MOST_JSON:
        raise VectorError(f"{path} is too large for what is said of vectors")
    try:
        about = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise VectorError(f"{path} is not valid JSON ({error})") from error
    return about if isinstance(about, dict) else {}


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
