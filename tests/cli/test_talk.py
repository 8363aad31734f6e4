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
from mlx_steer.errors import VectorError
from mlx_steer.extraction.pairs import extract
from mlx_steer.model.chat import Message
from mlx_steer.model.load import load_model
from mlx_steer.serve.catalog import Catalog, Offered
from mlx_steer.serve.preset_file import PresetFile
from mlx_steer.serve.speech import Speech
from mlx_steer.vectors import load_vectors
from mlx_steer.words import Operator
from tests.helpers.behaviors import behavior_folder
from tests.helpers.command import Result, Run
from tests.helpers.tiny import HIDDEN, LAYERS, tiny_folder

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


class Talk:
    """`chat` on some lines."""

    def __init__(self, run: Run, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._run, self._shared, self._patch = run, shared, monkeypatch

    def __call__(self, *lines: str, options: Sequence[object] = ()) -> Result:
        left = iter([*lines, ""])
        self._patch.setattr("builtins.input", lambda _: next(left))
        vectors = ["--vectors", self._shared / "one", "--layer", 2]
        common = ["--model", self._shared / "model", "--max-tokens", TOKENS]
        result = self._run("chat", *common, *(options or vectors), columns=300)
        assert result.code == 0, result.err
        return result


@pytest.fixture
def talk(run: Run, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Talk:
    return Talk(run, shared, monkeypatch)


def test_what_a_chat_is_told_steers_from_the_next_message_on(talk: Talk, shared: Path) -> None:
    band = talk("/base", "/layer 1-2", "/strength 0.7", PROMPT)
    assert "layers 1-2, strength 0.7" in band.err
    assert band.out.strip() == wanted(shared, [("one", k, 0.7, "add") for k in (1, 2)])
    result = talk("/base", "/layer 3", "/strength 4", PROMPT)
    assert "layer 3, strength 4 (relative dose" in result.err
    assert result.out.strip() == wanted(shared, [("one", 3, 4, "add")])
    again = talk("/base", "/layer 3", PROMPT, "/strength 4", "/again")
    answers = [wanted(shared, [("one", 3, x, "add")]) for x in (1, 4)]
    assert answers[0] != answers[1]
    assert again.out == "\n".join([*answers, ""])


def test_the_base_model_is_left_out_and_comes_back_with_the_steered_conversation(
    talk: Talk, shared: Path
) -> None:
    result = talk("Hello.", "/base", PROMPT, "/base", "And now?")
    assert result.out.count("base") == 2  # the heads of the first and the last answers
    model, act = load_model(str(shared / "model")), load_vectors(shared / "one")[2]
    steered = Condition("", None, (Intervention(2, act.array, 1.0),))
    messages: list[Message] = []
    for text in ("Hello.", PROMPT, "And now?"):
        messages.append({"role": "user", "content": text})
        ids = tuple(model.chat.conversation_ids(messages))
        jobs = [Job("base", ids, Condition("")), Job("steered", ids, steered)]
        base, answer = complete(model, jobs, Sampling(TOKENS))
        messages.append({"role": "assistant", "content": answer.text.strip()})
    row = " ".join(result.out.splitlines()[-2].replace("│", " ").split())
    assert row == " ".join(f"{safe(base.text.strip())} {safe(answer.text.strip())}".split())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/help", "/strength X"),
        ("/nothing", "there is no /nothing"),
        ("/strength", "/strength 0.8"),
        ("/strength much", "is not a number"),
        ("/strength 1 2", "give one"),
        ("/layer", "the vectors have 1, 2, 3"),
        ("/layer two", "12-16 for a band"),
        ("/layer 0", "layer 0"),
        ("/layer 99", "layer"),
        ("/gate", "these vectors have none"),
        ("/gate plain", "no gate 'plain'"),
        ("/again", "nothing was asked yet"),
        ("/save", "/save calm"),
        ("/save /nowhere/at/all", "cannot be written"),
    ],
)
def test_a_chat_says_what_a_command_does_and_goes_on(
    talk: Talk, shared: Path, line: str, said: str
) -> None:
    result = talk(line, "/base", PROMPT)
    assert said in result.err
    assert result.out.strip() == wanted(shared, [("one", 2, 1.0, "add")])  # nothing has changed


def test_ctrl_c_ends_an_answer_and_not_the_chat(
    talk: Talk, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, count = Speech.add, 0

    def pressed_once(self: Speech, token: int) -> str:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return plain(self, token)

    monkeypatch.setattr(Speech, "add", pressed_once)
    result = talk("/base", PROMPT, "/again")
    whole = wanted(shared, [("one", 2, 1.0, "add")])
    first, second = result.out.splitlines()
    assert "stopped" in result.err
    assert whole.startswith(first) and len(first) < len(whole) and second == whole


def test_what_a_chat_saves_is_served(talk: Talk, shared: Path, tmp_path: Path) -> None:
    options: list[object] = ["--vectors", shared / "one", "--layer", 2, "--strength", 2]
    options += ["--vectors", shared / "two", "--layer", 3, "--strength", -1]
    assert "--preset" in talk(f"/save {tmp_path / 'both'}", options=options).err
    found = PresetFile.read(tmp_path / "both.yaml")
    offered = Offered(str(shared / "model"), HIDDEN, LAYERS)
    folders = [(name, Path(folder)) for name, folder in found.vectors.items()]
    catalog = Catalog.load(offered, folders)[0]
    catalog.add_preset("both", found.steering)
    acts = catalog.resolve("", "both", None).condition.interventions
    assert [(act.layer, act.strength) for act in acts] == [(2, 2.0), (3, -1.0)]
    for act, name in zip(acts, ("one", "two"), strict=True):
        assert (act.vector == load_vectors(shared / name)[act.layer].array).all()


@pytest.mark.parametrize(
    "text", ["", "[]", "steering: []", "vectors: {a: b}\nsteering: [{vector: a, strenght: 1}]"]
)
def test_a_file_that_is_no_preset_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(VectorError, match=r"x\.yaml"):
        PresetFile.read(tmp_path / "x.yaml")
