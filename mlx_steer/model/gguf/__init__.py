"""Converts a GGUF file into a model folder that mlx-lm and transformers load.

Dense models of the architectures in architectures.py. The header is read by our own bounded
reader, the values are turned into floats by the gguf library.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import mlx.core as mx

from mlx_steer.errors import ModelError
from mlx_steer.gguf_header import read_header
from mlx_steer.model.gguf.architectures import architecture_of
from mlx_steer.model.gguf.config import generation_config, model_config
from mlx_steer.model.gguf.readable import check_data
from mlx_steer.model.gguf.tokenizer import build_tokenizer, tokenizer_config
from mlx_steer.model.gguf.weights import check_tensors, save_weights, wanted_tensors
from mlx_steer.words import Dtype

__all__ = ["Dtype", "convert_gguf"]

_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def convert_gguf(
    source: Path, folder: Path, dtype: Dtype = "float32", model_id: str | None = None
) -> None:
    """Turns a GGUF file into a model folder for mlx-lm and transformers.

    The weights are dequantised and, for Llama, the rows of the query and key projections put back
    in the order of Hugging Face (half-split rotary embedding). The tokenizer is rebuilt from the
    metadata. The folder is written under another name and renamed, so it is complete or absent;
    a model folder that is there already, or appears meanwhile, is kept as it is.

    Args:
        source: The GGUF file.
        folder: The folder to make.
        dtype: The type of all weights in the folder.
        model_id: The name recorded in config.json; by default the file's own.

    Raises:
        ModelError: The file is no GGUF, damaged, of another architecture or of a quantisation
            that cannot be read, has no usable tokenizer, or the folder cannot be written.
    """
    if dtype not in _DTYPES:
        raise ModelError(f"'{dtype}' is no dtype for a model; use one of {', '.join(_DTYPES)}.")
    if _is_model(folder):
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} exists and is no model folder; name another or remove it.")
    header = read_header(source)
    architecture = architecture_of(header)
    check_data(header)
    tokenizer = build_tokenizer(header, architecture)
    config = model_config(header, architecture, dtype, model_id)
    wanted = wanted_tensors(architecture, config)
    check_tensors(header, architecture, wanted)

    partial = folder.with_name(f".{folder.name}.{uuid4().hex[:12]}.partial")
    try:
        partial.mkdir(parents=True)
        _write_json(partial / "config.json", config)
        _write_json(partial / "generation_config.json", generation_config(config))
        _write_json(partial / "tokenizer_config.json", tokenizer_config(header, architecture))
        tokenizer.save(str(partial / "tokenizer.json"))
        save_weights(header, wanted, partial, _DTYPES[dtype])
        try:
            os.rename(partial, folder)
        except OSError:
            if not _is_model(folder):
                raise
    except (OSError, RuntimeError, ValueError) as error:  # MLX and gguf raise all three
        raise ModelError(
            f"{source} could not be converted into {folder} ({error}); check the disk's free space "
            "and permissions, or use another file."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("model*.safetensors"))


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
