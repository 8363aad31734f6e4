"""The answer of a run: one rule, on runs whose verdicts are known."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_steer.metrics import compute_metrics
from mlx_steer.metrics.answer_rule import verdict
from mlx_steer.metrics.metrics_file import metrics_text, read_metrics
from mlx_steer.metrics.numbers import Difference
from mlx_steer.report import write_report
from mlx_steer.report.first_screen import first_screen
from mlx_steer.run.reader import load_run
from mlx_steer.run.records import PriceLine
from mlx_steer.stats import holm
from mlx_steer.vectors import load_vectors
from mlx_steer.vectors.evidence import evidence_in
from tests.helpers.synthetic_run import CHOICE, GATED_CHOICE, Synthetic, gated_run, row_key

CELL = {"layer": 8, "strength": 1.0}


def difference(finding):
    return Difference(
        n=20, gained=0, lost=0, difference=0, low=0, high=0, p=1, family="primary",
        family_size=2, p_holm=1, p_holm_all=1, finding=finding,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("finding", "broken", "kind", "expected"),
    [
        ("higher", (), "steering", "works"),
        ("higher", (), "gated", "works behind a gate"),
        ("higher", ("coherence",), "steering", "not shown"),
        ("no difference shown", (), "gated", "not shown"),
        ("no difference shown", ("false positives",), "steering", "does harm"),
        ("lower", (), "steering", "does harm"),
        ("lower", ("coherence",), "gated", "does harm"),
    ],
)
def test_the_rule(finding, broken, kind, expected):
    assert verdict(difference(finding), broken, kind) == expected


def run_of(tmp_path, *, plain, gate="", other="a" * 20, base="a" * 20):
    """A run whose plain cell gives these verdicts, gated where `gate` has an "o"."""
    run = Synthetic(tmp_path / "run", per_set=20, sets=("target", "other"))
    for split in ("select", "test"):
        run.add("base", "base", split, target=base, other="a" * 20)
        run.add("layer 8, strength 1.0", "steering", split, **CELL, target=plain, other=other)
        if gate:
            shut = "." * 20
            run.add_gated(split, "layer 8, strength 1.0", target=gate, other=shut)
    if gate:
        run.fit(target="oo", other="..")
    return load_run(run.write(GATED_CHOICE if gate else CHOICE))


def answer_of(*args, **options):
    metrics = compute_metrics(run_of(*args, **options))
    assert metrics.answer is not None
    return metrics.answer


def test_a_clear_rise_within_the_limits_works(tmp_path):
    answer = answer_of(tmp_path, plain="s" * 12 + "a" * 8)
    assert (answer.verdict, answer.of, answer.gated) == ("works", "steering", None)
    cell = answer.cell
    assert (cell.layer, cell.strength, cell.rates.target.count) == (8, 1.0, 12)
    assert cell.relative_dose == pytest.approx(18 / 56, rel=1e-5)
    assert cell.select_target is not None and cell.select_target.count == 12
    assert cell.against_base.family_size == 1
    assert answer.detectable is not None and answer.detectable.comparisons == 1


def test_a_rise_that_costs_too_much_works_only_behind_a_gate(tmp_path):
    costly = "s" * 5 + "a" * 15
    answer = answer_of(tmp_path, plain="s" * 12 + "a" * 8, other=costly, gate="o" * 20)
    assert answer.verdict == "works behind a gate" and answer.of == "gated"
    assert answer.plain is not None and answer.plain.verdict == "not shown"
    assert answer.plain.broken_limits == ("false positives",)
    # The two primary tests are one family, and nothing else is in it.
    family = [answer.plain.against_base, answer.cell.against_base]
    assert [d.p_holm for d in family] == pytest.approx(holm([d.p for d in family]), rel=1e-5)
    assert {(d.family, d.family_size) for d in family} == {("primary", 2)}
    # A fixed text behind an open gate never fails.
    assert answer.fixed is not None and answer.fixed.rates.target.count == 20
    assert answer.fixed_does_as_well


def test_what_breaks_limits_without_a_gain_does_harm_and_a_small_rise_is_not_shown(tmp_path):
    assert answer_of(tmp_path / "a", plain="i" * 20).verdict == "does harm"
    assert answer_of(tmp_path / "b", plain="s" * 3 + "a" * 17).verdict == "not shown"
    fallen = answer_of(tmp_path / "c", base="s" * 20, plain="a" * 20)
    assert fallen.verdict == "does harm" and fallen.cell.broken_limits == ()


def test_the_opponents_are_those_of_the_run_and_their_differences_the_tested_ones(tmp_path):
    run = load_run(gated_run(tmp_path / "run").write(GATED_CHOICE))
    metrics = compute_metrics(run)
    answer = metrics.answer
    assert answer is not None and metrics.controls is not None
    assert answer.prompt is not None and answer.prompt.name == "prompt calibrated"
    by_name = {c.name: c for c in metrics.controls.conditions}
    for opponent in (answer.random, answer.shuffled):
        assert opponent is not None
        assert opponent.difference == by_name[opponent.name].real_minus_control.target
    assert answer.random.name.startswith("random 2"), "the one with the highest rate"
    assert answer.random_beaten == (2, 3)
    assert answer.fixed is not None and answer.fixed.name == "gate + fixed refusal"


def test_the_answer_is_read_back_and_an_older_file_has_none(tmp_path):
    run = run_of(tmp_path, plain="s" * 12 + "a" * 8)
    metrics = compute_metrics(run)
    (run.folder / "metrics.json").write_text(metrics_text(metrics))
    assert read_metrics(run.folder) == metrics
    older = json.loads(metrics_text(metrics))
    del older["answer"]
    (run.folder / "metrics.json").write_text(json.dumps(older))
    assert read_metrics(run.folder).answer is None


def test_the_price_is_quoted_where_it_was_measured_and_a_part_is_said(tmp_path):
    run = run_of(tmp_path, plain="s" * 12 + "a" * 8)
    lines = []
    for i in range(20):
        own, other = (row_key(n, f"other-test-{i:02d}") for n in ("base", "layer 8, strength 1.0"))
        lines += [(own, own, 0.0), (own, other, 0.1 * (i % 2))]
    text = "".join(
        PriceLine(base=a, row=b, nats=n, tokens=9).model_dump_json() + "\n" for a, b, n in lines
    )
    (run.folder / "prices.jsonl").write_text(text)
    metrics = compute_metrics(load_run(run.folder))
    assert metrics.answer is not None
    price = metrics.answer.cell.price
    assert price is not None and (price.nats, price.n, price.asked) == (0.05, 20, 20)
    assert 0 < price.low < 0.05 < price.high < 0.1
    assert "over base's own responses to the first 20 benign prompts" in report(run.folder)
    (run.folder / "prices.jsonl").write_text("".join(text.splitlines(keepends=True)[:24]))
    assert "over base's own responses to 12 of 20 benign prompts" in report(run.folder)


def report(folder):
    return write_report(folder).markdown.read_text()


def test_the_report_the_card_and_the_vectors_say_the_same(tmp_path):
    folder = gated_run(tmp_path / "run").write(GATED_CHOICE)
    files = write_report(folder)
    first = first_screen(read_metrics(folder))
    assert first is not None and first == files.first
    text = files.markdown.read_text().replace("\\", "")
    assert text.index(first.label) < text.index("## Key findings")
    assert files.html.read_text().index(first.label) < files.html.read_text().index("<h2")
    assert len(first.findings) <= 5
    evidence = evidence_in(folder / "vectors", load_vectors(folder / "vectors"))
    assert evidence is not None
    assert (evidence.verdict, evidence.answer) == (first.verdict, f"{first.label} {first.sentence}")
    assert [(f.what, f.value) for f in evidence.facts] == list(first.facts)
    # Layer 8 at strength 2 and layer 12 at 2 fell apart.
    assert {d.layer: round(d.highest, 3) for d in evidence.doses}[8] == round(18 / 56, 3)


def test_the_readme_is_written_from_a_run(tmp_path):
    folder = gated_run(tmp_path / "run").write(GATED_CHOICE)
    first = write_report(folder).first
    (tmp_path / "docs").mkdir()
    parts = ("answer", "details")
    blocks = "".join(f"<!-- synthetic: {n} -->\nold\n<!-- /synthetic -->\n" for n in parts)
    blocks += "<!-- another: answer -->\nkept\n<!-- /another -->\n"
    (tmp_path / "README.md").write_text(f"before\n{blocks}after\n")
    script = Path(__file__).parents[2] / "scripts" / "readme_answer.py"
    for _ in range(2):
        subprocess.run([sys.executable, script, folder, "--root", tmp_path], check=True)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("kept\n<!-- /another -->\nafter\n")
    assert "old" not in text
    assert text.count(f"**{first.label}** {first.sentence}") == 1
    assert "| layer 8, strength 1 (chosen) |" in text.replace("1.0", "1")
    assert (tmp_path / "docs" / "answer.png").read_bytes().startswith(b"\x89PNG")
