"""`mlx-steer extract`, and what sweeps and comparisons take over from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlx_steer.cli import cli
from mlx_steer.config import ExtractConfig, load_config
from mlx_steer.extraction.directions import METHODS
from mlx_steer.extraction.pairs import extract, pair_states
from mlx_steer.model.load import load_model
from mlx_steer.vectors import load_vectors
from tests.helpers.behaviors import behavior_folder
from tests.helpers.command import Run
from tests.helpers.tiny import tiny_folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extract")
    tiny_folder("llama", folder / "model")
    behavior_folder(folder / "behavior")
    return folder


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("position", ["last", "mean"])
def test_vectors_are_made_as_asked_for_and_the_table_gives_their_held_out_auc(
    shared: Path, tmp_path: Path, run: Run, method: str, position: str
) -> None:
    asked = ["--model", shared / "model", "--behavior", shared / "behavior", "--layers", "1,3"]
    how = ["--method", method, "--token-position", position]
    result = run("extract", *asked, *how, "--out", tmp_path / "v")
    assert result.code == 0, result.err
    model, behavior = load_model(str(shared / "model")), str(shared / "behavior")
    expected = extract(model, behavior, [1, 3], token_position=position, method=method)  # type: ignore
    found = load_vectors(tmp_path / "v")
    assert found.metadata == expected.metadata
    for layer, vector in expected.items():
        assert (found[layer].array == vector.array).all()
    states = pair_states(model, behavior, [1, 3], token_position=position)  # type: ignore
    separation = states.separation(method)  # type: ignore
    rows = [re.findall(r"[\d.]+", line) for line in result.out.splitlines() if "│" in line]
    assert {int(row[0]): row[-1] for row in rows} == {
        layer: f"{value:.3f}" for layer, value in separation.items()
    }


def test_without_a_word_the_defaults_are_those_of_configs(
    shared: Path, tmp_path: Path, run: Run
) -> None:
    asked = ["--model", shared / "model", "--behavior", shared / "behavior", "--layers", "1"]
    assert run("extract", *asked, "--out", tmp_path / "v", "--quiet").out == f"{tmp_path / 'v'}\n"
    found = load_vectors(tmp_path / "v").metadata
    assert (found.token_position, found.method) == (
        ExtractConfig().token_position,
        ExtractConfig().method,
    )


@pytest.mark.parametrize("command", ["extract", "sweep", "compare"])
def test_help_names_every_method_with_its_source_and_the_defaults(command: str) -> None:
    text = " ".join(CliRunner().invoke(cli, [command, "--help"]).output.split())
    for name in METHODS:
        assert name in text
    for source in ("Rimsky et al. 2024", "Ledoit and Wolf 2004", "Li et al.", "Zou et al. 2023"):
        assert source in text
    assert f"[default: {ExtractConfig().method}]" in text
    assert f"[default: {ExtractConfig().token_position}]" in text


def test_a_sweep_extracts_by_the_method_it_is_told(shared: Path, tmp_path: Path, run: Run) -> None:
    asked = ["--model", shared / "model", "--behavior", shared / "behavior", "--layers", "2"]
    how = ["--method", "pca", "--token-position", "mean", "--strengths", "1", "--max-tokens", 1]
    result = run("sweep", *asked, *how, "--prompts-per-set", 1, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    section = load_config(tmp_path / "run" / "config.yaml").extract
    assert (section.method, section.token_position) == ("pca", "mean")
    assert load_vectors(tmp_path / "run" / "vectors").metadata.method == "pca"


def test_every_command_says_in_one_short_line_what_it_does() -> None:
    """Click cuts longer ones off with dots."""
    for group in ([], ["vectors"], ["gate"], ["behaviors"]):
        text = CliRunner().invoke(cli, [*group, "--help"]).output
        commands = text.partition("Commands:")[2].strip().splitlines()
        assert commands and not [line for line in commands if line.endswith("...")]
