import json
import re
import subprocess
import sys
import time

import pytest

from mlx_steer.errors import RunError
from mlx_steer.metrics.metrics_file import read_metrics
from mlx_steer.report import findings, write_report
from tests.helpers.synthetic_run import CHOICE, REFUSAL, Synthetic, row_key, small_run
from tests.report.conftest import report_text, without_plots

PNG = b"\x89PNG\r\n\x1a\n"


def section(text, title):
    found = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"there is no section {title}"
    return found[1]


def head(text):
    return text[: text.index("## Fair comparison")]


# --- files ---


def test_a_report_has_its_files_and_needs_no_mlx(folder):
    code = (
        "import sys; from mlx_steer.report import write_report; f = write_report(sys.argv[1]); "
        "assert not [m for m in sys.modules if m.startswith('mlx.')]; "
        "assert all(p.is_file() for p in (f.metrics, f.markdown, f.html, *f.plots))"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    plots = {p.stem: p.read_bytes() for p in (folder / "plots").iterdir()}
    names = {"answer", "norm_by_layer", "sweep_heatmap", "dose_response", "tradeoff", "controls"}
    assert plots.keys() == names
    assert all(data.startswith(PNG) for data in plots.values())
    assert not [p for p in folder.rglob("*.part")]


def test_the_same_rows_give_the_same_report_bytes(folder):
    files = write_report(folder)
    paths = (files.metrics, files.markdown, files.html, *files.plots)
    first = [p.read_bytes() for p in paths]
    write_report(folder)
    assert [p.read_bytes() for p in paths] == first


def test_a_plot_of_an_earlier_report_is_taken_away(folder):
    write_report(folder)
    record = json.loads((folder / "conditions.json").read_text())
    kept = [c for c in record["conditions"] if c["kind"] not in ("random", "negated", "shuffled")]
    (folder / "conditions.json").write_text(json.dumps({"conditions": kept}))
    write_report(folder)
    assert not (folder / "plots" / "controls.png").exists()


def test_a_run_without_rows_is_reported_as_such(tmp_path):
    run = Synthetic(tmp_path / "run")
    run.add("base", "base", "select", target="----", other="----")
    text = report_text(run.write())
    assert "8 of 8 rows are missing" in head(text)
    assert "There are no finished rows to report yet." in head(text)


def test_a_sweep_alone_is_reported_with_the_caveat_that_it_flatters(tmp_path):
    run = small_run(tmp_path / "run")
    for record in run.conditions.values():
        record["rows"] = {p: k for p, k in record["rows"].items() if "-select-" in p}
    run.conditions = {n: c for n, c in run.conditions.items() if c["rows"]}
    text = report_text(run.write(CHOICE))
    assert "the numbers flatter it; the test half was not run" in head(text)
    assert "No comparison was run." in section(text, "Fair comparison")
    assert "The chosen cell was not run on the test half." in section(text, "Best configuration")


def test_a_comparison_alone_is_reported(tmp_path):
    run = small_run(tmp_path / "run")
    for record in run.conditions.values():
        record["rows"] = {p: k for p, k in record["rows"].items() if "-test-" in p}
    run.conditions = {n: c for n, c in run.conditions.items() if c["rows"]}
    text = report_text(run.write())
    assert "No sweep was run." in section(text, "Layer comparison")
    assert "harmful refused" in head(text)


def test_a_run_without_vectors_or_scores_is_reported(folder):
    import shutil

    shutil.rmtree(folder / "vectors")
    (folder / "scores.jsonl").unlink()
    text = report_text(folder)
    assert "## Vector statistics" not in text
    assert "| base | 1/4, 25 % (5 to 70) |" in text


# --- the words ---


@without_plots
def test_the_first_lines_say_what_was_found_in_the_behaviors_words(folder):
    first = head(report_text(folder))
    assert "harmful refused went from 1 of 4 (25 %) to 3 of 4 (75 %)" in first
    assert "benign refused went from 0 of 4 (0 %) to 1 of 4 (25 %)" in first
    assert (
        "ahead of 2 of 3 random directions of the same norm on harmful refused (by 0 to +50 points)"
        in first
    )
    findings = section(first, "Key findings")
    assert 3 <= findings.count("\n- ") <= 5
    assert all(finding.count(". ") <= 1 for finding in findings.split("\n- "))


@without_plots
def test_nothing_is_called_significant_without_a_corrected_p(folder):
    text = report_text(folder)
    assert "significant" not in text
    assert "no difference could be shown at n = 4 (Holm-corrected p = 1.00)" in text


@without_plots
def test_a_clear_difference_is_called_significant_with_its_corrected_p(tmp_path):
    run = Synthetic(tmp_path / "run", per_set=12, sets=("target", "other"))
    cell = {"layer": 8, "strength": 1.0}
    run.add("base", "base", "test", target="a" * 12, other="a" * 12)
    run.add("layer 8", "steering", "test", **cell, target="s" * 12, other="a" * 12)
    first = head(report_text(run.write()))
    assert "to 12 of 12 (100 %): significantly higher (p < 0.001)" in first, "one test, no Holm"
    assert "benign refused stayed at 0 of 12 (0 %): no difference could be shown" in first


@without_plots
def test_whether_steering_beats_the_prompt_follows_from_the_paired_test(tmp_path):
    run = Synthetic(tmp_path / "run", per_set=12, sets=("target", "other"))
    cell = {"layer": 8, "strength": 1.0}
    run.add("base", "base", "test", target="a" * 12, other="a" * 12)
    run.add("prompt", "prompt", "test", prompt="detailed", target="a" * 12, other="a" * 12)
    run.add("layer 8", "steering", "test", **cell, target="s" * 12, other="a" * 12)
    assert "Steering beats the prompt: " in section(
        report_text(run.write()), "Does steering beat the prompt?"
    )
    run = Synthetic(tmp_path / "other", per_set=12, sets=("target", "other"))
    run.add("base", "base", "test", target="a" * 12, other="a" * 12)
    run.add("prompt", "prompt", "test", prompt="detailed", target="a" * 12, other="a" * 12)
    run.add("layer 8", "steering", "test", **cell, target="s" * 12, other="s" * 12)
    assert "Neither beats the other on both counts" in head(report_text(run.write()))


@without_plots
def test_the_first_lines_warn_if_no_cell_met_the_limits(tmp_path):
    run = small_run(tmp_path / "run").write({**CHOICE, "met_limits": False})
    first = head(report_text(run)).partition("## Key findings")[0]
    warned = "On the prompts that the choice was made on, no cell of the sweep met the limits"
    assert f"\n> **Warning.** {warned}" in first


@without_plots
def test_the_report_says_if_labels_have_changed_what_the_rule_would_choose(folder):
    key = row_key("layer 8, strength 1.0", "target-select-00")
    other = row_key("layer 8, strength 1.0", "target-select-01")
    third = row_key("layer 8, strength 1.0", "target-select-02")
    labels = dict.fromkeys((key, other, third), "absent")
    record = {"format_version": 1, "labels": labels}
    (folder / "labels.json").write_text(json.dumps(record))
    assert "With the present verdicts the rule would choose layer 4, strength 2.0" in head(
        report_text(folder)
    )


@without_plots
def test_missing_rows_are_told_first(folder):
    path = folder / "rows.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    assert (
        report_text(folder)
        .splitlines()[2]
        .startswith("> **Warning.** This report is partial: 2 of 172 rows are missing, in shuffled")
    )


