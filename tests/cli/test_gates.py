"""`mlx-steer gate fit`, gated answers and chats, and gates on disk as PyTorch reads them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mlx_steer.behaviors import load_behavior
from mlx_steer.conditions import Condition, Gate, Intervention
from mlx_steer.config import GateConfig
from mlx_steer.engine.complete import complete
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.steered import gate_score
from mlx_steer.extraction.gates import fit_gate
from mlx_steer.extraction.pairs import extract
from mlx_steer.model.load import load_model
from mlx_steer.vectors import GateInfo, load_vectors
from tests.helpers.behaviors import behavior_folder
from tests.helpers.command import Run
from tests.helpers.tiny import random_vector, tiny_folder
from tests.oracle.cases import parting
from tests.reference import decoder, interventions, vectors


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gates")
    tiny_folder("llama", folder / "model")
    behavior_folder(folder / "behavior", gate=True)
    pairs = load_behavior(str(folder / "behavior"))
    extract(load_model(str(folder / "model")), pairs, [2, 3]).save(folder / "vectors")
    return folder


@pytest.fixture
def folder(shared: Path, tmp_path: Path) -> Path:
    """A vectors folder of its own, without gates."""
    load_vectors(shared / "vectors").save(tmp_path / "vectors")
    return tmp_path / "vectors"


def test_the_command_fits_the_gate_of_the_function_and_saves_it_beside_the_vectors(
    shared: Path, folder: Path, run: Run
) -> None:
    options = ["--model", shared / "model", "--behavior", shared / "behavior"]
    result = run("gate", "fit", *options, "--vectors", folder, "--system-prompt", "detailed")
    assert result.code == 0, result.err
    data = load_behavior(str(shared / "behavior"))
    wanted = fit_gate(
        load_model(str(shared / "model")),
        data,
        GateConfig(),
        system_prompt=data.system_prompts["detailed"],
    )
    saved = load_vectors(folder)
    assert saved.gate("plain").key() == wanted.gate.key()
    assert saved.metadata.gates == [wanted.info.model_copy(update={"sha256": saved_sha(folder)})]
    assert sorted(saved) == [2, 3]
    more = ["--layers", "1", "--method", "mean_difference", "--false-positive-rate", 0.4]
    again = run("gate", "fit", *options, "--vectors", folder, *more, "--name", "second")
    assert again.code == 0, again.err
    once_more = run("gate", "fit", *options, "--vectors", folder, *more)
    assert once_more.code == 0, once_more.err
    gates = load_vectors(folder).gates
    assert sorted(g.name for g in gates) == ["plain", "second"]
    assert {(g.layer, g.threshold) for g in gates} == {(1, gates[0].threshold)}


def saved_sha(folder: Path) -> str:
    return str(json.loads((folder / "metadata.json").read_text())["gates"][0]["sha256"])


def test_a_behavior_without_gate_prompts_and_a_name_that_is_none_are_refused_in_a_line(
    shared: Path, folder: Path, run: Run, tmp_path: Path
) -> None:
    behavior_folder(tmp_path / "ungated")
    before = (folder / "metadata.json").read_bytes()
    for name, extra, message in (
        (tmp_path / "ungated", [], "has 0 target and 0 other prompts of split gate"),
        (shared / "behavior", ["--name", "../x"], "cannot name a gate's file"),
        (shared / "behavior", ["--false-positive-rate", 2], "0<=x<1"),
        (shared / "behavior", ["--layers", "7"], "no layer 7"),
    ):
        options = ["--model", shared / "model", "--behavior", name, "--vectors", folder]
        result = run("gate", "fit", *options, *extra)
        assert result.code != 0 and message in " ".join(result.err.split())
        assert "Traceback" not in result.err
    assert (folder / "metadata.json").read_bytes() == before


def save_gate(folder: Path, gate: Gate) -> None:
    info = GateInfo(
        name=gate.name,
        file=f"gate_{gate.name}.npy",
        sha256="0" * 64,  # filled in
        layer=gate.layer,
        threshold=gate.threshold,
        method="by hand",
        auc=1.0,
        false_positive_rate=0.05,
        prompts={},
        system_prompt_sha256=None,
    )
    load_vectors(folder).with_gate(gate, info).save(folder)


TURNS = ["Write a poem.", "Take bread.", "And the sea?", "Paint old maps, please."]


def test_in_a_chat_the_gate_is_decided_anew_each_turn(
    shared: Path, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, act = load_model(str(shared / "model")), load_vectors(folder)[2]
    item = Intervention(2, act.array, 2.0)

    def turns(gate: Gate, steer: bool) -> tuple[list[float], list[str]]:
        """Scores and answers of a conversation in which open gates steer, or nothing does."""
        messages: list[dict[str, str]] = []
        values, answers = [], []
        for text in TURNS:
            messages.append({"role": "user", "content": text})
            ids = tuple(model.chat.conversation_ids(messages))
            values.append(gate_score(model.network, gate, ids))
            acts = (item,) if steer and values[-1] >= 0 else ()
            (row,) = complete(model, [Job("", ids, Condition("", None, acts))], Sampling(5))
            answers.append(row.text.strip())
            messages.append({"role": "assistant", "content": answers[-1]})
        return values, answers

    plain, base = turns(Gate(4, random_vector(9, norm=1.0), 0.0), False)
    sign = 1.0 if np.argmax(plain) > 0 else -1.0
    scores = sign * np.array(plain)
    first = int(np.argmax(scores))
    # It opens at the turn that scores highest, and not before.
    cut = float(scores[first] + max(scores[:first])) / 2
    gate = Gate(4, np.float32(sign) * random_vector(9, norm=1.0), cut, "turns")
    save_gate(folder, gate)
    wanted, answers = turns(load_vectors(folder).gate("turns"), True)
    assert [value >= 0 for value in wanted[: first + 1]] == [False] * first + [True]
    assert answers[:first] == base[:first] and answers[first] != base[first]

    lines = iter([*TURNS, ""])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    options = ["--model", shared / "model", "--vectors", folder, "--layer", 2, "--strength", 2]
    result = run("chat", *options, "--gate", "turns", "--max-tokens", 5)
    assert result.code == 0, result.err
    told = re.findall(r"gate (open|shut) \(([+-][0-9.]+)\)", result.err)
    assert [state for state, _ in told] == ["open" if v >= 0 else "shut" for v in wanted]
    assert [float(value) for _, value in told] == pytest.approx(wanted, abs=1e-3)


def test_one_gated_answer_is_the_steered_or_the_base_one(
    shared: Path, folder: Path, run: Run
) -> None:
    model = load_model(str(shared / "model"))
    prompt = "How do I bake bread?"
    ids = model.chat.prompt_ids(prompt)
    value = gate_score(model.network, Gate(1, random_vector(9, norm=1.0), 0.0), ids)
    options = ["--model", shared / "model", "--vectors", folder, "--layer", 2]
    options += ["--max-tokens", 6, "--steered-only"]
    base = run("generate", *options, "--strength", 0, prompt)
    options += ["--strength", 2]
    plain = run("generate", *options, prompt)
    assert plain.out != base.out
    for threshold, wanted in ((value - 0.1, plain), (value + 0.1, base)):
        save_gate(folder, Gate(1, random_vector(9, norm=1.0), threshold, "one"))
        assert run("generate", *options, "--gate", "one", prompt).out == wanted.out
    missing = run("generate", *options, "--gate", "two", prompt)
    assert missing.code != 0 and "no gate 'two' (they have: one)" in " ".join(missing.err.split())


def test_the_reference_path_reads_a_saved_gate_and_steers_the_same_prompts(
    shared: Path, folder: Path, run: Run
) -> None:
    options = ["--model", shared / "model", "--behavior", shared / "behavior", "--vectors", folder]
    assert run("gate", "fit", *options).code == 0
    ours, theirs = load_model(str(shared / "model")), decoder.load(shared / "model")
    data, saved, read = (
        load_behavior(str(shared / "behavior")),
        load_vectors(folder),
        vectors.read(folder),
    )
    assert list(read.gates) == ["plain"]
    gate = read.gates["plain"]
    assert gate.layer == saved.gate("plain").layer
    assert gate.threshold == saved.gate("plain").threshold
    assert np.array_equal(gate.direction, saved.gate("plain").direction)
    items = data.select(split="gate")
    ids = [ours.chat.prompt_ids(item.prompt) for item in items]
    act = (Intervention(3, saved[3].array, 2.0),)
    condition = Condition("gated", None, act, saved.gates)
    jobs = [Job(item.id, tuple(i), condition) for item, i in zip(items, ids, strict=True)]
    done = complete(ours, jobs, Sampling(8))
    assert len({row.steered for row in done}) == 2
    steer = interventions.Steer(3, read.vectors[3], 2.0)
    for row, prompt in zip(done, ids, strict=True):
        margin = theirs.gate_score(gate, prompt) - gate.threshold
        assert row.gates[0] == pytest.approx(margin, abs=1e-3)
        assert row.steered is (margin >= 0)
        wanted = theirs.greedy(prompt, 8, [steer], ours.chat.stop_ids, gate)
        assert parting(row, wanted.tokens, wanted.margins) is None


def test_the_reference_path_refuses_a_gate_that_was_changed_on_disk(
    shared: Path, folder: Path, run: Run
) -> None:
    options = ["--model", shared / "model", "--behavior", shared / "behavior", "--vectors", folder]
    assert run("gate", "fit", *options).code == 0
    np.save(folder / "gate_plain.npy", random_vector(1))
    with pytest.raises(ValueError, match=r"sha256 of gate_plain\.npy"):
        vectors.read(folder)
