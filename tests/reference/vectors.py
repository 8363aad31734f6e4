"""A vectors folder, read and written with numpy and json alone, independently of the package.

Layout: ``layer_12.npy`` per layer and ``gate_plain.npy`` per gate (float32, shape (hidden_size,),
no pickle) and ``metadata.json``. The same content always gives the same bytes.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .interventions import Gate

KEYS = {
    "format_version",
    "behavior",
    "method",
    "token_position",
    "layer_convention",
    "hidden_size",
    "num_layers",
    "layers",
    "model",
    "chat_template_sha256",
    "dataset",
    "seed",
}
LAYER_KEYS = {"file", "sha256", "norm", "hidden_norm"}
MODEL_KEYS = {"id", "revision", "model_type", "quantization", "fingerprint"}
DATASET_KEYS = {"name", "sha256", "pairs"}
GATE_KEYS = {
    "name",
    "file",
    "sha256",
    "layer",
    "threshold",
    "method",
    "auc",
    "false_positive_rate",
    "prompts",
    "system_prompt_sha256",
}


@dataclass(frozen=True, eq=False)
class VectorsFolder:
    """What a vectors folder holds; ``metadata`` is the whole of ``metadata.json``."""

    vectors: dict[int, NDArray[np.float32]]
    metadata: dict[str, Any]
    gates: dict[str, Gate] = field(default_factory=dict)

    def hidden_norm(self, layer: int) -> float:
        """Return the mean norm of the hidden states that a layer's vector was taken from."""
        return float(self.metadata["layers"][str(layer)]["hidden_norm"])


def read(folder: str | Path) -> VectorsFolder:
    """Read a vectors folder and check it against its own metadata.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    folder = Path(folder)
    metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    _same(set(metadata) - {"gates"}, KEYS, "keys of metadata.json")
    _same(set(metadata["model"]), MODEL_KEYS, "keys of model")
    _same(set(metadata["dataset"]), DATASET_KEYS, "keys of dataset")
    _same(metadata["format_version"], 1, "format_version")
    vectors: dict[int, NDArray[np.float32]] = {}
    for layer in sorted(int(key) for key in metadata["layers"]):
        entry, name = metadata["layers"][str(layer)], f"layer_{layer}.npy"
        _same(set(entry), LAYER_KEYS, f"keys of layer {layer}")
        _same(0 <= layer < metadata["num_layers"], True, f"0 <= {layer} < num_layers")
        _same(entry["file"], name, f"file of layer {layer}")
        array = _array(folder / name, entry["sha256"], metadata["hidden_size"])
        # The order in which a norm is summed is not part of the format.
        if not np.isclose(_norm(array), entry["norm"], rtol=1e-5):
            raise ValueError(f"norm of {name}: {entry['norm']} stored, {_norm(array)} found.")
        vectors[layer] = array
    gates: dict[str, Gate] = {}
    for entry in metadata.get("gates", ()):
        _same(set(entry), GATE_KEYS, "keys of a gate")
        name = f"gate_{entry['name']}.npy"
        _same(entry["file"], name, f"file of gate {entry['name']}")
        _same(0 <= entry["layer"] < metadata["num_layers"], True, f"{name}: layer < num_layers")
        direction = _array(folder / name, entry["sha256"], metadata["hidden_size"])
        gates[entry["name"]] = Gate(entry["layer"], direction, entry["threshold"])
    return VectorsFolder(vectors, metadata, gates)


def _array(path: Path, sha256: str, size: int) -> NDArray[np.float32]:
    content = path.read_bytes()
    _same(hashlib.sha256(content).hexdigest(), sha256, f"sha256 of {path.name}")
    array: NDArray[np.float32] = np.load(io.BytesIO(content), allow_pickle=False)
    _same(array.dtype, np.dtype("<f4"), f"dtype of {path.name}")
    _same(array.shape, (size,), f"shape of {path.name}")
    _same(bool(np.isfinite(array).all()), True, f"finiteness of {path.name}")
    return array


def write(
    folder: str | Path,
    vectors: Mapping[int, NDArray[np.float32]],
    hidden_norms: Mapping[int, float],
    metadata: Mapping[str, Any],
) -> None:
    """Write a vectors folder.

    Args:
        folder: made if it does not exist; files of the same names are replaced.
        vectors: per layer, float32, shape (hidden_size,).
        hidden_norms: per layer, the mean norm of the hidden states behind the vector.
        metadata: the keys of ``KEYS``; ``layers``, if given, is made anew.
    """
    folder = Path(folder)
    _same(set(metadata) | {"layers"}, KEYS, "keys of metadata")
    folder.mkdir(parents=True, exist_ok=True)
    layers: dict[str, dict[str, Any]] = {}
    for layer, vector in vectors.items():
        _same(vector.dtype, np.dtype("<f4"), f"dtype of layer {layer}")
        _same(vector.shape, (metadata["hidden_size"],), f"shape of layer {layer}")
        buffer = io.BytesIO()
        np.save(buffer, vector, allow_pickle=False)
        (folder / f"layer_{layer}.npy").write_bytes(buffer.getvalue())
        layers[str(layer)] = {
            "file": f"layer_{layer}.npy",
            "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
            "norm": _norm(vector),
            "hidden_norm": float(hidden_norms[layer]),
        }
    text = json.dumps({**metadata, "layers": layers}, indent=2, sort_keys=True, allow_nan=False)
    (folder / "metadata.json").write_text(text + "\n", encoding="utf-8", newline="\n")


def _norm(vector: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(vector.astype(np.float64)))


def _same(found: object, expected: object, what: str) -> None:
    if found != expected:
        raise ValueError(f"{what}: {expected} expected, {found} found.")
