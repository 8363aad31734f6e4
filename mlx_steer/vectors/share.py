"""Sharing vectors on the Hugging Face hub: a folder, its evidence and a model card, as one commit.

What is pushed is what `load_vectors` has checked, and what is pulled is checked before it gets its
place. Repositories that hold anything else are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mlx_steer.errors import SteerError, VectorError
from mlx_steer.hub_errors import hub_problem
from mlx_steer.vectors.evidence import CARD_FILE, Evidence, evidence_in
from mlx_steer.vectors.folder import README_FILE
from mlx_steer.vectors.metadata import METADATA_FILE, PAIRS_FILE
from mlx_steer.vectors.model_card import model_card
from mlx_steer.vectors.vector_set import SteeringVectorSet, load_vectors

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_PATTERNS = ["layer_*.npy", "gate_*.npy", METADATA_FILE, CARD_FILE, PAIRS_FILE]
_OWN = re.compile(r"(layer_\d+|gate_[\w-]+)\.npy|(metadata|card)\.json|pairs\.jsonl")
_HARMLESS = re.compile(r"README\.md|LICENSE(\.\w+)?|\.git(attributes|ignore)")


@dataclass(frozen=True)
class Shared:
    """Vectors on the hub: the repository, the commit's hash, its page, and what was noticed."""

    repo: str
    revision: str
    url: str
    notes: tuple[str, ...] = ()


def push_vectors(
    folder: Path, repo: str, *, evidence: Evidence | None = None, private: bool = False
) -> Shared:
    """Put a vectors folder on the hub with a model card, in one commit.

    The repository is made if there is none. Layers it holds and the folder does not are removed.

    Args:
        folder: A vectors folder.
        repo: `org/name`.
        evidence: What a run measured with these vectors; by default the folder's own `card.json`,
            if it has one.
        private: Make the repository private, or insist that it is.

    Raises:
        VectorError: If the folder is no vectors folder, the run is of other vectors, the repository
            holds something else, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    vectors = load_vectors(folder)
    evidence = evidence or evidence_in(folder, vectors)
    card = model_card(vectors, _checked(repo), evidence)
    own = vectors.metadata
    with _told(repo), TemporaryDirectory() as scratch:
        api = HfApi()
        api.whoami()  # without a token nothing but a riddle would come back later
        held, head = _held(api, repo, private)
        part = Path(scratch) / "vectors"
        vectors.save(part, {CARD_FILE: evidence.as_bytes()} if evidence is not None else None)
        names = sorted(path.name for path in part.iterdir())
        commit = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, part / name) for name in names),
                CommitOperationAdd(README_FILE, card.encode()),
                *(
                    CommitOperationDelete(name)
                    for name in held
                    if _OWN.fullmatch(name) and name not in names
                ),
            ],
            commit_message=f"Add {own.behavior} vectors of {own.model.id}"[:200],
            parent_commit=head,
        )
        url = f"{api.endpoint}/{repo}"
    notes = []
    if Path(own.model.id).is_absolute() or own.model.id.startswith((".", "~")):
        notes.append(
            f"the vectors call their model {own.model.id}, a folder of this machine; others will "
            "not know which model that is"
        )
    return Shared(repo, commit.oid, url, tuple(notes))


def resolve_revision(repo: str, revision: str | None = None) -> str:
    """The commit a branch, a tag or nothing stands for at the moment.

    Raises:
        VectorError: If the hub has no such repository or revision, or it holds no vectors.
    """
    from huggingface_hub import HfApi

    with _told(_checked(repo), revision):
        info = HfApi().model_info(repo, revision=revision)
    files = {sibling.rfilename for sibling in info.siblings or ()}
    if METADATA_FILE not in files:
        raise VectorError(
            f"{repo} holds no vectors: it has no {METADATA_FILE}; give a repository made with "
            "`mlx-steer vectors push`"
        )
    return str(info.sha)


def pull_vectors(repo: str, folder: str | Path, revision: str | None = None) -> SteeringVectorSet:
    """Fetch vectors from the hub into a vectors folder, which is complete and checked or absent.

    Args:
        repo: `org/name`.
        folder: Where to put them; an earlier vectors folder there is replaced.
        revision: A branch, tag or commit; the newest of the main branch by default.

    Raises:
        VectorError: If the hub has no such vectors, they are damaged, or `folder` holds other
            things.
    """
    from huggingface_hub import snapshot_download

    commit = resolve_revision(repo, revision)
    with TemporaryDirectory() as scratch:
        with _told(repo, revision):
            snapshot_download(repo, revision=commit, local_dir=scratch, allow_patterns=_PATTERNS)
        try:
            vectors = load_vectors(scratch)
            evidence = evidence_in(Path(scratch), vectors)
        except VectorError as error:
            place = f"{repo}@{commit[:12]}"
            raise VectorError(
                f"the vectors of {place} are not used: {str(error).replace(scratch, place)}"
            ) from error
    vectors.save(folder, {CARD_FILE: evidence.as_bytes()} if evidence is not None else None)
    return vectors


def _checked(repo: str) -> str:
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise VectorError(f"{repo!r} is no repository's name; write it as org/name")
    return repo


def _held(api: HfApi, repo: str, private: bool) -> tuple[list[str], str | None]:
    """The files and the newest commit of the repository, which is made if there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private)
        return [], None
    if private and not info.private:
        raise VectorError(f"{repo} is public already; make it private on its page, or rename")
    files = [sibling.rfilename for sibling in info.siblings or ()]
    foreign = [name for name in files if not _OWN.fullmatch(name) and not _HARMLESS.fullmatch(name)]
    if foreign:
        raise VectorError(
            f"{repo} holds {foreign[0]!r}, which is no part of shared vectors; choose another name"
        )
    return files, info.sha


@contextmanager
def _told(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turns whatever the hub's client raises into one sentence."""
    try:
        yield
    except SteerError:
        raise
    except Exception as error:
        raise VectorError(hub_problem(error, repo, revision)) from error
