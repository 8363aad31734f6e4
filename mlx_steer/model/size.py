"""Bytes of a model's weights, from the headers of its files or from its config.json alone.

mlx-lm could build the network lazily and its parameters be counted, exactly. But that needs mlx and
the model's code, which `plan` does not load, and a config.json alone (before a download) that says
all the code asks for; headers need neither.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_steer.errors import ModelError
from mlx_steer.model.machine import too_large, working_set
from mlx_steer.model.shape import Shape, Tensor, is_tied, text_config

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U64": 8, "I32": 4, "U32": 4}
_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_FLOATS = frozenset(_NAMES.values())
# Parts of multimodal models that mlx-lm does not load.
_NOT_LOADED = ("vision", "multi_modal_projector", "audio", "rotary_emb.inv_freq")
# mlx-lm's converter quantises in groups of 64.
_GROUP = 64


@dataclass(frozen=True)
class ModelSize:
    """What of a model decides about memory and speed.

    Attributes:
        shape: Its numbers of layers, heads and so on.
        weights: Bytes of its weights once loaded.
        dtype_bytes: Of a number in the hidden state, and so in keys and values.
        quantized: Whether its products are of quantised weights.
    """

    shape: Shape
    weights: int
    dtype_bytes: int
    quantized: bool = False

    def over(self, ranks: int) -> ModelSize:
        """The part of one of so many ranks; embedding and output matrix are whole on each."""
        part = self.shape.over(ranks)
        weights = self.weights * part.parameters // self.shape.parameters
        return replace(self, shape=part, weights=weights)


def check_fits(
    name: str,
    folder: Path,
    *,
    dtype: str | None = None,
    quantize: int | None = None,
    dequantize: bool = False,
    limit: int | None = None,
) -> None:
    """Refuse to load a model whose weights alone are more than this machine can use.

    Args:
        name: What the model is called in the error.
        folder: See `weight_bytes_of`, for the other arguments too.
        dtype: The dtype that weights are cast to, or None.
        quantize: Bits that original weights are converted to.
        dequantize: Whether quantised weights are expanded after loading.
        limit: Bytes that may be used; `working_set()` by default.

    Raises:
        ModelError: If it does not fit.
    """
    usable = working_set() if limit is None else limit
    try:
        needed = weight_bytes_of(folder, dtype=dtype, quantize=quantize, dequantize=dequantize)
    except ModelError:
        return  # damaged: whoever loads it will say what is wrong
    if needed <= usable:
        return
    packed = "quantization" in (config := read_config(folder)) or "quantization_config" in config
    # What the same model takes in fewer bits, where that is not what was asked for already.
    less = {
        f"--quantize {bits}": weight_bytes_of(folder, quantize=bits)
        for bits in (8, 4)
        if not packed and bits < (quantize or 16)
    }
    if packed and dequantize:
        less["without --dequantize"] = weight_bytes_of(folder, dtype=dtype)
    raise too_large(name, needed, usable, less)


def weight_bytes_of(
    source: Path | Mapping[str, Any],
    *,
    dtype: str | None = None,
    quantize: int | None = None,
    dequantize: bool = False,
) -> int:
    """Bytes of the weights once loaded, without loading them.

    Args:
        source: A model folder, of which only headers are read, or just its config.json's contents.
        dtype: The dtype that weights are cast to (`float32`, `bfloat16`, `float16`), or None.
        quantize: Bits that original weights are converted to.
        dequantize: Whether quantised weights are expanded after loading.

    Raises:
        ModelError: If a file is damaged or the config lacks a value that is needed.
    """
    config = read_config(source) if isinstance(source, Path) else source
    stored = _quantization(config)
    per_scale = _GROUP
    if isinstance(source, Path):
        # Not by its `Shape`: of a model that says less of itself than that needs, files tell.
        tensors = list(stored_tensors(source, is_tied(config)))
    else:
        tensors = list(Shape.of(config).tensors(_stored_dtype(config)))
        if not dequantize and "bits" in stored:
            quantize, per_scale = _small(stored, "bits", 16), _group_size(stored, "")
    wanted = _NAMES.get(str(dtype))
    packed = {_owner(name) for name, _, _ in tensors if name.endswith(".scales")}
    total = 0.0
    for name, kind, size in tensors:
        item = _ITEM_BYTES.get(wanted if wanted and kind in _FLOATS else kind, 1)
        elements = math.prod(size)
        if dequantize and _owner(name) in packed:
            group = _group_size(stored, _owner(name))
            total += elements * group * item if name.endswith(".scales") else 0
        elif quantize and not packed and _can_quantize(name, size):
            total += elements * (quantize / 8 + 2 * item / per_scale)
        else:
            total += elements * item
    return int(total)


def stream_bytes_of(source: Path | Mapping[str, Any], dtype: str | None = None) -> int:
    """Bytes of a number in the hidden state: those of the norms' weights, or of the wanted dtype.

    Raises:
        ModelError: If a file is damaged.
    """
    if dtype not in (None, "auto"):
        return _ITEM_BYTES[_NAMES[str(dtype)]]
    if isinstance(source, Path):
        for name, kind, shape in stored_tensors(source, False):
            if len(shape) == 1 and "norm" in name and kind in _FLOATS:
                return _ITEM_BYTES[kind]
        source = read_config(source)
    return _ITEM_BYTES[_stored_dtype(source)]


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's config.json.

    Raises:
        ModelError: If there is none or it is damaged.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} is no model folder: it has no config.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged ({error}); fetch the model again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is damaged (not an object); fetch the model again")
    return config


def stored_tensors(folder: Path, tied: bool) -> Iterator[Tensor]:
    """What a folder's safetensors files hold and mlx-lm loads, from their headers alone.

    Args:
        folder: With model*.safetensors.
        tied: Whether the output matrix is the embedding; a stored one is then not loaded.

    Raises:
        ModelError: If a header is damaged.
    """
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > path.stat().st_size:
                    raise ValueError("its header is longer than the file")
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            found = [(n, str(t["dtype"]), _shape(t["shape"])) for n, t in header.items()]
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            struct.error,
        ) as error:
            raise ModelError(f"{path} is damaged ({error}); fetch it again") from error
        for name, kind, shape in found:
            if not any(part in name for part in _NOT_LOADED) and not (tied and "lm_head" in name):
                yield name, kind, shape


def _shape(value: Any) -> tuple[int, ...]:
    shape = tuple(value)
    if len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
        raise ValueError(f"the shape {str(value)[:40]}")
    return shape


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _group_size(stored: Mapping[str, Any], owner: str) -> int:
    """Numbers that share a scale; a layer may have its own."""
    own = stored.get(owner)
    return _small(own if isinstance(own, Mapping) else stored, "group_size", _GROUP)


def _quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    stored = config.get("quantization") or config.get("quantization_config")
    return stored if isinstance(stored, Mapping) else {}


def _small(stored: Mapping[str, Any], name: str, default: int) -> int:
    value = stored.get(name, default)
    if type(value) is not int or not 1 <= value <= 4096:
        raise ModelError(
            f"the config.json gives a {name} of {str(value)[:40]!r}, which no quantisation has; "
            "fetch the model again"
        )
    return value


def _can_quantize(name: str, shape: Sequence[int]) -> bool:
    return name.endswith(".weight") and len(shape) >= 2 and shape[-1] % _GROUP == 0


def _stored_dtype(config: Mapping[str, Any]) -> str:
    text = text_config(config)
    name = config.get("dtype") or config.get("torch_dtype") or text.get("torch_dtype")
    return _NAMES.get(str(name), "BF16")
