"""The run directory of an experiment that several ranks carry out.

All ranks carry out the same experiment in step. Rank 0 keeps the run; the others begin with a copy
of it, so that all find the same rows finished, and drop it when they end.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from mlx_steer.behaviors.two_sentences import behavior_of
from mlx_steer.conditions import digest
from mlx_steer.config import ExperimentConfig
from mlx_steer.run.directory import RunDirectory
from mlx_steer.run.records import prompt_json
from mlx_steer.team import Team
from mlx_steer.vectors import load_vectors


@contextmanager
def run_in_step(
    config: ExperimentConfig, out: Path, team: Team, *, fresh: bool = False
) -> Iterator[RunDirectory]:
    """Make or continue a run that all ranks of a team carry out together.

    Args:
        config: The experiment, as this rank has read it.
        out: The directory, on rank 0.
        team: The ranks.
        fresh: See `RunDirectory.open`.

    Raises:
        TeamError: If another rank has read something else.
        RunError: See `RunDirectory.open`.
    """
    team.agree(_read_by_every_rank(config))
    together = None if config.model.shard is None else _together(team)
    if team.rank == 0:
        with RunDirectory.open(out, fresh=fresh) as run:
            team.told(packed(run.folder, _continued_from(run.folder)))
            run.before_write = together
            yield run
        return
    with TemporaryDirectory() as beside:
        folder = Path(beside) / out.name
        unpack(team.told(), folder)
        with RunDirectory.open(folder) as run:
            run.before_write = together
            yield run


def _together(team: Team) -> Callable[[str, bytes], None]:
    """Lets ranks of one model write only together: what it gives once one is gone is no error."""

    def check(name: str, data: bytes) -> None:
        # Of rows the tokens; times and another chip's last digits stand in everything else.
        lines = map(json.loads, data.splitlines()) if name == "rows.jsonl" else ()
        team.agree({f"{name} to write": digest([(x["key"], x["tokens"]) for x in lines])})

    return check


def _read_by_every_rank(config: ExperimentConfig) -> dict[str, object]:
    vectors = config.extract.vectors
    layers = {} if vectors is None else load_vectors(vectors).metadata.layers
    behavior = behavior_of(config.behavior)
    words = [behavior.judge, dict(behavior.system_prompts), dict(behavior.openings)]
    prompts = [prompt_json(item) for item in behavior.prompts]
    return {
        "experiment": digest(config.to_yaml()),
        "behavior": digest([behavior.sha256, words, prompts]),
        "vectors folder": digest({str(k): v.sha256 for k, v in layers.items()}),
    }


def _continued_from(folder: Path) -> list[str]:
    """What a run is continued from; its report is written anew."""
    derived = (".html", ".md", ".part", "plots", ".lock")
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(derived))


def packed(folder: Path, names: Iterable[str]) -> bytes:
    """Files and folders of a run, to be sent to other ranks."""
    into = io.BytesIO()
    with zipfile.ZipFile(into, "w", zipfile.ZIP_DEFLATED) as files:
        for name in names:
            for path in (folder / name, *sorted((folder / name).rglob("*"))):
                if path.is_file():
                    files.write(path, path.relative_to(folder))
    return into.getvalue()


def unpack(data: bytes, folder: Path) -> None:
    """Write what `packed` gave into a rank's copy of the run."""
    with zipfile.ZipFile(io.BytesIO(data)) as files:
        files.extractall(folder)
