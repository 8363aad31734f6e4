from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import constants

from mlx_steer.conditions import Gate
from mlx_steer.errors import RunError, VectorError
from mlx_steer.metrics import compute_metrics
from mlx_steer.metrics.metrics_file import metrics_text
from mlx_steer.report.measured_effect import measured_effect
from mlx_steer.run.reader import load_run
from mlx_steer.vectors import GateInfo, SteeringVector, SteeringVectorSet, load_vectors
from mlx_steer.vectors.evidence import CARD_FILE, evidence_in
from mlx_steer.vectors.model_card import model_card
from mlx_steer.vectors.share import pull_vectors, push_vectors, resolve_revision
from tests.helpers.hub_stand_in import (
    READER,
    WRITER,
    Hub,
    log_in,
    point_at,
    running_hub,
    unreachable,
)
from tests.helpers.synthetic_run import small_run

NAME = "org/refusal-tiny"
CHOICE = {"layer": 8, "strength": 1.0, "system_prompt": "calibrated", "met_limits": True}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running_hub(monkeypatch, tmp_path / "cache") as running:
        log_in(monkeypatch, WRITER)
        yield running


@pytest.fixture
def vectors(tmp_path: Path) -> SteeringVectorSet:
    return small_run(tmp_path / "unused").vectors()


@pytest.fixture
def folder(vectors: SteeringVectorSet, tmp_path: Path) -> Path:
    vectors.save(tmp_path / "vectors")
    return tmp_path / "vectors"


def with_model(vectors: SteeringVectorSet, **changes: Any) -> SteeringVectorSet:
    model = vectors.metadata.model.model_copy(update=changes)
    return SteeringVectorSet(
        vectors.vectors, vectors.metadata.model_copy(update={"model": model}), vectors.gates
    )


def with_gate(vectors: SteeringVectorSet) -> SteeringVectorSet:
    direction = np.eye(8, dtype=np.float32)[3]
    info = GateInfo(
        name="harm",
        file="-",
        sha256="0" * 64,
        layer=8,
        threshold=0.5,
        method="mean difference",
        auc=0.9,
        false_positive_rate=0.05,
        prompts={"target": 60, "other": 60},
        system_prompt_sha256=None,
    )
    return vectors.with_gate(Gate(8, direction, 0.5, "harm"), info)


def measured(folder: Path, **choice: Any) -> Path:
    run = small_run(folder).write({**CHOICE, **choice})
    (run / "metrics.json").write_text(metrics_text(compute_metrics(load_run(run))))
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def front_matter(card: str) -> dict[str, Any]:
    front: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return front


# --- there and back -------------------------------------------------------------------------------


def test_vectors_come_back_byte_for_byte(
    hub: Hub, vectors: SteeringVectorSet, tmp_path: Path
) -> None:
    with_gate(vectors).save(tmp_path / "vectors")
    shared = push_vectors(tmp_path / "vectors", NAME)
    pulled = pull_vectors(NAME, tmp_path / "pulled")

    assert contents(tmp_path / "pulled") == contents(tmp_path / "vectors")
    assert pulled.metadata == load_vectors(tmp_path / "vectors").metadata
    assert (shared.revision, shared.url) == (hub.repos[NAME].head, f"{hub.url}/{NAME}")


