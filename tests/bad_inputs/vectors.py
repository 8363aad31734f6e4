"""Vectors folders that are damaged, forged, or do not fit."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.bad_inputs.case import Case, World

_Spoil = Callable[[Path], object]


def _spoilt(name: str, spoil: _Spoil, *says: str) -> Case:
    def build(world: World) -> list[str]:
        folder = world.copy("vectors")
        spoil(folder)
        return ["vectors", "show", str(folder)]

    return Case(name, build, says)


def _array(array: Any, **options: Any) -> _Spoil:
    """Puts another array in the place of layer 2."""
    return lambda folder: np.save(folder / "layer_2.npy", array, **options)


def _bytes(change: Callable[[bytes], bytes], file: str = "layer_2.npy") -> _Spoil:
    def spoil(folder: Path) -> None:
        (folder / file).write_bytes(change((folder / file).read_bytes()))

    return spoil


def _about(change: Callable[[dict[str, Any]], object]) -> _Spoil:
    """Changes metadata.json."""

    def spoil(folder: Path) -> None:
        path = folder / "metadata.json"
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return spoil


class _Evil:
    def __reduce__(self) -> Any:
        return (print, ("this was run",))


def _outside(folder: Path) -> None:
    (folder / "layer_2.npy").rename(folder.parent / "elsewhere.npy")
    (folder / "layer_2.npy").symlink_to(folder.parent / "elsewhere.npy")


def _header(text: bytes) -> Callable[[bytes], bytes]:
    stream = io.BytesIO()
    stream.write(b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117) + b"\n")
    return lambda data: stream.getvalue() + data[128:]


def _with_layer(folder: Path, layers: dict[str, Any]) -> None:
    _about(lambda m: m.update(layers=layers))(folder)


_GOOD = np.ones(64, np.float32)

CASES = [
    Case("none", lambda w: ["vectors", "show", str(w.tmp / "no")], ("does not exist", "extract")),
    Case("a file", lambda w: ["vectors", "show", str(w.config())], ("is not a folder",)),
    Case("an empty folder", lambda w: ["vectors", "show", str(w.tmp)], ("metadata.json is miss",)),
    _spoilt("cut short", _bytes(lambda d: d[:-3]), "layer_2.npy is cut short", "256"),
    _spoilt("too long", _bytes(lambda d: d + b"0000"), "followed by other bytes"),
    _spoilt("an empty file", _bytes(lambda d: b""), "layer_2.npy is not a .npy file"),
    _spoilt("one bit changed", _bytes(lambda d: d[:-1] + bytes([d[-1] ^ 1])), "sha256", "again"),
    _spoilt("a pickle", _bytes(lambda d: pickle.dumps(_Evil())), "not a .npy file"),
    _spoilt("pickled objects", _array(np.array([_Evil()]), allow_pickle=True), "never loaded"),
    _spoilt("code in a header", _bytes(_header(b"__import__('os').abort()")), "damaged"),
    _spoilt("a huge header", _bytes(_header(b"{'descr':'<f4','shape':(9**99,)}")), "layer_2.npy"),
    _spoilt("NaN", _array(_GOOD * np.nan), "NaN or infinite"),
    _spoilt("infinite", _array(_GOOD * np.inf), "NaN or infinite"),
    _spoilt("another shape", _array(np.ones(63, np.float32)), "(63,)", "hidden_size 64"),
    _spoilt("two rows", _array(np.ones((2, 32), np.float32)), "(2, 32)"),
    _spoilt("float64", _array(np.ones(64)), "<f8", "must be float32"),
    _spoilt("big-endian", _array(np.ones(64, ">f4")), ">f4"),
    _spoilt("no file of a layer", lambda f: (f / "layer_3.npy").unlink(), "layer_3.npy is missing"),
    _spoilt("a link that leaves", _outside, "layer_2.npy is a link that leaves"),
    _spoilt("no metadata", lambda f: (f / "metadata.json").unlink(), "metadata.json is missing"),
    _spoilt("half the metadata", _bytes(lambda d: d[:99], "metadata.json"), "not valid JSON"),
    _spoilt("binary metadata", _bytes(lambda d: b"\xff" + d, "metadata.json"), "not UTF-8"),
    _spoilt("a list", _bytes(lambda d: b"[]", "metadata.json"), "must hold a JSON object"),
    _spoilt("a newer format", _about(lambda m: m.update(format_version=2)), "newer", "upgrade"),
    _spoilt("no format", _about(lambda m: m.pop("format_version")), "'format_version' is missing"),
    _spoilt("an extra key", _about(lambda m: m.update(x="\x1b]0;")), "unknown key 'x'"),
    _spoilt("a key of escapes", _about(lambda m: m.update({"\x1b[2J": 1})), "unknown key"),
    _spoilt(
        "another convention", _about(lambda m: m.update(layer_convention="1-based")), "another"
    ),
    _spoilt("no layers", lambda f: _with_layer(f, {}), "lists no layers"),
    _spoilt("a layer of no number", lambda f: _with_layer(f, {"two": {}}), "not a layer number"),
    _spoilt("a layer beyond", _about(lambda m: m.update(num_layers=3)), "layer 3", "0 to 2"),
    _spoilt(
        "a path that leaves",
        _about(lambda m: m["layers"]["2"].update(file="../model/config.json")),
        "'../model/config.json'",
        "must be 'layer_2.npy'",
    ),
    _spoilt("another norm", _about(lambda m: m["layers"]["2"].update(norm=1.0)), "has norm"),
    Case(
        "a missing layer",
        lambda w: w.generate("--layer", "5"),
        ("no layer 5", "they have 2, 3"),
    ),
    Case(
        "another model's",
        lambda w: w.generate(model=_other_model(w)),
        ("hidden size 64", "has 32", "extract vectors"),
    ),
    Case(
        "no shared layer",
        lambda w: ["vectors", "compare", str(w.copy("vectors")), str(_shifted(w))],
        ("share no layer",),
    ),
    Case(
        "a folder with other things",
        lambda w: _extract(w, str(w.copy("behavior"))),
        ("'behavior.yaml'", "choose another"),
    ),
    Case("a file in the way", lambda w: _extract(w, str(w.config())), ("is a file", "choose")),
]


def _extract(world: World, out: str) -> list[str]:
    model, behavior = str(world.model), str(world.behavior)
    return ["extract", "--model", model, "--behavior", behavior, "--layers", "2", "--out", out]


def _other_model(world: World) -> Path:
    from tests.helpers.tiny import tiny_folder

    return tiny_folder("llama", world.tmp / "narrow", hidden_size=32)


def _shifted(world: World) -> Path:
    from mlx_steer.vectors import SteeringVector, SteeringVectorSet, load_vectors

    found = load_vectors(world.shared / "vectors")
    moved = [SteeringVector(k + 2, v.array, v.hidden_norm) for k, v in found.items()]
    SteeringVectorSet(moved, found.metadata).save(world.tmp / "shifted")
    return world.tmp / "shifted"
