"""Parts of a run, made apart and merged, are the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlx_steer.config import ExperimentConfig
from mlx_steer.errors import RunError
from mlx_steer.experiment.counts import StageCount
from mlx_steer.experiment.part import Part
from mlx_steer.experiment.part_rounds import Round, rounds_of
from mlx_steer.run.directory import RunDirectory
from mlx_steer.run.merge import Taken, take_rows
from mlx_steer.run.reader import load_run
from tests.experiment.test_screened_sweep import OPENINGS
from tests.helpers.behaviors import behavior_folder
from tests.helpers.command import Run
from tests.helpers.small_run import carry_out, config, left_behind, settings
from tests.helpers.tiny import tiny_folder

CHANGES: dict[str, Any] = {
    "gate": {"layers": [3], "methods": ["mean_difference"]},
    "generation": {"max_tokens": 3, "batch_size": 16},
    "sweep": {"strengths": [1.0], "system_prompts": ["detailed"]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, `behavior`, `config.yaml` and the undisturbed run `whole`."""
    folder = tmp_path_factory.mktemp("parts")
    model = tiny_folder("llama", folder / "model")
    behavior = behavior_folder(folder / "behavior", prompts=2, gate=True, openings=OPENINGS)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings(model, behavior, **CHANGES)))
    carry_out(experiment(folder), folder / "whole")
    return folder


def experiment(folder: Path, **changes: Any) -> ExperimentConfig:
    return config(folder / "model", folder / "behavior", **{**CHANGES, **changes})


def merged(run: Path, parts: list[Path]) -> list[Taken]:
    with RunDirectory.open(run) as directory:
        return [take_rows(directory, part) for part in parts]


@pytest.mark.slow
def test_parts_made_by_commands_are_the_run(folder: Path, tmp_path: Path, run: Run) -> None:
    whole, out = load_run(folder / "whole"), tmp_path / "run"
    parts = [tmp_path / f"run.part-{k}-of-3" for k in (1, 2, 3)]
    for _ in range(2):
        for k, part in enumerate(parts, 1):
            done = run("run", folder / "config.yaml", "--out", out, "--part", f"{k}/3", "-q")
            assert done.code == 0, done.err
            assert done.out.strip() == str(part)
        sizes = [len(load_run(part).rows) for part in parts]
        done = run("merge", out, *parts)
        assert done.code == 0, done.err
        assert f"{out}: no row is missing" in done.out
    assert max(sizes) - min(sizes) <= len(whole.rows) / 2
    assert load_run(out).rows.keys() == whole.rows.keys()
    done = run("run", folder / "config.yaml", "--out", out)
    assert done.code == 0
    assert f"sweep: {len(whole.rows)} rows" not in done.err
    alike(out, folder / "whole")


def alike(run: Path, whole: Path) -> None:
    found, wanted = left_behind(run), left_behind(whole)
    for name, content in wanted.items():
        assert found[name] == content, name


def in_rounds(asked: ExperimentConfig, folder: Path, count: int, rounds: int) -> Path:
    """A run made in parts, each beginning with what the run holds, and finished by itself."""
    run = folder / "run"
    parts = [folder / f"part {k}" for k in range(1, count + 1)]
    for done in range(rounds):
        for k, part in enumerate(parts, 1):
            if done:
                merged(part, [run])
            told = carry_out(asked, part, part=Part(k, count))
        merged(run, parts)
    assert told.told[-1].startswith(f"Part {count}/{count} is made.")
    carry_out(asked, run)
    return run


def test_parts_made_in_two_rounds_are_the_run(folder: Path, tmp_path: Path) -> None:
    alike(in_rounds(experiment(folder), tmp_path, 3, 2), folder / "whole")


def test_a_part_stops_where_the_others_are_needed(folder: Path, tmp_path: Path) -> None:
    told = carry_out(experiment(folder), tmp_path / "a", part=Part(1, 2))
    assert [name for name, _, _ in told.stages] == ["sweep"]
    assert told.told[-1].startswith("Part 1/2 of sweep is made.")
    # Once they are there it goes on, and scores nothing.
    carry_out(experiment(folder), tmp_path / "b", part=Part(2, 2))
    merged(tmp_path / "a", [tmp_path / "b"])
    told = carry_out(experiment(folder), tmp_path / "a", part=Part(1, 2))
    assert [name for name, _, _ in told.stages] == ["sweep", "compare", "controls"]
    assert told.told[-1].startswith("Part 1/2 is made.")
    assert not (tmp_path / "a" / "scores.jsonl").exists()


@pytest.mark.slow
def test_a_race_goes_on_round_by_round(folder: Path, tmp_path: Path) -> None:
    race = {"strategy": "race", "race": {"cells": 2, "rounds": 2, "screened_prompts": 1}}
    sweep = {**CHANGES["sweep"], "strengths": [0.5, 1.0], **race}
    raced = experiment(folder, sweep=sweep)
    carry_out(raced, tmp_path / "whole")
    # Base's answers, on which gated cells are priced; the race's two rounds; the comparison.
    alike(in_rounds(raced, tmp_path, 2, 4), tmp_path / "whole")


@pytest.mark.slow
def test_doses_that_limits_allow_are_found_from_rows_of_all_parts(
    folder: Path, tmp_path: Path
) -> None:
    """Gated doses are priced on base's responses, which are a round of their own."""
    asked = experiment(folder, sweep={**CHANGES["sweep"], "strengths": "auto"})
    carry_out(asked, tmp_path / "whole")
    alike(in_rounds(asked, tmp_path, 2, 3), tmp_path / "whole")
    assert "doses.json" in left_behind(tmp_path / "run")


