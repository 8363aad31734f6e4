"""Values on the command line."""

from __future__ import annotations

from tests.bad_inputs.case import Case, World


def _generate(name: str, *more: str, says: tuple[str, ...]) -> Case:
    return Case(name, lambda world: world.generate(*more), says)


def _sweep(name: str, *more: str, says: tuple[str, ...]) -> Case:
    return Case(name, lambda world: _arguments(world, "sweep", *more), says)


def _compare(name: str, *more: str, says: tuple[str, ...]) -> Case:
    return Case(name, lambda world: _arguments(world, "compare", *more), says)


def _gate(name: str, *more: str, says: tuple[str, ...]) -> Case:
    def build(world: World) -> list[str]:
        model, behavior = str(world.model), str(world.behavior)
        vectors = str(world.copy("vectors"))
        fit = ["gate", "fit", "--model", model, "--behavior", behavior, "--vectors", vectors]
        return [*fit, *more]

    return Case(name, build, says)


def _arguments(world: World, command: str, *more: str) -> list[str]:
    model, behavior = str(world.model), str(world.behavior)
    return [command, "--model", model, "--behavior", behavior, "--out", world.out, *more]


CASES = [
    Case("an unknown command", lambda w: ["rum"], ("No such command 'rum'",)),
    Case("a misspelt command", lambda w: ["extrat"], ("did you mean 'extract'",)),
    Case("a misspelt one below", lambda w: ["vectors", "shw"], ("did you mean 'show'",)),
    Case("an unknown option", lambda w: ["run", "--outt", "x"], ("--outt",)),
    Case("no processes", lambda w: ["run", "x", "--processes", "0"], ("write 1 to 64, or auto",)),
    Case(
        "a part by processes",
        lambda w: [*w.run(), "--part", "1/2", "--processes", "2"],
        ("--part or --processes, not both",),
    ),
    Case("no config", lambda w: ["run"], ("give a CONFIG",)),
    Case(
        "an empty model",
        lambda w: ["extract", "--model", " ", "--out", w.out],
        ("--model is empty",),
    ),
    Case(
        "a heat map that is no PNG",
        lambda w: ["vectors", "cosine", *[str(w.shared / "vectors")] * 2, "--plot", "map.txt"],
        ("PNG", "map.txt"),
    ),
    Case("no model", lambda w: ["generate", "hi"], ("Missing option '--",)),
    Case(
        "run, a batch of none",
        lambda w: [*w.run(), "--batch-size", "0"],
        ("1<=x<=4096",),
    ),
    Case("run, a batch of text", lambda w: [*w.run(), "--batch-size", "x"], ("--batch-size",)),
    Case("run, a huge batch", lambda w: [*w.run(), "--batch-size", "9999999"], ("4096",)),
    _generate("a layer beyond", "--layer", "6", says=("layers 0 to 5", "no layer 6")),
    _generate("a layer far below", "--layer", "-7", says=("no layer -7",)),
    _generate("a layer of text", "--layer", "two", says=("--layer", "'two'")),
    _generate("half a layer", "--layer", "1.5", says=("--layer", "'1.5'")),
    _generate("strength nan", "--strength", "nan", says=("--strength", "finite")),
    _generate("strength inf", "--strength", "inf", says=("--strength", "finite")),
    _generate("strength of text", "--strength", "much", says=("--strength", "'much'")),
    _generate("a huge strength", "--strength", "1e300", says=("--strength", "1,000,000")),
    _generate("tokens below zero", "--max-tokens", "-5", says=("--max-tokens", "x>=1")),
    _generate("no tokens", "--max-tokens", "0", says=("--max-tokens", "x>=1")),
    _generate("too many tokens", "--max-tokens", "1000", says=("exceed the 256", "lower")),
    _generate("a cold temperature", "--temperature", "-1", says=("temperature", "-1")),
    _generate("temperature nan", "--temperature", "nan", says=("--temperature", "finite")),
    _generate("an unknown scope", "--scope", "some", says=("'some'", "'generated'")),
    _generate("an unknown dtype", "--dtype", "int8", says=("'int8'", "'float32'")),
    _generate("3 bits", "--quantize", "3", says=("'3'", "'4', '8'")),
    _generate(
        "strengths that match no layers",
        "--strength",
        "1",
        "--strength",
        "2",
        "--strength",
        "3",
        "--layer",
        "3",
        says=("--layer is given 2 times", "once or 3 times"),
    ),
    _generate("an unknown operator", "--operator", "mul", says=("'mul'", "'ablate'")),
    _generate("a system prompt that is no name", "--system-prompt", "strict", says=("'strict'",)),
    _generate("a gate of none", "--gate", "plain", says=("no gate 'plain'", "gate fit")),
    _generate("no vectors", "--vectors", "no/such", says=("no/such does not exist",)),
    _sweep("an unknown method", "--method", "svd", says=("'svd'", "'pca'")),
    Case(
        "a method for vectors that are made",
        lambda w: _arguments(w, "sweep", "--vectors", str(w.shared / "vectors"), "--method", "pca"),
        ("--method cannot change vectors", "leave one out"),
    ),
    _sweep("layers of text", "--layers", "a,b", says=("'a' is not a number", "12,14,16")),
    _sweep("no layers", "--layers", "", says=("is not a number",)),
    _sweep("layers backwards", "--layers", "8-2", says=("8-2", "2-8")),
    _sweep("a billion layers", "--layers", "0-2000000000", says=("0-2000000000",)),
    _sweep("a layer twice", "--layers", "2,2", says=("2 stands twice",)),
    _sweep("sweep, a layer beyond", "--layers", "2,9", says=("no layer 9",)),
    _sweep("strengths of text", "--strengths", "a", says=("'a' is not a number",)),
    _sweep("sweep, strength nan", "--strengths", "nan", says=("strengths", "finite")),
    _sweep("a strength twice", "--strengths", "1,1.0", says=("stands twice",)),
    _sweep("only strength 0", "--strengths", "0", says=("no strength other than 0",)),
    _sweep("no prompts", "--prompts-per-set", "0", says=("--prompts-per-set", "x>=1")),
    _sweep("an unknown behavior", "--behavior", "refusl", says=("did you mean 'refusal'",)),
    _sweep("a seed below zero", "--seed", "-1", says=("--seed", "x>=0")),
    _gate("all prompts may open it", "--false-positive-rate", "1", says=("0<=x<1",)),
    _gate("a rate below zero", "--false-positive-rate", "-0.1", says=("0<=x<1",)),
    _gate("no rate", "--false-positive-rate", "nan", says=("false_positive_rate", "got nan")),
    _gate("gate fit, an unknown method", "--method", "pca", says=("'pca'", "'mean_difference'")),
    _gate("gate fit, a layer twice", "--layers", "2,2", says=("2 stands twice",)),
    _gate("a name that is a path", "--name", "../gate", says=("cannot name a gate's file",)),
    _compare("no layer", says=("Missing option '--layer'",)),
    _compare("an unknown prompt", "--layer", "2", "--system-prompt", "strict", says=("detailed",)),
    _compare("controls below zero", "--layer", "2", "--controls", "-1", says=("0<=x<=100",)),
    _compare(
        "an escape in a prompt",
        "--layer",
        "2",
        "--system-prompt",
        "be \x1b[2J brief",
        says=("'\\x1b'", "the command line"),
    ),
    Case(
        "half a character",
        lambda w: w.generate(prompt="a\udcff b"),
        ("is not UTF-8 text",),
    ),
]
