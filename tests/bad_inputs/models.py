"""Models that are missing, incomplete, damaged or unfit, and such as would run code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import Case, World
from tests.helpers.tiny import tiny_folder

_Spoil = Callable[[Path], object]


def _spoilt(name: str, spoil: _Spoil, *says: str) -> Case:
    def build(world: World) -> list[str]:
        folder = world.copy("model")
        spoil(folder)
        return world.generate(model=folder)

    return Case(name, build, says)


def _named(name: str, model: str, *says: str) -> Case:
    return Case(name, lambda world: world.generate("--model", model), says)


def _file(name: str, change: Callable[[bytes], bytes]) -> _Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return spoil


def _config(**changes: Any) -> _Spoil:
    """Changes config.json; a key of value `...` is taken out."""

    def spoil(folder: Path) -> None:
        values = {**json.loads((folder / "config.json").read_text()), **changes}
        kept = {key: value for key, value in values.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(kept))

    return spoil


def _half_downloaded(folder: Path) -> None:
    """Two shards in the index, of which one is there."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"lm_head.weight": "model-00002-of-00002.safetensors"}
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _own_code(folder: Path) -> None:
    _config(model_file="evil.py")(folder)
    (folder / "evil.py").write_text("print('was run')\n")


def _no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def _template(text: str) -> _Spoil:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def _short_context(world: World) -> list[str]:
    folder = tiny_folder("llama", world.tmp / "short", max_position_embeddings=16)
    return world.generate(model=folder)


def _pickled(world: World) -> list[str]:
    folder = world.copy("model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return world.generate(model=folder)


def _adapter(spoil: _Spoil) -> Callable[[World], list[str]]:
    def build(world: World) -> list[str]:
        folder = world.tmp / "adapter"
        folder.mkdir()
        spoil(folder)
        return world.generate("--adapter", str(folder))

    return build


def _bad_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"num_layers": 2}')


def _gguf(data: bytes) -> Callable[[World], list[str]]:
    def build(world: World) -> list[str]:
        path = world.tmp / "model.gguf"
        path.write_bytes(data)
        return world.generate(model=path)

    return build


CASES = [
    _named("no folder", "./no/such/folder", "there is no model folder './no/such/folder'"),
    _named("no id", "mistral", "there is no model folder 'mistral'", "mlx-community/"),
    _named("an id of three parts", "a/b/c", "no hub id either"),
    _named("an empty name", "", "--model is empty"),
    _named("an id with spaces", "my org/my model", "my org/my model"),
    _spoilt("no config", lambda f: (f / "config.json").unlink(), "has no config.json"),
    _spoilt("a broken config", _file("config.json", lambda d: d[:50]), "config.json is damaged"),
    _spoilt("a list for a config", _file("config.json", lambda d: b"[]"), "config.json is damaged"),
    _spoilt("an unknown type", _config(model_type="quux"), "quux", "cannot be loaded"),
    _spoilt("no type", _config(model_type=...), "model_type"),
    _spoilt("a path for a type", _config(model_type="../../x"), "cannot be loaded"),
    _spoilt("a number for a type", _config(model_type=7), "cannot be loaded"),
    _spoilt("no hidden size", _config(hidden_size=...), "cannot be loaded", "hidden_size"),
    _spoilt("other shapes", _config(hidden_size=128), "cannot be loaded"),
    _spoilt("more layers", _config(num_hidden_layers=7), "cannot be loaded", "layers.6"),
    _spoilt("no weights", lambda f: (f / "model.safetensors").unlink(), "fetch it again"),
    Case("pickled weights", _pickled, ("has no model*.safetensors",)),
    _spoilt("a shard missing", _half_downloaded, "model-00002-of-00002.safetensors", "fetch"),
    _spoilt("cut weights", _file("model.safetensors", lambda d: d[:5000]), "cannot be loaded"),
    _spoilt("nearly whole weights", _file("model.safetensors", lambda d: d[:-9]), "cannot be load"),
    _spoilt("empty weights", _file("model.safetensors", lambda d: b""), "cannot be loaded"),
    _spoilt("noise for weights", _file("model.safetensors", lambda d: b"\xff" * 999), "loaded"),
    _spoilt("a model of its own code", _own_code, "evil.py", "never run"),
    _spoilt("no tokenizer", lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
    _spoilt("half a tokenizer", _file("tokenizer.json", lambda d: d[:99]), "damaged"),
    _spoilt("no chat template", _no_template, "has no chat template", "instruction-tuned"),
    _spoilt("a broken template", _template("{% for %}"), "chat template"),
    _spoilt("a template of code", _template("{{ ''.__class__.__mro__ }}"), "chat template"),
    _spoilt("a template that raises", _template("{{ raise_exception('no') }}"), "cannot render"),
    Case("a short context", _short_context, ("exceed the 16", "lower max_tokens")),
    Case("no adapter", _adapter(lambda f: None), ("has no adapter_config.json",)),
    Case("a bad adapter", _adapter(_bad_adapter), ("does not fit",)),
    Case("no GGUF file", lambda w: w.generate(model=w.tmp / "a.gguf"), ("there is no file",)),
    Case("an empty GGUF file", _gguf(b""), ("model.gguf",)),
    Case("a broken GGUF file", _gguf(b"GGUF" + b"\xff" * 60), ("model.gguf",)),
]