def test_the_repository_holds_the_vectors_the_card_and_nothing_else(hub: Hub, folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    push_vectors(folder, NAME)
    own = {"layer_4.npy", "layer_8.npy", "layer_12.npy", "metadata.json", "README.md"}
    assert hub.repos[NAME].files.keys() == own | {".gitattributes"}
    assert len(hub.repos[NAME].messages) == 2  # its making, and one commit


def test_a_revision_can_be_pinned_by_tag_branch_or_commit(
    hub: Hub, folder: Path, vectors: SteeringVectorSet, tmp_path: Path
) -> None:
    first = push_vectors(folder, NAME).revision
    hub.repos[NAME].refs["v1"] = first
    (vectors * 2.0).save(folder)
    second = push_vectors(folder, NAME).revision
    assert resolve_revision(NAME) == resolve_revision(NAME, "main") == second
    for revision in ("v1", first):
        assert resolve_revision(NAME, revision) == first
        pulled = pull_vectors(NAME, tmp_path / "pulled", revision)
        assert pulled[8].norm == vectors[8].norm
    assert pull_vectors(NAME, tmp_path / "pulled")[8].norm == 2 * vectors[8].norm


def test_pushing_again_removes_layers_that_are_gone_and_the_same_again_changes_nothing(
    hub: Hub, folder: Path, vectors: SteeringVectorSet
) -> None:
    push_vectors(folder, NAME)
    SteeringVectorSet([vectors[4], vectors[12]], vectors.metadata).save(folder)
    second = push_vectors(folder, NAME)
    names = {name for name in hub.repos[NAME].files if name.endswith(".npy")}
    assert names == {"layer_4.npy", "layer_12.npy"}
    assert push_vectors(folder, NAME).revision == second.revision


def test_an_earlier_vectors_folder_is_replaced_and_another_folder_is_kept(
    hub: Hub, folder: Path, vectors: SteeringVectorSet, tmp_path: Path
) -> None:
    push_vectors(folder, NAME)
    SteeringVectorSet([vectors[4]], vectors.metadata).save(tmp_path / "pulled")
    pull_vectors(NAME, tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == contents(folder)

    (tmp_path / "pulled" / "thesis.txt").write_text("mine")
    before = contents(tmp_path / "pulled")
    with pytest.raises(VectorError, match=r"holds 'thesis\.txt', which is not part of a vectors"):
        pull_vectors(NAME, tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == before


def test_private_makes_the_repository_private_and_never_publishes_by_mistake(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_vectors(folder, NAME, private=True)
    assert hub.repos[NAME].private
    assert push_vectors(folder, NAME).revision == hub.repos[NAME].head  # and it stays so
    push_vectors(folder, "ann/public")
    head = hub.repos["ann/public"].head
    with pytest.raises(VectorError, match="ann/public is public already"):
        push_vectors(folder, "ann/public", private=True)
    assert hub.repos["ann/public"].head == head
    log_in(monkeypatch, READER)
    with pytest.raises(VectorError, match=f"no repo {NAME}, or it is private"):
        pull_vectors(NAME, tmp_path / "pulled")


def test_a_repository_with_other_things_is_left_alone(hub: Hub, folder: Path) -> None:
    repo = hub.add(NAME, {"model.safetensors": b"weights", "README.md": b"my model"})
    before = dict(repo.files)
    with pytest.raises(
        VectorError, match=r"holds 'model\.safetensors', which is no part of shared"
    ):
        push_vectors(folder, NAME)
    assert repo.files == before


# --- what cannot be pulled ------------------------------------------------------------------------


def test_a_repository_without_vectors_is_refused_before_anything_is_downloaded(
    hub: Hub, tmp_path: Path
) -> None:
    hub.add(NAME, {"model.safetensors": bytes(1000), "config.json": b"{}"})
    with pytest.raises(VectorError, match=rf"{NAME} holds no vectors: it has no metadata\.json"):
        pull_vectors(NAME, tmp_path / "pulled")
    assert not [request for request in hub.requests if "/resolve/" in request]
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("layer_8.npy", b"\x80\x04pickle", r"layer_8\.npy is not a \.npy file"),
        ("layer_8.npy", None, r"layer_8\.npy is missing"),
        ("metadata.json", b"{}", "key 'format_version' is missing"),
        ("metadata.json", b'{"format_version": 9}', "made by a newer mlx-steer"),
    ],
)
def test_damaged_vectors_leave_what_was_there(
    hub: Hub, folder: Path, tmp_path: Path, name: str, data: bytes | None, message: str
) -> None:
    push_vectors(folder, NAME)
    files = {**hub.repos[NAME].files, name: data}
    hub.repos[NAME].commit({key: value for key, value in files.items() if value is not None})
    before = contents(folder)
    with pytest.raises(VectorError, match=rf"vectors of {NAME}@[0-9a-f]{{12}} are not.*{message}"):
        pull_vectors(NAME, folder)
    assert contents(folder) == before


def test_only_files_of_a_vectors_folder_are_downloaded(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    push_vectors(folder, NAME)
    evil = {"setup.py": b"raise SystemExit", "weights.bin": bytes(10_000)}
    hub.repos[NAME].commit(hub.repos[NAME].files | evil)
    hub.requests.clear()
    pull_vectors(NAME, tmp_path / "pulled")
    fetched = {
        r.rsplit("/", 1)[1] for r in hub.requests if r.startswith("GET") and "/resolve/" in r
    }
    assert fetched == {"layer_4.npy", "layer_8.npy", "layer_12.npy", "metadata.json"}


# --- the hub says no ------------------------------------------------------------------------------


def test_pushing_needs_a_token(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(VectorError, match="wants to know who you are; log in with: hf auth login"):
        push_vectors(folder, NAME)
    log_in(monkeypatch, "hf_expired")
    with pytest.raises(VectorError, match="does not accept the token it was given"):
        push_vectors(folder, NAME)
    log_in(monkeypatch, READER)
    with pytest.raises(VectorError, match=f"may not do this with {NAME}; log in with one that has"):
        push_vectors(folder, NAME)
    assert hub.repos == {}


@pytest.mark.parametrize("name", ["refusal", "org/a/b", "/name", "org/"])
def test_a_name_without_owner_is_refused_without_asking(
    hub: Hub, folder: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(VectorError, match="write it as org/name"):
        push_vectors(folder, name)
    with pytest.raises(VectorError, match="write it as org/name"):
        pull_vectors(name, tmp_path / "pulled")
    assert hub.requests == []


def test_errors_of_the_hub_are_one_sentence(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    push_vectors(folder, NAME)
    with pytest.raises(VectorError, match=f"{NAME} has no revision 'v9'"):
        pull_vectors(NAME, tmp_path / "pulled", "v9")
    with pytest.raises(VectorError, match="not a valid hub id"):
        pull_vectors("org/na me", tmp_path / "pulled")
    hub.failing = 503
    with pytest.raises(VectorError, match=f"answers with error 503 for {NAME}; try again later"):
        pull_vectors(NAME, tmp_path / "pulled")
    hub.failing = None
    hub.broken_downloads = True
    with pytest.raises(VectorError, match="the connection to the hub broke while"):
        pull_vectors(NAME, tmp_path / "pulled")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(VectorError, match="HF_HUB_OFFLINE is set"):
        pull_vectors(NAME, tmp_path / "pulled")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    point_at(monkeypatch, unreachable())
    with pytest.raises(VectorError, match="the hub cannot be reached"):
        push_vectors(folder, NAME)
    assert not (tmp_path / "pulled").exists()


# --- the card -------------------------------------------------------------------------------------


def test_the_card_says_what_how_and_on_which_model(hub: Hub, folder: Path) -> None:
    push_vectors(folder, NAME)
    card = hub.repos[NAME].files["README.md"].decode()
    assert front_matter(card) == {
        "library_name": "mlx-steer",
        "base_model": "tests/tiny",
        "base_model_relation": "adapter",
        "tags": ["activation-steering", "steering-vectors", "mlx-steer", "mlx", "refusal"],
    }
    for fact in ("abc123", "f00d", "1" * 64, "50 of `refusal`", "last response token"):
        assert fact in card
    assert "| 8 | 18.000 | 56.00 | 0.321 |" in card
    assert "**What these vectors do was not measured.**" in card


def test_the_code_in_the_card_names_these_vectors(vectors: SteeringVectorSet) -> None:
    card = model_card(vectors, NAME)
    code = card.split("```python\n")[1].split("```")[0]
    assert f"mlx-steer vectors pull {NAME} vectors/refusal-tiny" in card
    assert 'load_vectors("vectors/refusal-tiny")' in code
    assert 'load_model("tests/tiny", revision="abc123")' in code
    assert "layer=8, strength=1.0" in code
    command = card.split("```sh\n")[2].split("```")[0]
    assert command.startswith("mlx-steer generate --model tests/tiny@abc123 --vectors vectors/")
    assert '--layer 8 --strength 1.0 "Your question?"' in command


@pytest.mark.parametrize(
    ("model", "base", "call"),
    [
        (
            {"id": "org/big (4-bit)"},
            "org/big",
            'load_model("org/big", revision="abc123", quantize=4)',
        ),
        (
            {"id": "org/big + poet"},
            "org/big",
            'load_model("org/big", revision="abc123", adapter=...)',
        ),
        (
            {"id": "smollm2-135m", "revision": None},
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            'load_model("smollm2-135m")',
        ),
        ({"id": "models/mine", "revision": None}, None, 'load_model("models/mine")'),
    ],
)
def test_the_base_model_is_named_only_if_the_hub_knows_it(
    vectors: SteeringVectorSet, model: dict[str, Any], base: str | None, call: str
) -> None:
    card = model_card(with_model(vectors, **model), NAME)
    assert front_matter(card).get("base_model") == base
    assert call in card


def test_the_card_gives_the_measured_effect_with_intervals(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    effect = measured_effect(load_vectors(folder), measured(tmp_path / "run"))
    push_vectors(folder, NAME, evidence=effect)
    card = hub.repos[NAME].files["README.md"].decode()
    assert "| condition | refused, harmful prompts | refused, benign prompts |" in card
    assert (
        "| layer 8, strength 1.0 | 3 of 4: 75 % [30, 95] | 1 of 4: 25 % [5, 70] "
        "| 0 of 12: 0 % [0, 24] | 1.000 |"
    ) in card
    assert "| harmful refused | 25 % → 75 %, +50 points (" in card
    assert "beats 2 of 3 random directions" in card
    assert "No cell of the sweep met the limits" not in card
    assert "The figures are of one run" in card
    assert "random 0" not in card


def test_the_card_opens_with_the_answer(vectors: SteeringVectorSet, tmp_path: Path) -> None:
    card = model_card(vectors, NAME, measured_effect(vectors, measured(tmp_path / "run")))
    assert card.split("\n\n")[2].startswith(
        "**Steering does harm. At layer 8, strength 1.0 (relative dose 0.32), harmful refused goes "
        "from 25 % to 75 % (n = 4, p = "
    )


def test_evidence_travels_with_the_vectors(
    hub: Hub, folder: Path, vectors: SteeringVectorSet, tmp_path: Path
) -> None:
    push_vectors(folder, NAME, evidence=measured_effect(vectors, measured(tmp_path / "run")))
    pull_vectors(NAME, tmp_path / "pulled")
    pulled = load_vectors(tmp_path / "pulled")
    evidence = evidence_in(tmp_path / "pulled", pulled)
    assert evidence == measured_effect(vectors, tmp_path / "run")
    # And on from there, without the run; and is gone once the vectors are others.
    push_vectors(tmp_path / "pulled", "ann/again")
    assert "goes from 25 % to 75 %" in hub.repos["ann/again"].files["README.md"].decode()
    (pulled * 2.0).save(tmp_path / "pulled")
    assert evidence_in(tmp_path / "pulled", pulled) is None
    push_vectors(tmp_path / "pulled", "ann/again")
    assert CARD_FILE not in hub.repos["ann/again"].files


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"{}", "key 'run' is missing"),
        (b"other", "layer 8 differs"),
        (b"escape", "key 'answer'"),
    ],
)
def test_damaged_or_borrowed_evidence_is_refused(
    folder: Path, vectors: SteeringVectorSet, tmp_path: Path, data: bytes, message: str
) -> None:
    evidence = measured_effect(vectors, measured(tmp_path / "run"))
    if data == b"other":
        layers = {**evidence.vectors, "layer_8.npy": "0" * 64}
        data = evidence.model_copy(update={"vectors": layers}).as_bytes()
    elif data == b"escape":
        data = evidence.model_copy(update={"answer": "\x1b[2J"}).as_bytes()
    (folder / CARD_FILE).write_bytes(data)
    with pytest.raises(VectorError, match=message):
        evidence_in(folder, load_vectors(folder))


def test_the_card_says_when_no_cell_met_the_limits(
    vectors: SteeringVectorSet, tmp_path: Path
) -> None:
    run = measured(tmp_path / "run", met_limits=False)
    card = model_card(vectors, NAME, measured_effect(vectors, run))
    assert "No cell of the sweep met the limits" in card


def test_a_run_of_other_vectors_is_no_evidence_for_these(
    vectors: SteeringVectorSet, tmp_path: Path
) -> None:
    run = measured(tmp_path / "run")
    changed = [SteeringVector(8, vectors[8].array * 1.01, vectors[8].hidden_norm), vectors[4]]
    other = [
        SteeringVectorSet(changed, vectors.metadata),
        SteeringVectorSet([SteeringVector(5, vectors[4].array, 1.0)], vectors.metadata),
        with_model(vectors, fingerprint="beef"),
    ]
    for one in other:
        with pytest.raises(VectorError, match="was not measured with these vectors"):
            measured_effect(one, run)
    part = SteeringVectorSet([vectors[8]], vectors.metadata)
    assert "3 of 4" in model_card(part, NAME, measured_effect(part, run))


def test_a_run_without_a_report_says_how_to_make_one(
    vectors: SteeringVectorSet, tmp_path: Path
) -> None:
    run = small_run(tmp_path / "run").write(CHOICE)
    with pytest.raises(RunError, match=r"metrics\.json is missing; write it with: mlx-steer rep"):
        measured_effect(vectors, run)
    for text in ("{", "{}", "[]"):
        (run / "metrics.json").write_text(text)
        with pytest.raises(RunError, match="mlx-steer report"):
            measured_effect(vectors, run)


def test_nothing_in_the_metadata_can_begin_a_new_block_or_cell(vectors: SteeringVectorSet) -> None:
    odd = "x | y\n\n# Heading\n---\nlicense: mit"
    # model_copy does not validate: the card must hold even if such text came through.
    model = vectors.metadata.model.model_copy(
        update={"id": odd, "quantization": {"bits": odd}, "fingerprint": odd}
    )
    changes = {"behavior": odd, "method": odd, "model": model}
    card = model_card(
        SteeringVectorSet(vectors.vectors, vectors.metadata.model_copy(update=changes)), NAME
    )
    assert "license" not in front_matter(card)
    assert "\n# Heading" not in card
    rows = [line for line in card.splitlines() if line.startswith("| behavior")]
    assert rows == ["| behavior | x \\| y # Heading --- license: mit |"]


def test_a_model_folder_of_this_machine_is_pointed_out(
    hub: Hub, vectors: SteeringVectorSet, tmp_path: Path
) -> None:
    with_model(vectors, id="/home/ann/model", revision=None).save(tmp_path / "vectors")
    notes = push_vectors(tmp_path / "vectors", NAME).notes
    assert "a folder of this machine" in notes[0]
