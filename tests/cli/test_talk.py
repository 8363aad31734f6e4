"""`mlx-steer generate` and `chat` do what the same conditions do in Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mlx_steer.behaviors import load_behavior
from mlx_steer.cli.output import safe
from mlx_steer.conditions import Condition, Intervention
from mlx_steer.engine.complete import complete
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.extraction.pairs import extract
from mlx_steer.model.load import load_model
from mlx_steer.vectors import load_vectors
from mlx_steer.words import Operator
from tests.helpers.behaviors import behavior_folder
from tests.helpers.command import Run
from tests.helpers.tiny import tiny_folder

PROMPT = "How do I bake bread?"
TOKENS = 8


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talk")
    # Room for the shipped system prompts.
    tiny_folder("llama", folder / "model", max_position_embeddings=1024)
    behavior_folder(folder / "behavior")
    model, pairs = load_model(str(folder / "model")), load_behavior(str(folder / "behavior"))
    vectors = extract(model, pairs, [1, 2, 3])
    vectors.save(folder / "one")
    # Of a shipped behavior, whose system prompts have names.
    shipped = vectors.metadata.model_copy(update={"behavior": "refusal"})
    extract(model, pairs, [1, 2, 3], token_position="mean").save(folder / "two")
    type(vectors)(vectors.vectors, shipped).save(folder / "shipped")
    return folder


def wanted(
    shared: Path,
    acts: Sequence[tuple[str, int, float, Operator]],
    system: str | None = None,
) -> str:
    """What Python gives for these vectors folders, layers, strengths and operators."""
    model = load_model(str(shared / "model"))
    made = tuple(
        Intervention(layer, load_vectors(shared / name)[layer].array, strength, operator)
        for name, layer, strength, operator in acts
    )
    ids = tuple(model.chat.prompt_ids(PROMPT, system))
    (row,) = complete(model, [Job("", ids, Condition("", None, made))], Sampling(TOKENS))
    return safe(row.text.strip())


def said(run: Run, shared: Path, *options: object) -> str:
    shown = ["--max-tokens", TOKENS, "--steered-only"]
    result = run("generate", "--model", shared / "model", *options, *shown, PROMPT)
    assert result.code == 0, result.err
    return result.out.rstrip("\n")


def test_several_vectors_layers_strengths_and_operators_belong_together_in_order(
    run: Run, shared: Path
) -> None:
    one, two = shared / "one", shared / "two"
    options = ["--vectors", one, "--layer", 1, "--strength", 2, "--operator", "add"]
    options += ["--vectors", two, "--layer", 3, "--strength", -6, "--operator", "clamp"]
    both = said(run, shared, *options)
    assert both == wanted(shared, [("one", 1, 2, "add"), ("two", 3, -6, "clamp")])
    # The tokens tell these apart, so order and pairing matter.
    assert both != wanted(shared, [("one", 1, 2, "add")])
    assert both != wanted(shared, [("two", 1, 2, "add"), ("one", 3, -6, "clamp")])


def test_a_band_is_each_of_its_layers_at_one_strength(run: Run, shared: Path) -> None:
    options = ["--vectors", shared / "one", "--layer", "1-3", "--strength", 0.7]
    every: list[tuple[str, int, float, Operator]] = [("one", k, 0.7, "add") for k in (1, 2, 3)]
    assert said(run, shared, *options) == wanted(shared, every)


def test_what_is_given_once_counts_for_all(run: Run, shared: Path) -> None:
    options = ["--vectors", shared / "one", "--layer", 1, "--layer", -3, "--strength", 1.5]
    both = said(run, shared, *options)
    assert both == wanted(shared, [("one", 1, 1.5, "add"), ("one", 3, 1.5, "add")])
    assert both != wanted(shared, [("one", 1, 1.5, "add")])


def test_a_system_prompt_goes_by_the_name_its_behavior_gives_it(run: Run, shared: Path) -> None:
    text = load_behavior("refusal").system_prompts["calibrated"]
    options = ["--vectors", shared / "shipped", "--layer", 2, "--system-prompt"]
    named = said(run, shared, *options, "calibrated")
    assert named == said(run, shared, *options, text)
    assert named == wanted(shared, [("one", 2, 1.0, "add")], text)
    assert named != wanted(shared, [("one", 2, 1.0, "add")])


def test_both_answers_stand_side_by_side_under_what_was_done(run: Run, shared: Path) -> None:
    options = ["--vectors", shared / "one", "--layer", 2, "--strength", 2.5]
    result = run("generate", "--model", shared / "model", *options, "--max-tokens", 1, PROMPT)
    head = next(line for line in result.out.splitlines() if "base" in line)
    assert head.index("base") < head.index("layer 2, strength 2.5")
    clamped = ["--operator", "clamp", "--layer", 3]
    result = run(
        "generate", "--model", shared / "model", *options, *clamped, "--max-tokens", 1, PROMPT
    )
    assert "layer 2 clamped to 2.5 + layer 3 clamped to 2.5" in " ".join(
        result.out.replace("┃", " ").split()
    )


def test_a_scope_of_thinking_says_so_where_the_model_does_not_think(run: Run, shared: Path) -> None:
    steered = ["--vectors", shared / "one", "--layer", 2, "--strength", 2.5]
    base = [*steered[:-1], 0]
    options = ["--model", shared / "model", "--max-tokens", TOKENS, "--steered-only", PROMPT]
    result = run("generate", *steered, "--scope", "thinking", *options)
    assert result.code == 0 and "nothing is steered" in result.err
    assert result.out == run("generate", *base, *options).out
    result = run("generate", *steered, "--scope", "answer", *options)
    assert "nothing is steered" not in result.err
    assert result.out == run("generate", *steered, "--scope", "generated", *options).out
    assert result.out != run("generate", *base, *options).out


def test_a_chat_ends_in_peace(run: Run, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    options = ["--vectors", shared / "one", "--layer", 2]
    assert run("chat", "--model", shared / "model", *options).code == 0
