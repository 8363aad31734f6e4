from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from huggingface_hub import constants

from mlx_steer.errors import ModelError
from mlx_steer.model import Model, load_model
from tests.hub_stand_in import READER, WRITER, Hub, log_in, point_at, running_hub, unreachable
from tests.tiny import tiny_folder, tiny_model

NAME = "org/tiny-instruct"
IDS = mx.array([[1, 40, 80, 120, 7, 200]])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tiny_folder("llama", tmp_path_factory.mktemp("tiny"))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**files, "modeling_evil.py": b"raise SystemExit", "pytorch_model.bin": b"\x80pickle"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running_hub(monkeypatch, tmp_path) as running:
        yield running


def logits_of(model: Model) -> mx.array:
    return model.network(IDS)


def test_a_model_is_loaded_by_its_id_and_the_record_holds_the_commit(
    hub: Hub, files: dict[str, bytes]
) -> None:
    repo = hub.add(NAME, files)
    model = load_model(NAME)
    assert (model.info.id, model.info.revision) == (NAME, repo.head)
    assert mx.array_equal(logits_of(model), logits_of(tiny_model("llama"))).item()


def test_only_weights_and_texts_are_downloaded_and_nothing_that_can_run(
    hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.add(NAME, files)
    load_model(NAME)
    found = {path.name for path in (tmp_path / "hub").rglob("*") if path.is_file()}
    assert "model.safetensors" in found
    assert not {"modeling_evil.py", "pytorch_model.bin"} & found


def test_a_revision_in_the_name_chooses_the_commit(hub: Hub, files: dict[str, bytes]) -> None:
    repo = hub.add(NAME, files)
    repo.refs["v1"] = first = repo.head
    repo.commit({**files, "extra.txt": b"later"}, "later")
    assert load_model(f"{NAME}@v1").info.revision == first
    assert load_model(NAME, revision=first).info.revision == first
    assert load_model(NAME).info.revision == repo.head != first


@pytest.mark.parametrize("name", [NAME, f"{NAME}@v1"])
@pytest.mark.parametrize("how", ["no server", "HF_HUB_OFFLINE"])
def test_a_model_loaded_once_is_found_without_the_hub(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    repo = hub.add(NAME, files)
    repo.refs["v1"] = repo.head
    online = load_model(name)
    if how == "no server":
        point_at(monkeypatch, unreachable())
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)

    offline = load_model(name)

    assert len(hub.requests) == asked
    assert offline.info == online.info
    assert mx.array_equal(logits_of(offline), logits_of(online)).item()


def test_a_model_that_is_nowhere_is_said_to_be_out_of_reach(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_at(monkeypatch, unreachable())
    with pytest.raises(ModelError, match=f"{NAME}@v1 is not in the local cache and the hub cannot"):
        load_model(f"{NAME}@v1")


def test_a_name_the_hub_does_not_know(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for token in (None, READER):
        if token:
            log_in(monkeypatch, token)
        with pytest.raises(ModelError, match=f"the hub has no model {NAME}, or it is private"):
            load_model(NAME)


def test_a_private_model_is_for_those_with_a_token(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, files, private=True)
    with pytest.raises(ModelError, match="it is private; check the name, or log in with: hf auth"):
        load_model(NAME)
    log_in(monkeypatch, WRITER)
    assert load_model(NAME).info.id == NAME


def test_a_gated_model_says_where_to_accept_its_terms(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, files, gated=True)
    for token in (None, READER):  # 401 and 403
        if token:
            log_in(monkeypatch, token)
        with pytest.raises(ModelError, match=rf"{NAME} is gated: accept its terms on https://\S+"):
            load_model(NAME)
    log_in(monkeypatch, WRITER)
    assert load_model(NAME).info.id == NAME


@pytest.mark.parametrize("revision", ["v9", "0" * 40])
def test_a_revision_the_repo_does_not_have(
    hub: Hub, files: dict[str, bytes], revision: str
) -> None:
    hub.add(NAME, files)
    with pytest.raises(ModelError, match=f"{NAME} has no revision '{revision}'; leave it out"):
        load_model(NAME, revision=revision)


def test_a_token_the_hub_does_not_accept(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, files)
    log_in(monkeypatch, "hf_expired")
    with pytest.raises(ModelError, match="does not accept the token it was given; log in with"):
        load_model(NAME)


def test_a_repo_without_safetensors_is_named_and_not_called_an_incomplete_download(
    hub: Hub, files: dict[str, bytes]
) -> None:
    kept = {name: data for name, data in files.items() if name != "model.safetensors"}
    hub.add(NAME, kept)
    with pytest.raises(ModelError, match=rf"{NAME} holds no weights in model\*\.safetensors"):
        load_model(NAME)


def test_a_download_that_breaks_off_is_one_sentence_and_can_be_continued(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, files)
    hub.broken_downloads = True
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(ModelError, match=r"the connection to the hub broke while .*; run it again"):
        load_model(NAME)
    hub.broken_downloads = False
    assert load_model(NAME).info.id == NAME


@pytest.mark.parametrize("name", ["org/na me", "org/--", "org/a..b"])
def test_an_impossible_id_is_called_so(hub: Hub, name: str) -> None:
    with pytest.raises(ModelError, match="is not a valid hub id"):
        load_model(name)
    assert hub.requests == []
