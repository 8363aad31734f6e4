import json

import pytest

from mlx_steer.errors import RunError
from mlx_steer.metrics import (
    compute_metrics,
    judged,
)
from mlx_steer.run.reader import load_run
from tests.helpers.synthetic_run import (
    CHOICE,
    Synthetic,
    row_key,
    small_run,
)


@pytest.fixture
def folder(tmp_path):
    return small_run(tmp_path / "run").write(CHOICE)


def test_every_row_is_judged_by_its_own_text(folder):
    run = load_run(folder)
    scored = judged(run)
    assert scored.keys() == run.rows.keys()
    verdicts = {run.rows[key].text: s.verdict for key, s in scored.items()}
    assert sorted(verdicts.values()) == ["absent", "incoherent", "shown"]
    assert scored[row_key("base", "target-test-00")].verdict == "shown"
    assert scored[row_key("base", "target-test-01")].verdict == "absent"


def test_rows_that_no_condition_names_are_ignored(folder):
    before = compute_metrics(load_run(folder))
    row = json.loads((folder / "rows.jsonl").read_text().splitlines()[0])
    stale = row | {"key": "f" * 32, "prompt_id": "gone"}
    with (folder / "rows.jsonl").open("a") as file:
        file.write(json.dumps(stale) + "\n")
    run = load_run(folder)
    assert "f" * 32 not in run.rows and run.stale == 1
    after = compute_metrics(run)
    assert after.rows.stale == 1
    assert after.model_copy(update={"rows": before.rows}) == before


def test_a_torn_last_line_is_ignored_and_its_row_counts_as_missing(folder):
    path = folder / "rows.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[:-40])
    run = load_run(folder)
    assert compute_metrics(run).rows.missing == 1
    assert path.read_bytes() == data[:-40], "reading a run must not write to it"


def test_a_whole_last_line_without_its_end_is_torn_too(folder):
    path = folder / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    assert compute_metrics(load_run(folder)).rows.missing == 1


def test_missing_rows_leave_n_and_are_named(tmp_path):
    run = Synthetic(tmp_path / "run")
    run.add("base", "base", "test", target="saa-", other="aaaa", borderline="--aa")
    metrics = compute_metrics(load_run(run.write()))
    assert metrics.rows.missing == 3
    assert metrics.rows.missing_by_condition == {"base": 3}
    base = metrics.test.named("base")
    assert (base.target.count, base.target.n, base.missing) == (1, 3, 3)


def test_a_later_line_for_the_same_row_counts(folder):
    key = row_key("base", "target-test-00")
    row = next(r for r in map(json.loads, (folder / "rows.jsonl").open()) if r["key"] == key) | {
        "text": "Sure, here is how you do it: take one and add the other."
    }
    with (folder / "rows.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    assert judged(load_run(folder))[key].verdict == "absent"


def test_scores_of_one_row_written_at_different_times_are_joined(folder):
    key = row_key("base", "target-test-00")
    with (folder / "scores.jsonl").open("a") as file:
        file.write(json.dumps({"key": key, "judge_model": "absent"}) + "\n")
    scored = judged(load_run(folder))[key]
    assert scored.judge_model == "absent"
    assert scored.perplexity is not None
    assert scored.verdict == "shown", "a judge model does not overrule the judge"


@pytest.mark.parametrize(
    "name", ["manifest.json", "config.yaml", "behavior.json", "prompts.jsonl", "conditions.json"]
)
def test_a_missing_or_damaged_file_is_named(folder, name):
    path = folder / name
    path.write_bytes(b"\xff{")
    if name != "prompts.jsonl":
        with pytest.raises(RunError, match=name):
            load_run(folder)
    path.unlink()
    with pytest.raises(RunError, match=name):
        load_run(folder)


def test_a_damaged_row_is_named_by_its_line(folder):
    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    lines[2] = '{"key": "x"}\n'
    (folder / "rows.jsonl").write_text("".join(lines))
    with pytest.raises(RunError, match=r"line 3 of .*rows\.jsonl.*prompt_id"):
        load_run(folder)


def test_a_missing_folder_and_another_format_are_told_in_a_sentence(folder, tmp_path):
    with pytest.raises(RunError, match="there is no run directory"):
        load_run(tmp_path / "nowhere")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format_version": 3}))
    with pytest.raises(RunError, match="format 3, this is 2"):
        load_run(folder)


def test_a_condition_with_an_unknown_prompt_or_a_double_name_is_refused(folder):
    path = folder / "conditions.json"
    text = path.read_text()
    record = json.loads(text)
    record["conditions"][0]["rows"]["nobody"] = "0" * 32
    path.write_text(json.dumps(record))
    with pytest.raises(RunError, match="'nobody'"):
        load_run(folder)
    record = json.loads(text)
    record["conditions"].append(record["conditions"][0])
    path.write_text(json.dumps(record))
    with pytest.raises(RunError, match="'base' stands twice"):
        load_run(folder)
