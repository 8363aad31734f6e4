"""The weights of a Hugging Face or MLX model folder as plain tensors.

Knows file formats only, nothing about layers. Quantised MLX weights come out dequantised.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read ``config.json`` of a model folder."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{folder}/config.json does not hold a JSON object.")
    return config


def read_weights(
    folder: str | Path, config: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Read every ``model*.safetensors`` of a folder, each tensor converted to ``dtype``.

    A quantised module's three tensors (``weight``, ``scales``, ``biases``) become its ``weight``.

    Raises:
        ValueError: if the folder holds no such file, a tensor name occurs twice, or the
            quantisation is not MLX's affine one.
    """
    # Only "model*": some repositories carry the same weights again as consolidated.safetensors.
    files = sorted(Path(folder).glob("model*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no model*.safetensors.")
    stored: dict[str, Tensor] = {}
    for file in files:
        tensors = load_file(file)
        if twice := stored.keys() & tensors.keys():
            raise ValueError(f"{file} repeats tensors of another file: {sorted(twice)[:3]}.")
        stored.update(tensors)

    weights: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        module, _, kind = name.rpartition(".")
        quantised = f"{module}.scales" in stored
        if name.endswith("rotary_emb.inv_freq") or (quantised and kind in ("scales", "biases")):
            continue  # computed by the decoder; used with their weight below
        if quantised and kind == "weight":
            group_size, bits = _quantisation_of(module, config)
            tensor = dequantise(
                tensor.numpy(),
                stored[f"{module}.scales"].to(dtype),
                stored[f"{module}.biases"].to(dtype),
                group_size,
                bits,
            )
        elif not tensor.is_floating_point():
            raise ValueError(f"Tensor {name} in {folder} has dtype {tensor.dtype}; floats needed.")
        weights[name] = tensor.to(dtype)
    return weights


def dequantise(
    packed: NDArray[np.uint32], scales: Tensor, biases: Tensor, group_size: int, bits: int
) -> Tensor:
    """Undo MLX's affine quantisation: ``w = scale * q + bias``, one scale and bias per group.

    A row of ``packed`` is a stream of bits, little-endian throughout: the first value sits in
    the lowest bits of the first word. For 3, 5 and 6 bits values cross the borders of words, so
    the stream is taken apart bit by bit, which is the same for every width.

    Args:
        packed: shape (rows, columns * bits / 32).
        scales: shape (rows, columns / group_size); its dtype is that of the result.
        biases: like ``scales``.
        group_size: neighbouring columns that share a scale and a bias.
        bits: bits per value, at most 8.

    Returns:
        The weight, shape (rows, columns).
    """
    rows, words = packed.shape
    columns = words * 32 // bits
    if columns != scales.shape[1] * group_size or not 1 <= bits <= 8:
        raise ValueError(
            f"{words} words of {bits}-bit values do not make {scales.shape[1]} groups "
            f"of {group_size}."
        )
    octets = np.ascontiguousarray(packed).astype("<u4", copy=False).view(np.uint8)
    stream = np.unpackbits(octets, axis=1, bitorder="little")
    values = np.packbits(stream.reshape(rows, columns, bits), axis=-1, bitorder="little")
    groups = torch.from_numpy(values).reshape(rows, -1, group_size).to(scales.dtype)
    return (groups * scales[..., None] + biases[..., None]).reshape(rows, columns)


def _quantisation_of(module: str, config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (group_size, bits) of a module; a config may give single modules their own."""
    settings = config.get("quantization")
    if not isinstance(settings, dict):
        raise ValueError(f'{module} is quantised, but config.json has no "quantization" object.')
    own = settings.get(module)
    chosen = {**settings, **own} if isinstance(own, dict) else settings
    if chosen.get("mode", "affine") != "affine":
        raise ValueError(f"{module} is quantised with mode {chosen['mode']!r}; only affine works.")
    return int(chosen["group_size"]), int(chosen["bits"])
