"""Experiment files that are none, or that say something impossible."""

from __future__ import annotations

from typing import Any

from tests.bad_inputs.case import Case, World


def _text(name: str, text: str | bytes, *says: str) -> Case:
    def build(world: World) -> list[str]:
        path = world.tmp / "bad.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return world.run(path)

    return Case(name, build, says)


def _section(name: str, changes: dict[str, Any], *says: str) -> Case:
    return Case(name, lambda world: world.run(**changes), says)


def _directory(world: World) -> list[str]:
    (world.tmp / "folder").mkdir()
    return world.run(world.tmp / "folder")


_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
    for a, b in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)
)

CASES = [
    Case("no such file", lambda w: w.run(w.tmp / "none.yaml"), ("none.yaml does not exist",)),
    Case("a folder", _directory, ("is a folder", "give a file in it")),
    _text("empty", "", "must hold keys and values"),
    _text("a list", "- name\n- model\n", "must hold keys and values"),
    _text("a word", "refusal\n", "must hold keys and values"),
    _text("not YAML", "name: [a\nmodel: b\n", "bad.yaml is not valid YAML", "line"),
    _text("a tab", "name: a\n\tmodel: b\n", "not valid YAML", "line 2"),
    _text("binary", bytes(range(256)), "bad.yaml is not UTF-8"),
    _text("UTF-16", "name: a".encode("utf-16"), "is not UTF-8", "save it"),
    _text("control characters", "name: a\nmodel: {name: \x07}\n", "not valid YAML"),
    _text("a Python object", "name: !!python/object:os.system ['x']\n", "not valid YAML"),
    _text("an alias", "name: &n a\nmodel: {name: *n}\n", "alias *n", "write it out"),
    _text("a bomb of aliases", _BOMB, "alias *a", "line 2"),
    _text("an alias to itself", "name: &n [*n]\nmodel: {name: b}\n", "alias *n"),
    _text("nested a thousand deep", "name: " + "[" * 2000, "not valid YAML"),
    _text("a key twice", "name: a\nmodel: {name: b}\nname: c\n", "'name' stands twice", "line 3"),
    _text("a date that is none", "name: 2026-99-99\n", "not valid YAML"),
    _text("two documents", "name: a\n---\nname: b\n", "not valid YAML"),
    _text("no model", "name: a\n", "'model' is missing"),
    _text("a number for a key", "7: 1\nname: a\nmodel: {name: b}\n", "7", "string"),
    _section("an unknown key", {"behaviour": "x"}, "'behaviour'", "did you mean 'behavior'"),
    _section("a key of a section", {"max_tokens": 5}, "did you mean 'generation.max_tokens'"),
    _section(
        "an unknown key in a section",
        {"generation": {"temprature": 1.0}},
        "'generation.temprature'",
        "did you mean 'temperature'",
    ),
    _section("an unknown key of a gate", {"gate": {"layer": 2}}, "'gate.layer'", "'layers'"),
    _section("a gate of no method", {"gate": {"methods": []}}, "methods must not be empty"),
    _section("a gate by PCA", {"gate": {"methods": ["pca"]}}, "gate.methods.0", "'mean_diff"),
    _section("a rate of one", {"gate": {"false_positive_rate": 1.0}}, "'gate.false_pos", "than 1"),
    _section("a rate below 0", {"gate": {"false_positive_rate": -0.1}}, "greater than or equal"),
    _section("a name with a slash", {"name": "a/b"}, "'name': must begin with", "'a/b'"),
    _section("a name that is a number", {"name": 5}, "'name': must be text", "quotes"),
    _section("a section that is a word", {"sweep": "all"}, "'sweep': must hold keys", "'all'"),
    _section("a strength as text", {"sweep": {"strengths": ["1"]}}, "must be a number", "'1'"),
    _section("one strength", {"sweep": {"strengths": 1.0}}, "'sweep.strengths': must be"),
    _section("no strengths", {"sweep": {"strengths": []}}, "strengths must not be empty"),
    _section("a strength twice", {"sweep": {"strengths": [1.0, 1.0]}}, "1 stands twice"),
    _section(
        "strengths that read the same",
        {"sweep": {"strengths": [1.0, 1.0000001]}},
        "'sweep.strengths': 1 stands twice",
    ),
    _section("an endless strength", {"compare": {"strengths": [float("inf")]}}, "finite"),
    _section("no number", {"compare": {"strengths": [float("nan")]}}, "finite"),
    _section("a huge strength", {"compare": {"strengths": [1e300]}}, "less than or equal to"),
    _section("only strength 0", {"sweep": {"strengths": [0.0]}}, "no strength other than 0"),
    _section("layers as a word", {"extract": {"layers": "some"}}, "must be 'all' or a list"),
    _section("half a layer", {"extract": {"layers": [1.5]}}, "layers.0': must be a whole number"),
    _section("no layers", {"extract": {"layers": []}}, "layers must not be empty"),
    _section("a layer too many", {"extract": {"layers": [6]}}, "layers 0 to 5", "no layer 6"),
    _section("a layer far below", {"extract": {"layers": [-7]}}, "no layer -7"),
    _section("a band", {"sweep": {"layers": ["16-12"]}}, "sweep.layers.0", "such as 12-16"),
    _section("half a band", {"compare": {"layer": "2-"}}, "compare.layer", "such as 12-16"),
    _section("a band without vectors", {"sweep": {"layers": ["2-5"]}}, "layer 4", "has no vector"),
    _section("a layer without vector", {"compare": {"layer": 5}}, "layer 5", "has no vector"),
    _section("an unknown method", {"extract": {"method": "mean"}}, "'mean_difference'"),
    _section("an unknown prompt", {"compare": {"system_prompt": "strict"}}, "'strict'", "detailed"),
    _section("an empty prompt", {"compare": {"system_prompt": ""}}, "must not be empty"),
    _section("a prompt twice", {"sweep": {"system_prompts": ["detailed"] * 2}}, "stands twice"),
    _section(
        "an escape in a prompt",
        {"sweep": {"system_prompts": ["be \x1b[2J brief"]}},
        "'\\x1b'",
        "take it out",
    ),
    _section("NUL in a path", {"extract": {"vectors": "a\0b"}}, "'\\x00'"),
    _section("tokens below zero", {"generation": {"max_tokens": -1}}, "greater than or equal"),
    _section("a batch of none", {"generation": {"batch_size": 0}}, "generation.batch_size"),
    _section("a seed below zero", {"statistics": {"seed": -1}}, "statistics.seed"),
    _section("few resamples", {"statistics": {"resamples": 1}}, "statistics.resamples", "100"),
    _section("3 bits", {"model": {"quantize": 3}}, "'model.quantize': must be 4 or 8"),
    _section("float64", {"model": {"dtype": "float64"}}, "model.dtype", "'float32'"),
    _section("prompts_per_set 0", {"prompts_per_set": 0}, "prompts_per_set", "1"),
    _section("an unknown behavior", {"behavior": "refusel"}, "did you mean 'refusal'"),
    _section("no behavior folder", {"behavior": "/nowhere/at/all"}, "/nowhere/at/all", "refusal"),
    _section("no vectors", {"extract": {"vectors": "/nowhere"}}, "/nowhere does not exist"),
]