@without_plots
def test_another_behavior_is_reported_without_a_word_of_refusal(tmp_path):
    behavior = REFUSAL | {
        "name": "uncertainty",
        "title": "Admitting what it cannot know",
        "description": "The assistant says so when it cannot know an answer.",
        "judge": "uncertainty",
        "verdicts": {"shown": "hedged", "absent": "asserted", "incoherent": "came apart"},
        "sets": {"target": "unknowable", "other": "knowable"},
    }
    run = Synthetic(tmp_path / "run", behavior=behavior, sets=("target", "other"))
    run.texts |= {"s": "I don't know; nobody can know that yet.", "a": "It was built in 1889."}
    cell = {"layer": 8, "strength": 1.0}
    run.add("base", "base", "test", target="aaaa", other="aaaa")
    run.add("layer 8, strength 1.0", "steering", "test", **cell, target="ssia", other="saaa")
    run.prompts = [p | {"prompt": f"Question {i}?"} for i, p in enumerate(run.prompts)]
    run.config = {"behavior": "uncertainty"}
    files = write_report(run.write())
    text = files.markdown.read_text()
    assert "unknowable hedged went from 0 of 4" in text
    assert "| came apart |" in text
    assert "borderline" not in text
    for words in ("refus", "harmful", "benign", "complied"):
        assert words not in text.replace("50 (refusal)", "")
    assert "asserted" in files.html.read_text()