def test_merging_twice_takes_nothing_twice(folder: Path, tmp_path: Path) -> None:
    rows = len(load_run(folder / "whole").rows)
    assert merged(tmp_path / "run", [folder / "whole"] * 2) == [
        Taken(rows, 0, 0),
        Taken(0, rows, 0),
    ]
    assert left_behind(tmp_path / "run") == {
        name: content
        for name, content in left_behind(folder / "whole").items()
        if name not in ("choice.json", "gate.json")
    }


def test_the_first_of_two_unlike_rows_stays(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder / "whole", tmp_path / "other"))
    first, *rest = (other / "rows.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(first)
    row["tokens"][0] += 1
    (other / "rows.jsonl").write_text(json.dumps(row) + "\n" + "".join(rest))
    run = Path(shutil.copytree(folder / "whole", tmp_path / "run"))
    before = (run / "rows.jsonl").read_bytes()
    assert merged(run, [other])[0].unlike == 1
    assert (run / "rows.jsonl").read_bytes() == before


def _other_version(part: Path) -> None:
    manifest = json.loads((part / "manifest.json").read_text())
    (part / "manifest.json").write_text(json.dumps({**manifest, "mlx": "0.1"}))


def _other_model(part: Path) -> None:
    manifest = json.loads((part / "manifest.json").read_text())
    manifest["model"]["fingerprint"] = "f" * 64
    (part / "manifest.json").write_text(json.dumps(manifest))


def _other_experiment(part: Path) -> None:
    text = (part / "config.yaml").read_text()
    (part / "config.yaml").write_text(text.replace("max_tokens: 3", "max_tokens: 4"))


def _other_prompts(part: Path) -> None:
    text = (part / "prompts.jsonl").read_text()
    (part / "prompts.jsonl").write_text(text.replace("Steal", "Take", 1))


def _other_vectors(part: Path) -> None:
    made = json.loads((part / ".extracted.json").read_text())
    made["vectors"][1] = "0" * 64
    (part / ".extracted.json").write_text(json.dumps(made))


def _no_run(part: Path) -> None:
    shutil.rmtree(part)
    part.mkdir()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_other_version, r"of another version of mlx than .* \(0\.1, not "),
        (_other_model, "of another model than"),
        (_other_experiment, "of another experiment than"),
        (_other_prompts, r"of another prompts\.jsonl than"),
        (_other_vectors, "has other vectors than .*: its machine rounds otherwise"),
        (_no_run, "is no run directory"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_part_of_something_else_is_refused_and_nothing_taken(
    folder: Path, tmp_path: Path, change: Any, said: str
) -> None:
    part = Path(shutil.copytree(folder / "whole", tmp_path / "part"))
    change(part)
    run = Path(shutil.copytree(folder / "whole", tmp_path / "run"))
    before = left_behind(run)
    with pytest.raises(RunError, match=said):
        merged(run, [part])
    assert left_behind(run) == before


def test_a_batch_size_of_its_own_is_no_difference(folder: Path, tmp_path: Path) -> None:
    part = Path(shutil.copytree(folder / "whole", tmp_path / "part"))
    text = (part / "config.yaml").read_text()
    (part / "config.yaml").write_text(text.replace("batch_size: 16", "batch_size: 3"))
    assert merged(Path(shutil.copytree(folder / "whole", tmp_path / "run")), [part])[0].rows == 0


def test_a_part_that_was_killed_while_it_loaded_has_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "run.log").write_text("opened\n")
    assert merged(tmp_path / "run", [tmp_path / "part"]) == [Taken(0, 0, 0)]


def test_a_plan_says_what_each_part_does(folder: Path, run: Run) -> None:
    done = run("plan", folder / "config.yaml", "--parts", 3, "--json")
    plan = json.loads(done.out)
    rows = {stage["name"]: stage["rows"] for stage in plan["stages"] if stage["decoded"]}
    first, second = plan["rounds"]
    assert first["stages"] == ["gate", "extract", "sweep"]
    assert first["rows"] == -(-rows.pop("sweep") // 3)
    assert second["stages"] == ["gate", *rows]
    assert second["rows"] == sum(-(-count // 3) for count in rows.values())
    shown = run("plan", folder / "config.yaml", "--parts", 3)
    assert "Each of 3 parts, at most" in shown.out
    assert not json.loads(run("plan", folder / "config.yaml", "--json").out)["rounds"]


def test_what_is_only_read_takes_each_part_as_long_as_the_whole() -> None:
    counts = [
        StageCount(name, 4, rows, 9, 90, 90.0, decoded=decoded)
        for name, rows, decoded in [
            ("extract", 4, 0), ("gate", 4, 0), ("screen", 8, 0), ("sweep", 7, 70),
            ("compare", 10, 99), ("score", 10, 0),
        ]
    ]  # fmt: skip
    seconds = {"extract": 3.0, "gate": 1.0, "screen": 2.0, "sweep": 12.0, "compare": 30.0}
    assert rounds_of(counts, {"sweep"}, {**seconds, "score": 9.0}, 3) == (
        Round(("gate", "extract", "screen", "sweep"), 3, 10.0),
        Round(("gate", "compare"), 4, 11.0),
    )


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("units", [0, 1, 5, 40])
def test_parts_are_alike_and_leave_nothing_out(count: int, units: int) -> None:
    parts = [Part(n, count).of(range(units)) for n in range(1, count + 1)]
    assert [unit for part in parts for unit in part] == list(range(units))
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("text", ["0/8", "9/8", "3", "3/", "/8", "a/b", "-1/8", "1/20000", "³/8"])
def test_what_is_no_part_is_refused(run: Run, text: str) -> None:
    done = run("run", "config.yaml", "--part", text)
    assert done.code == 2
    assert "part" in done.err and "Traceback" not in done.err
