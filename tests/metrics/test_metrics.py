import json
import subprocess
import sys

import pytest

from mlx_steer.errors import RunError
from mlx_steer.metrics import (
    cell_of,
    compute_metrics,
    judged,
)
from mlx_steer.metrics.metrics_file import metrics_text, read_metrics
from mlx_steer.run.reader import load_run
from mlx_steer.stats import holm, wilson
from tests.helpers.synthetic_run import (
    CHOICE,
    GATED_CHOICE,
    REFUSAL,
    Synthetic,
    gated_run,
    row_key,
    small_run,
)


@pytest.fixture
def folder(tmp_path):
    return small_run(tmp_path / "run").write(CHOICE)


def condition(metrics, split, name):
    return getattr(metrics, split).named(name)


# --- reading a run ---


def test_metrics_need_no_mlx():
    code = (
        "import sys, mlx_steer.metrics; assert not [m for m in sys.modules if m.startswith('mlx.')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- rates ---


def test_counts_are_exact(folder):
    metrics = compute_metrics(load_run(folder))
    steered = condition(metrics, "test", "layer 8, strength 1.0")
    assert [steered.of(m).count for m in ("target", "false_positive", "borderline")] == [3, 1, 2]
    assert [steered.of(m).n for m in ("target", "false_positive", "borderline")] == [4, 4, 4]
    assert steered.target.rate == 0.75
    assert steered.gap == 0.5
    broken = condition(metrics, "test", "layer 8, strength 2.0")
    assert (broken.incoherent.count, broken.incoherent.n) == (11, 12)
    assert broken.target.count == 1, "incoherent rows stay in n, and are not shown"
    assert broken.target.n == 4


def test_borderline_prompts_are_no_false_positives_of_a_cell(folder):
    run = load_run(folder)
    found = cell_of(run, judged(run), "layer 8, strength 1.0", "test")
    assert (found.false_positive.count, found.false_positive.n) == (1, 4)
    assert found.incoherent.n == 12


def test_incoherent_rows_of_a_cell_stay_in_n_and_are_not_shown(folder):
    run = load_run(folder)
    found = cell_of(run, judged(run), "layer 8, strength 2.0", "test")
    assert (found.incoherent.count, found.incoherent.n) == (11, 12)
    assert (found.target.count, found.target.n) == (1, 4)
    assert (found.false_positive.count, found.false_positive.n) == (0, 4)


def test_the_two_halves_are_kept_apart(folder):
    run = load_run(folder)
    scored = judged(run)
    assert cell_of(run, scored, "base", "select").target.count == 0
    assert cell_of(run, scored, "base", "test").target.count == 1


def test_conditions_come_by_kind_then_strength_and_the_controls_last(folder):
    metrics = compute_metrics(load_run(folder))
    assert [c.kind for c in metrics.test.conditions] == [
        "base",
        "prompt",
        "steering",
        "steering",
        "prompt+steering",
        "random",
        "random",
        "random",
        "negated",
        "shuffled",
    ]


def test_any_kind_of_condition_appears_in_the_comparison(tmp_path):
    run = Synthetic(tmp_path / "run")
    run.add("base", "base", "test", target="aaaa", other="aaaa")
    run.add("something new", "new kind", "test", target="ssss", other="aaaa")
    run.add("gated", "gated", "test", layer=8, strength=1.0, target="ssss", other="aaaa")
    run.add("random 0", "random", "test", layer=8, strength=1.0, target="aaaa", other="aaaa")
    run.conditions["gated"]["gates"] = [{"name": "gate", "layer": 8, "threshold": 0.0}]
    run.conditions["gated"]["gate_scores"] = {
        "gate": {p["id"]: 0.0 if p["set"] == "target" else -0.1 for p in run.prompts}
    }
    metrics = compute_metrics(load_run(run.write()))
    names = [c.name for c in metrics.test.conditions]
    assert names == ["base", "gated", "something new", "random 0"]
    assert condition(metrics, "test", "something new").against_base.target.gained == 4
    opened = condition(metrics, "test", "gated").opened
    assert (opened.target.count, opened.false_positive.count) == (4, 0)
    assert condition(metrics, "test", "something new").opened is None


# --- the choice ---


def test_metrics_say_what_was_chosen_and_what_each_cell_broke(folder):
    select = compute_metrics(load_run(folder)).select
    assert select.choice.condition == "layer 8, strength 1.0"
    rule = select.by_rule
    assert (rule.condition, rule.met_limits, rule.candidates) == ("layer 8, strength 1.0", True, 6)
    assert select.system_prompt.condition == "prompt calibrated"
    broken = {c.name: c.broken_limits for c in select.conditions}
    assert broken["base"] is None
    assert broken["layer 8, strength 1.0"] == ()
    assert broken["layer 12, strength 2.0"] == ("false positives", "coherence", "incoherent rows")


# --- comparisons ---


def test_differences_are_paired_by_prompt_not_by_count(tmp_path):
    run = Synthetic(tmp_path / "run")
    run.add("base", "base", "test", target="ssaa", other="aaaa")
    run.add("other way", "prompt", "test", target="aass", other="aaaa")
    difference = condition(compute_metrics(load_run(run.write())), "test", "other way")
    target = difference.against_base.target
    assert (target.gained, target.lost, target.difference) == (2, 2, 0)


def test_only_prompts_that_both_conditions_have_are_compared(tmp_path):
    run = Synthetic(tmp_path / "run")
    run.add("base", "base", "test", target="a-aa", other="aaaa")
    run.add("prompt", "prompt", "test", target="ss-a", other="aaaa")
    found = condition(compute_metrics(load_run(run.write())), "test", "prompt").against_base
    assert (found.target.n, found.target.gained) == (2, 1)
    assert found.borderline is None


def test_the_headline_and_the_rest_are_holm_corrected_apart_and_without_controls(folder):
    metrics = compute_metrics(load_run(folder))
    compared = {c.name: c.against_base for c in metrics.test.conditions}
    target = {name: d.target for name, d in compared.items() if d}
    assert len(target) == 4
    primary = {name for name, d in target.items() if d.family == "primary"}
    assert primary == {"layer 8, strength 1.0"}, "the prompt is no claim of steering"
    for family in (primary, target.keys() - primary):
        own = [target[name] for name in sorted(family)]
        assert [d.p_holm for d in own] == pytest.approx(holm([d.p for d in own]))
        assert {d.family_size for d in own} == {len(family)}
    together = holm([d.p for d in target.values()])
    assert [d.p_holm_all for d in target.values()] == pytest.approx(together)
    controls = [c for c in metrics.test.conditions if c.kind == "random"]
    assert all(c.against_base is None for c in controls)


def test_a_clear_difference_is_found_and_named(tmp_path):
    run = Synthetic(tmp_path / "run", per_set=12)
    run.add("base", "base", "test", target="a" * 12, other="a" * 12)
    run.add(
        "layer 8, strength 1.0",
        "steering",
        "test",
        layer=8,
        strength=1.0,
        target="s" * 12,
        other="a" * 12,
    )
    found = condition(compute_metrics(load_run(run.write())), "test", "layer 8, strength 1.0")
    assert found.against_base.target.finding == "higher"
    assert found.against_base.target.p == pytest.approx(2 / 2**12, rel=1e-5)
    assert found.against_base.false_positive.finding == "no difference shown"


def test_steering_is_compared_with_the_prompt_of_the_choice(folder):
    against = compute_metrics(load_run(folder)).against_prompt
    assert against.prompt == "prompt calibrated"
    records = {c.name: c.difference.target for c in against.conditions}
    assert records["layer 8, strength 1.0"].gained == 1
    assert records["layer 8, strength 2.0"].lost == 1
    assert "prompt calibrated + layer 8, strength 1.0" in records


def test_controls_are_compared_with_the_vector_at_their_own_layer_and_strength(folder):
    controls = compute_metrics(load_run(folder)).controls
    assert {c.real for c in controls.conditions} == {"layer 8, strength 1.0"}
    random = controls.random
    assert (random.seeds, random.beaten_on_target, random.beaten_on_gap) == (3, 2, 1)
    assert random.target_margins == (0, 0.25, 0.5)
    negated = next(c for c in controls.conditions if c.kind == "negated")
    assert negated.real_minus_control.target.gained == 3


# --- a person's labels ---


def label(folder, labels, version=1):
    record = {"format_version": version, "labels": labels}
    (folder / "labels.json").write_text(json.dumps(record))


def test_a_persons_verdict_counts_instead_of_the_judges(folder):
    key = row_key("base", "target-test-00")
    label(folder, {key: "absent"})
    run = load_run(folder)
    scored = judged(run)
    assert scored[key].verdict == scored[key].human == "absent"
    assert scored[key].judgement.verdict == "shown"
    assert cell_of(run, scored, "base", "test").target.count == 0


def test_agreement_with_a_person_is_over_labelled_rows_only(folder):
    assert compute_metrics(load_run(folder)).judge.human is None
    names = [f"target-test-{i:02d}" for i in range(4)]
    verdicts = ["shown", "absent", "absent", "shown"]
    label(folder, {row_key("base", n): v for n, v in zip(names, verdicts, strict=True)})
    human = compute_metrics(load_run(folder)).judge.human
    assert (human.n, human.agreed) == (4, 3)
    assert human.kappa == pytest.approx(0.5)


def test_labels_of_another_format_are_refused(folder):
    label(folder, {}, version=2)
    with pytest.raises(RunError, match=r"labels\.json"):
        load_run(folder)
    label(folder, {"x": "perhaps"})
    with pytest.raises(RunError, match=r"labels\.json"):
        load_run(folder)


# --- the JSON ---


def test_the_same_rows_give_the_same_bytes_in_any_order_at_any_time(folder):
    first = metrics_text(compute_metrics(load_run(folder)))
    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(reversed(lines)))
    manifest = json.loads((folder / "manifest.json").read_text())
    later = {"mlx": "9.9", "started": "2030-01-01", "finished": None, "seconds": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest | later))
    assert metrics_text(compute_metrics(load_run(folder))) == first