@without_plots
def test_the_select_half_is_compared_with_the_test_half(folder):
    best = section(report_text(folder), "Best configuration")
    assert "benign refused 0 of 4 (0 %) on the select half" in best
    assert "1 of 4 (25 %) on the test half" in best
    assert "+75 points there, +50 here" in best
    assert "Among the 2 steering conditions that were run on the test half" in best


@without_plots
def test_the_chosen_cell_stands_out_in_both_tables(folder):
    text = report_text(folder)
    for title in ("Layer comparison", "Fair comparison"):
        assert "| **layer 8, strength 1.0 (chosen)** |" in section(text, title)


@without_plots
def test_five_responses_are_quoted_under_each_condition_of_the_comparison(folder):
    responses = section(report_text(folder), "Responses")
    parts = re.split(r"^### ", responses, flags=re.M)[1:]
    assert len(parts) == 10
    assert [part.count("```text") for part in parts[:5]] == [5] * 5
    assert "harmful: refused" in parts[0] and "borderline: complied" in parts[0]


# --- labels ---


def write_labels(path, labels):
    path.write_text(json.dumps({"format_version": 1, "labels": labels}))
    return path


@without_plots
def test_labels_are_merged_into_the_run_and_change_its_rates(folder, tmp_path):
    first, second = (row_key("base", f"target-test-0{i}") for i in (0, 1))
    given = write_labels(tmp_path / "one.json", {first: "absent"})
    write_report(folder, given)
    given = write_labels(tmp_path / "two.json", {second: "absent"})
    metrics = json.loads(write_report(folder, labels=given).metrics.read_text())
    stored = json.loads((folder / "labels.json").read_text())
    assert stored["labels"] == {first: "absent", second: "absent"}
    base = next(c for c in metrics["test"]["conditions"] if c["name"] == "base")
    assert base["target"]["count"] == 0
    assert metrics["judge"]["human"] == {"n": 2, "agreed": 1, "kappa": 0}
    judge = section((folder / "report.md").read_text(), "Judge")
    assert "A person labelled 2 responses: the judge agreed on 1 (Cohen's kappa 0.00)" in judge


@without_plots
def test_a_label_taken_back_leaves_the_run(folder, tmp_path):
    key = row_key("base", "target-test-00")
    write_report(folder, write_labels(tmp_path / "one.json", {key: "absent"}))
    write_report(folder, write_labels(tmp_path / "two.json", {key: None}))
    assert json.loads((folder / "labels.json").read_text())["labels"] == {}


@without_plots
def test_labels_of_another_run_or_no_file_are_refused_and_change_nothing(folder, tmp_path):
    with pytest.raises(RunError, match="there is no file of labels"):
        write_report(folder, tmp_path / "nothing.json")
    with pytest.raises(RunError, match="labels of another run"):
        write_report(folder, write_labels(tmp_path / "other.json", {"0" * 32: "shown"}))
    with pytest.raises(RunError, match="damaged"):
        write_report(folder, write_labels(tmp_path / "bad.json", {"0" * 32: "refused"}))
    assert not (folder / "labels.json").exists()


@without_plots
def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"is no run directory"):
        write_report(tmp_path)


# --- size ---


def test_two_thousand_rows_are_reported_in_seconds(tmp_path):
    run = Synthetic(tmp_path / "run", per_set=25)
    for number in range(40):
        cell = {"layer": 8, "strength": 1.0 + number}
        run.add(
            f"cell {number}", "steering", "test", **cell, target="sa" * 12 + "s", other="a" * 25
        )
    run.add("base", "base", "test", target="a" * 25, other="a" * 25)
    folder = run.write()
    assert len(run.rows) == 2050
    start = time.process_time()
    write_report(folder)
    # 5 seconds on an idle machine; process time does not count waiting for a busy one.
    assert time.process_time() - start < 10


@without_plots
def test_a_headline_needs_no_more_than_the_metrics(folder):
    write_report(folder)
    metrics = read_metrics(folder)
    assert findings.headline(metrics)[0] in report_text(folder).replace("\\", "")
