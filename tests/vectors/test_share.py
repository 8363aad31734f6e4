from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from mlx_steer.conditions import Gate
from mlx_steer.errors import VectorError
from mlx_steer.vectors import GateInfo, SteeringVectorSet, load_vectors
from mlx_steer.vectors.share import pull_vectors, push_vectors, resolve_revision
from tests.helpers.hub_stand_in import (
    READER,
    Hub,
    log_in,
    point_at,
    unreachable,
)
from tests.vectors.conftest import NAME


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


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