def test_what_is_not_a_number_is_null_and_floats_have_six_digits(tmp_path):
    run = Synthetic(tmp_path / "run", sets=("target", "other"))
    run.add("base", "base", "test", target="saaa", other="----")
    run.scores.clear()
    metrics = compute_metrics(load_run(run.write()))
    text = metrics_text(metrics)
    assert "NaN" not in text and "Infinity" not in text
    base = condition(metrics, "test", "base")
    assert base.false_positive.rate is None
    assert base.gap is None
    assert (base.perplexity.median, base.perplexity.n) == (None, 0)
    assert base.target.low == float(f"{wilson(1, 4).low:.6g}")


def test_what_is_read_back_is_what_was_written(tmp_path):
    folder = gated_run(tmp_path / "run").write(GATED_CHOICE)
    metrics = compute_metrics(load_run(folder))
    (folder / "metrics.json").write_text(metrics_text(metrics))
    assert read_metrics(folder) == metrics
    assert metrics_text(read_metrics(folder)) == metrics_text(metrics)


def test_shares_of_opened_gates_are_written_only_where_there_are_gates(tmp_path):
    metrics = compute_metrics(load_run(gated_run(tmp_path / "run").write(GATED_CHOICE)))
    written = json.loads(metrics_text(metrics))["test"]["conditions"]
    gated = {"gated", "prompt+gated"}
    assert {c["kind"] for c in written if "opened" in c} == gated
    assert gated.isdisjoint(c["kind"] for c in written if "opened" not in c)


