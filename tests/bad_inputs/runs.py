"""Run directories that are not, or no longer, what a run left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.bad_inputs.case import Case, World

_Spoil = Callable[[Path], object]


def _reported(name: str, spoil: _Spoil, *says: str) -> Case:
    def build(world: World) -> list[str]:
        folder = world.copy("run")
        spoil(folder)
        return ["report", str(folder)]

    return Case(f"report, {name}", build, says)


def _continued(name: str, spoil: _Spoil, *says: str, more: tuple[str, ...] = ()) -> Case:
    def build(world: World) -> list[str]:
        folder = world.copy("run")
        spoil(folder)
        return ["run", str(world.config()), "--out", str(folder), *more]

    return Case(f"continued, {name}", build, says)


def _text(file: str, change: Callable[[bytes], bytes]) -> _Spoil:
    def spoil(folder: Path) -> None:
        (folder / file).write_bytes(change((folder / file).read_bytes()))

    return spoil


def _line(file: str, number: int, text: str) -> _Spoil:
    def change(data: bytes) -> bytes:
        lines = data.split(b"\n")
        lines[number - 1] = text.encode()
        return b"\n".join(lines)

    return _text(file, change)


def _manifest(folder: Path) -> None:
    value = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**value, "format_version": 99}))


def _without(*names: str) -> _Spoil:
    def spoil(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def _put(name: str, text: str) -> _Spoil:
    return lambda folder: (folder / name).write_text(text)


def _folder_for(name: str) -> _Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return spoil


def _labels(text: str) -> Callable[[World], list[str]]:
    def build(world: World) -> list[str]:
        path = world.tmp / "labels.json"
        path.write_text(text)
        return ["report", str(world.copy("run")), "--labels", str(path)]

    return build


def _foreign(world: World) -> list[str]:
    (world.tmp / "out").mkdir()
    (world.tmp / "out" / "thesis.tex").write_text("Years of work.")
    return world.run()


def _own_config(world: World) -> list[str]:
    """The folder of the experiment file itself, which the run's config.yaml would overwrite."""
    (world.tmp / "out").mkdir()
    path = world.config().rename(world.tmp / "out" / "config.yaml")
    return world.run(path)


def _fresh_foreign(world: World) -> list[str]:
    return [*_foreign(world), "--fresh"]


def _file_for_folder(world: World) -> list[str]:
    (world.tmp / "out").write_text("")
    return world.run()


def _under_file(world: World) -> list[str]:
    (world.tmp / "file").write_text("")
    return ["run", str(world.config()), "--out", str(world.tmp / "file" / "run")]


def _twice(data: bytes) -> bytes:
    value = json.loads(data)
    return json.dumps({"conditions": value["conditions"] * 2}).encode()


def _oracle(data: bytes) -> bytes:
    return json.dumps({**json.loads(data), "judge": "oracle"}).encode()


def _labels_folder(folder: Path) -> None:
    (folder / "labels.json").mkdir()


def _other_layers(world: World) -> list[str]:
    """New vectors are to take the place of a folder in which somebody keeps a file."""
    folder = world.copy("run")
    (folder / "vectors" / "notes.txt").write_text("Mine.")
    return ["run", str(world.config(extract={"layers": [1, 2]})), "--out", str(folder)]


_OTHER = '{"format_version": 1, "labels": {"0123": "shown"}}'

CASES = [
    Case("no directory", lambda w: ["report", str(w.tmp / "no")], ("there is no run directory",)),
    Case("report of a file", lambda w: ["report", str(w.config())], ("there is no run directory",)),
    Case("report of something", lambda w: ["report", str(w.behavior)], ("is no run directory",)),
    Case("a file in the way", _file_for_folder, ("is a file", "choose another --out")),
    Case("a file on the way", _under_file, ("cannot be used", "Not a directory", "--out")),
    Case("a foreign directory", _foreign, ("holds other things than a run", "--out")),
    Case("a foreign directory, fresh", _fresh_foreign, ("holds other things than a run",)),
    Case("the config's own directory", _own_config, ("holds other things than a run",)),
    _continued("of another version", _manifest, "format 99", "--fresh"),
    _continued("a damaged row", _line("rows.jsonl", 5, "{"), "line 5 of", "rows.jsonl", "remove"),
    _continued("a row of nothing", _line("rows.jsonl", 5, "{}"), "line 5 of", "damaged"),
    _continued("a list", _line("rows.jsonl", 1, "[]"), "line 1 of", "damaged"),
    _continued(
        "tokens of text",
        _line("rows.jsonl", 2, '{"key": "a", "tokens": ["b"]}'),
        "line 2 of",
    ),
    _continued("a damaged score", _line("scores.jsonl", 2, '{"key": 5}'), "scores.jsonl is dam"),
    _continued("a folder for rows", _folder_for("rows.jsonl"), "Is a directory", "rows.jsonl"),
    _continued("a folder for a file", _folder_for("behavior.json"), "behavior.json"),
    _continued("damaged labels", _put("labels.json", "{"), "labels.json is damaged"),
    Case("a file in the vectors", _other_layers, ("'notes.txt'", "not part of a vectors folder")),
    _reported("of another version", _manifest, "format 99"),
    _reported("half-deleted", _without("conditions.json"), "conditions.json is missing"),
    _reported("without rows", _without("rows.jsonl"), "rows.jsonl is missing"),
    _reported("without manifest", _without("manifest.json"), "manifest.json is missing"),
    _reported("without config", _without("config.yaml"), "config.yaml", "again"),
    _reported("a damaged manifest", _text("manifest.json", lambda d: d[:-9]), "not valid JSON"),
    _reported("a damaged config", _put("config.yaml", "name: ["), "config.yaml is not valid YAML"),
    _reported("a damaged row", _line("rows.jsonl", 3, '{"key": "a"}'), "line 3 of", "rows.jsonl"),
    _reported("a binary row", _text("rows.jsonl", lambda d: b"\xff\n" + d), "line 1 of"),
    _reported("a damaged score", _line("scores.jsonl", 1, '{"key": []}'), "scores.jsonl"),
    _reported("a damaged price", _line("prices.jsonl", 1, '{"nats": NaN}'), "prices.jsonl"),
    _reported("damaged conditions", _put("conditions.json", "[]"), "conditions.json is damaged"),
    _reported("a condition twice", _text("conditions.json", _twice), "stands twice"),
    _reported("prompts of another run", _put("prompts.jsonl", ""), "not in prompts.jsonl"),
    _reported("damaged vectors", _put("vectors/layer_2.npy", ""), "layer_2.npy"),
    _reported("an unknown judge", _text("behavior.json", _oracle), "'oracle'"),
    _reported("a damaged choice", _put("choice.json", '{"layer": "x"}'), "choice.json is damaged"),
    _reported("a folder for labels", _labels_folder, "labels.json"),
    Case("no labels", lambda w: ["report", str(w.copy("run")), "--labels", "x"], ("no file of",)),
    Case("labels of another run", _labels(_OTHER), ("labels of another run",)),
    Case("labels of no format", _labels('{"labels": {}}'), ("format_version",)),
    Case("labels of another format", _labels('{"format_version": 2, "labels": {}}'), ("damaged",)),
    Case("labels of a new word", _labels(_OTHER.replace("shown", "yes")), ("damaged", "0123")),
    Case("labels that are no JSON", _labels("shown"), ("labels.json is damaged",)),
]
