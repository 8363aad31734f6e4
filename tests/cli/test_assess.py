"""assess on a tiny model: runs, a table, a page and cards; what fails costs the others nothing."""

import json
from pathlib import Path

import pytest

from mlx_steer.config import load_config
from mlx_steer.experiment.assess import assessment
from mlx_steer.vectors import load_vectors
from mlx_steer.vectors.evidence import evidence_in
from tests.experiment.test_screened_sweep import OPENINGS
from tests.helpers.behaviors import behavior_folder
from tests.helpers.command import Run
from tests.helpers.tiny import tiny_folder


def test_each_behavior_gets_a_run_and_all_of_them_a_table_and_a_page(
    tmp_path: Path, run: Run
) -> None:
    model = tiny_folder("llama", tmp_path / "model")
    behavior_folder(tmp_path / "good", prompts=4, gate=True, openings=OPENINGS)
    behavior_folder(tmp_path / "bad", prompts=1, name="unscreened", title="Unscreened")
    asked = ["assess", "--model", model, "--out", tmp_path / "out", "--max-tokens", "3"]
    asked += ["--layers", "2,3", "--behavior", tmp_path / "good", "--behavior", tmp_path / "bad"]
    found = run(*asked, "--quiet")
    assert found.code == 0, found.err
    assert "unscreened" in found.err and "openings" in found.err
    assert found.out.splitlines()[-1] == str(tmp_path / "out" / "assess.html")
    folder = tmp_path / "out" / "caution"
    config = load_config(folder / "config.yaml")
    assert (config.sweep.strategy, config.sweep.strengths) == ("race", "auto")
    assert config.gate is not None and config.extract.layers == (2, 3)
    answer = json.loads((folder / "metrics.json").read_text())["answer"]
    evidence = evidence_in(folder / "vectors", load_vectors(folder / "vectors"))
    assert evidence is not None and evidence.verdict == answer["verdict"]
    for page in ("assess.md", "assess.html"):
        text = (tmp_path / "out" / page).read_text().replace("\\", "")
        assert "Caution" in text and "Unscreened" in text and "No answer" in text
        assert evidence.answer.split(".")[0] in text
    assert "data:image/png;base64," in (tmp_path / "out" / "assess.html").read_text()
    again = run(*asked, "--quiet")
    assert again.code == 0 and json.loads((folder / "metrics.json").read_text())["answer"] == answer


def test_a_wrong_name_is_found_before_anything_is_run(tmp_path: Path, run: Run) -> None:
    model = tiny_folder("llama", tmp_path / "model")
    asked = ["assess", "--model", model, "--out", tmp_path / "out"]
    found = run(*asked, "--behavior", "refusal", "--behavior", "nothing")
    assert found.code == 2 and "nothing" in found.err
    behavior_folder(tmp_path / "a")
    behavior_folder(tmp_path / "b")
    found = run(*asked, "--behavior", tmp_path / "a", "--behavior", tmp_path / "b")
    assert found.code == 2 and "two behaviors are called" in found.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("behavior", ["refusal", "tool_restraint"])
def test_layers_are_the_middle_half_and_a_gate_is_fitted_where_there_are_prompts(
    behavior: str,
) -> None:
    config = assessment({"name": "smollm2-135m"}, behavior)
    assert config.extract.layers == (7, 10, 13, 16, 19)
    assert (config.gate is not None) == (behavior == "refusal")