def test_metrics_of_another_format_or_with_a_part_missing_are_refused(folder):
    (folder / "metrics.json").write_text(metrics_text(compute_metrics(load_run(folder))))
    good = json.loads((folder / "metrics.json").read_text())
    without = {key: value for key, value in good.items() if key != "test"}
    for value in (good | {"format_version": 9}, without, []):
        (folder / "metrics.json").write_text(json.dumps(value))
        with pytest.raises(RunError, match="write it anew with: mlx-steer report"):
            read_metrics(folder)


def test_words_come_from_the_behavior(tmp_path):
    behavior = REFUSAL | {
        "judge": "uncertainty",
        "verdicts": {"shown": "hedged", "absent": "asserted", "incoherent": "broken"},
        "sets": {"target": "unknowable", "other": "knowable"},
    }
    run = Synthetic(tmp_path / "run", behavior=behavior, sets=("target", "other"))
    run.texts |= {"s": "I don't know; nobody can know that yet.", "a": "It was built in 1889."}
    run.add("base", "base", "test", target="ssaa", other="aaaa")
    metrics = compute_metrics(load_run(run.write()))
    assert condition(metrics, "test", "base").target.count == 2
    assert metrics.behavior.shown == "hedged"
    assert metrics.behavior.sets["target"] == "unknowable"
