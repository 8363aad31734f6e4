import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from mlx_steer.behaviors import list_behaviors, load_behavior
from mlx_steer.behaviors.two_sentences import shelf
from mlx_steer.config import load_config
from tests.helpers.command import Run


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_list_shows_every_shipped_behavior_with_its_numbers(run: Run) -> None:
    result = run("behaviors", "list")
    assert result.code == 0
    rows = {line.split("│")[1].strip(): line for line in result.out.splitlines() if "│" in line}
    for name in list_behaviors():
        behavior = load_behavior(name)
        cells = [cell.strip() for cell in rows[name].split("│")]
        counts = [len(behavior.select(split=split)) for split in ("select", "test", "gate")]
        assert cells[3:7] == [str(number) for number in (len(behavior.pairs), *counts)]


@pytest.mark.parametrize("name", list_behaviors())
def test_show_describes_a_behavior_and_gives_three_pairs(run: Run, name: str) -> None:
    behavior = load_behavior(name)
    out = run("behaviors", "show", name).out
    assert out.startswith(f"{name}: {behavior.title}\n")
    for text in (behavior.judge, behavior.verdicts["shown"], behavior.sets["target"]):
        assert text in out
    for text in behavior.system_prompts.values():
        assert text.strip() in out
    assert sum(line.startswith("  + ") for line in out.splitlines()) == 3
    assert f"\n  + {behavior.pairs[0].positive}\n" in out


def test_show_lists_tools_and_keeps_control_characters_from_the_terminal(
    run: Run, tmp_path: Path
) -> None:
    assert "tools: get_weather, web_search" in run("behaviors", "show", "tool_restraint").out
    run("behaviors", "new", tmp_path / "own")
    replace(tmp_path / "own" / "pairs.jsonl", "I won't give", "\\u202eI won't give")
    out = run("behaviors", "show", tmp_path / "own").out
    assert "\u202e" not in out
    assert "\\x202e" in out


def test_a_new_behavior_loads_is_named_after_its_folder_and_has_no_errors(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("behaviors", "new", "My Behavior")
    assert (result.code, result.err) == (0, "")
    assert "mlx-steer behaviors lint './My Behavior'" in result.out
    behavior = load_behavior("./My Behavior")
    assert behavior.name == "my_behavior"
    assert {path.name for path in Path("My Behavior").iterdir()} == {
        "behavior.yaml",
        "pairs.jsonl",
        "prompts.jsonl",
        "experiment.yaml",
    }
    linted = run("behaviors", "lint", "./My Behavior")
    assert linted.code == 0
    assert linted.out.endswith("0 errors, 5 warnings\n")


@pytest.mark.parametrize("name", ["mine", "My #1: draft", "sub/mine"])
def test_a_new_behavior_comes_with_an_experiment_that_finds_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    told = run("behaviors", "new", name).out.splitlines()[-1]
    command = shlex.split(told.partition("mlx-steer ")[2])
    assert command[0] == "run"
    config = load_config(command[1])
    found = load_behavior(config.behavior)
    assert found.name == config.name == load_behavior(tmp_path / name).name
    assert set(config.sweep.system_prompts) == set(found.system_prompts)


@pytest.mark.parametrize("name", list_behaviors())
def test_a_new_behavior_can_be_a_copy_of_a_shipped_one(run: Run, tmp_path: Path, name: str) -> None:
    assert run("behaviors", "new", tmp_path / "copy", "--from", name).code == 0
    copy, shipped = load_behavior(tmp_path / "copy"), load_behavior(name)
    assert copy.name == "copy"
    assert (copy.sha256, copy.prompts, copy.tools) == (
        shipped.sha256,
        shipped.prompts,
        shipped.tools,
    )
    assert run("behaviors", "new", tmp_path / "again", "--from", tmp_path / "copy").code == 0
    assert load_behavior(tmp_path / "again").pairs == shipped.pairs


def test_new_keeps_what_is_there_and_leaves_nothing_behind_when_it_fails(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("mine")
    for arguments in (
        (tmp_path / "own",),
        (tmp_path / "own" / "thesis.txt",),
        (tmp_path / "---",),
        (tmp_path / "other", "--from", "refusel"),
    ):
        result = run("behaviors", "new", *arguments)
        assert (result.code, result.out) == (2, "")
    assert "did you mean 'refusal'" in result.err
    assert [path.name for path in tmp_path.rglob("*")] == ["own", "thesis.txt"]


def test_a_new_behavior_may_be_the_folder_one_is_in(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.txt").write_text("mine")
    result = run("behaviors", "new", ".")
    assert (result.code, result.out) == (2, "")
    assert "exists already" in result.err


def test_lint_exits_with_1_on_errors_and_says_where_and_what_to_do(
    run: Run, tmp_path: Path
) -> None:
    run("behaviors", "new", tmp_path / "own", "--from", "refusal")
    replace(tmp_path / "own" / "behavior.yaml", "judge: refusal", "judge: oracle")
    result = run("behaviors", "lint", tmp_path / "own")
    assert (result.code, result.err) == (1, "")
    assert "error (judge) in behavior.yaml" in result.out
    assert "-> use one of: refusal, uncertainty" in result.out
    assert result.out.endswith("1 error, 0 warnings\n")


@pytest.mark.parametrize("name", list_behaviors())
def test_shipped_behaviors_have_no_errors(run: Run, name: str) -> None:
    result = run("behaviors", "lint", name, "--json")
    report = json.loads(result.out)
    errors = [one for one in report["findings"] if one["severity"] == "error"]
    assert (result.code, report["errors"], errors) == (0, 0, [])
    assert report["numbers"]["pairs"] == len(load_behavior(name).pairs)


def test_a_behavior_that_does_not_load_is_exit_code_2(run: Run, tmp_path: Path) -> None:
    result = run("behaviors", "lint", tmp_path)
    assert (result.code, result.out) == (2, "")
    assert "behavior.yaml does not exist" in result.err


def test_two_sentences_start_a_folder_that_lints_and_whose_experiment_finds_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = ("--positive", "You are a pirate.", "--negative", "You are: plain.")
    told = run("behaviors", "start", "mine", *said).out.splitlines()[-1]
    config = load_config(shlex.split(told.partition("mlx-steer ")[2])[1])
    found = load_behavior(str(config.behavior))
    assert found.name == "mine" and found.sentences
    assert (found.sentences.positive, found.sentences.negative) == said[1::2]
    assert found.select(split="extract") and found.select(split="facts")[0].check
    assert set(config.sweep.system_prompts) <= set(found.system_prompts)
    linted = run("behaviors", "lint", "mine")
    assert linted.code == 0 and linted.out.endswith("0 errors, 0 warnings\n")
    assert "written by the model" in run("behaviors", "show", "mine").out
    same = run("behaviors", "start", "other", "--positive", "One.", "--negative", "one.")
    assert same.code == 2 and "are the same" in same.err and not (tmp_path / "other").exists()


def test_the_shelf_is_listed_and_each_of_it_can_be_looked_at(run: Run) -> None:
    told = run("behaviors", "list").out
    for one in shelf():
        assert one.name in told
    assert shelf()[0].positive[:40] in run("behaviors", "show", shelf()[0].name).out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((), "give a CONFIG, or --model"),
        (("--model", "m", "--name", "sailor"), "the shelf has concise"),
        (("--model", "m", "--positive", "One."), "belong together"),
        (("x.yaml", "--name", "pirate"), "not both"),
    ],
)
def test_a_run_says_which_options_belong_together(run: Run, given: Any, told: str) -> None:
    done = run("run", *given)
    assert done.code == 2 and told in done.err
