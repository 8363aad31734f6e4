"""Exports that cannot be, and other tools' files that are hostile or do not say enough."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from safetensors.numpy import save

from tests.bad_inputs.case import Build, Case, World
from tests.helpers.gguf_files import write_gguf
from tests.helpers.tiny import tiny_folder

_ROW = np.ones(64, np.float32)


class _Evil:
    def __reduce__(self) -> Any:
        return print, ("this was run",)


def _export(*options: str) -> Build:
    return lambda w: ["vectors", "export", str(w.shared / "vectors"), w.out, *options]


def _import(name: str, data: bytes | Callable[[], bytes], *options: str) -> Build:
    def build(world: World) -> list[str]:
        path = world.tmp / name
        path.write_bytes(data if isinstance(data, bytes) else data())
        return ["vectors", "import", str(path), "--out", world.out, *options]

    return build


def _control_vector(tensor: str = "direction.2", **keys: Any) -> Build:
    def build(world: World) -> list[str]:
        path = world.tmp / "x.gguf"
        metadata = {"general.architecture": "controlvector"} | keys
        write_gguf(path, metadata, {tensor: (0, (64,), _ROW.tobytes())})
        return ["vectors", "import", str(path), "--out", world.out, "--model", str(world.model)]

    return build


def _pickled() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(_Evil(), 2))
    return stream.getvalue()


def _other_model(world: World) -> str:
    return str(tiny_folder("llama", world.tmp / "other", num_hidden_layers=7))


_SAFE = save({"layer_2": _ROW})


def _bake(*options: str) -> Build:
    return lambda w: [
        *("bake", "--model", str(w.model), "--vectors", str(w.shared / "vectors")),
        *("--out", w.out, *options),
    ]


CASES = [
    Case("a bake at a layer not there", _bake("--layer", "4"), ("no layer 4", "they have 2, 3")),
    Case("a bake of nothing", _bake("--layer", "2", "--strength", "0"), ("cannot be baked in",)),
    Case(
        "two directions to ablate",
        _bake("--layer", "2,3", "--operator", "ablate"),
        ("one direction",),
    ),
    Case(
        "a model that cannot be baked",
        lambda w: [
            *("bake", "--model", str(tiny_folder("gemma2", w.tmp / "gemma"))),
            *("--vectors", str(w.shared / "vectors"), "--layer", "2", "--out", w.out),
        ],
        ("'gemma2' normalises", "steer it while it runs"),
    ),
    Case(
        "a folder in the way of a bake",
        lambda w: [
            *("bake", "--model", str(w.model), "--vectors", str(w.shared / "vectors")),
            *("--layer", "2", "--out", str(w.model)),
        ],
        ("exists already",),
    ),
    Case("a control vector of all layers", _export("--format", "gguf"), ("say --layers", "2, 3")),
    Case("no format", _export("--layers", "2"), ("--format",)),
    Case("a layer not there", _export("--format", "pt", "--layers", "4"), ("no layer 4",)),
    Case("nothing of it", _export("--format", "pt", "--strength", "0"), ("--strength 0",)),
    Case(
        "a file in the way",
        lambda w: [
            "vectors",
            "export",
            str(w.shared / "vectors"),
            str(w.config()),
            "--format",
            "pt",
        ],
        ("exists already", "another name"),
    ),
    Case(
        "no vectors",
        lambda w: ["vectors", "export", str(w.model), w.out, "--format", "pt"],
        ("metadata.json is missing",),
    ),
    Case(
        "no file",
        lambda w: ["vectors", "import", str(w.tmp / "no.gguf"), "--out", w.out],
        ("no.gguf cannot be read",),
    ),
    Case("a pickle that runs", _import("x.pt", _pickled), ("nothing but tensors is read",)),
    Case("no model", _import("x.safetensors", _SAFE), ("does not say which model", "--model")),
    Case(
        "a model that is not there",
        _import("x.safetensors", _SAFE, "--model", "./nowhere"),
        ("there is no model folder './nowhere'",),
    ),
    Case("layer 0", _control_vector("direction.0"), ("direction.0", "begin at 1")),
    Case("an escape", _control_vector("direction.\x1b[2J"), ("names no layer",)),
    Case("a projection", _control_vector(**{"glp.mode": "project"}), ("projected out",)),
    Case("a layer beyond", _control_vector("direction.6"), ("layer 6", "layers 0 to 5")),
    Case(
        "no concept",
        _import("x.pt", _pickled, "--format", "axbench", "--layer", "-1"),
        ("--layer",),
    ),
    Case(
        "an unknown format",
        _import("x.pt", b"", "--format", "onnx"),
        ("onnx", "axbench", "persona"),
    ),
    Case(
        "a model they do not fit",
        lambda w: [
            *("vectors", "check", str(w.shared / "vectors"), "--model", _other_model(w)),
        ],
        ("number of layers 6", "has 7", "extract vectors"),
    ),
]
