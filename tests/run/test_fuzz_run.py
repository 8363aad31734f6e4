"""No run directory gives anything but a run, its report, or a RunError; spoils a finished one."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_steer.metrics import compute_metrics, judged
from mlx_steer.metrics.metrics_file import metrics_text
from mlx_steer.report import markdown, sections
from mlx_steer.report.measured_effect import measured_effect
from mlx_steer.run.directory import RunDirectory
from mlx_steer.run.reader import load_run, read_labels
from mlx_steer.run.records import Manifest, Row, Score
from mlx_steer.vectors import load_vectors
from mlx_steer.vectors.model_card import model_card
from tests.helpers import behaviors, fuzz, small_run
from tests.helpers.tiny import tiny_folder

FILES = ["manifest.json", "behavior.json", "conditions.json", "choice.json", "gate.json"]
FILES += ["separation.json", "prompts.jsonl", "rows.jsonl", "scores.jsonl", "prices.jsonl"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    model = tiny_folder("llama", folder / "model")
    behavior = behaviors.behavior_folder(folder / "behavior", prompts=1, gate=True)
    changes: dict[str, Any] = {
        "extract": {"layers": [2]},
        "sweep": {"strengths": [1.0], "system_prompts": ["detailed"]},
        "gate": {"layers": [2], "methods": ["mean_difference"]},
        "generation": {"max_tokens": 3, "batch_size": 16},
    }
    small_run.carry_out(small_run.config(model, behavior, **changes), folder / "run")
    return folder / "run"


def value_of(path: Path) -> Any:
    if path.suffix == ".json":
        return json.loads(path.read_text())
    return [json.loads(line) for line in path.read_text().splitlines()]


def spoiled(path: Path) -> st.SearchStrategy[bytes]:
    good = value_of(path)
    return fuzz.json_files(good) if path.suffix == ".json" else fuzz.line_files(good)


@pytest.mark.parametrize("file", FILES)
def test_no_file_gives_anything_but_a_report_or_an_error(file: str, finished: Path) -> None:
    with tempfile.TemporaryDirectory() as parent:
        run = Path(shutil.copytree(finished, Path(parent) / "run"))

        def report() -> None:
            found = load_run(run)
            metrics = compute_metrics(found)
            metrics_text(metrics).encode()
            document = sections.build(found, judged(found), metrics, frozenset())
            markdown.render(document).encode()

        @settings(max_examples=15, deadline=None)
        @given(spoiled(finished / file))
        def check(data: bytes) -> None:
            (run / file).write_bytes(data)
            fuzz.read_or_refused(report)

        check()


def test_no_bookkeeping_keeps_a_run_from_going_on(finished: Path) -> None:
    """Files of the run's own that may be missing or damaged: it then makes what they stood for."""
    with tempfile.TemporaryDirectory() as parent:
        run = Path(shutil.copytree(finished, Path(parent) / "run"))

        def open_and_read() -> None:
            with RunDirectory.open(run) as directory:
                directory.read_record("manifest.json", Manifest)
                assert all(row.key for row in directory.read("rows.jsonl", Row))
                directory.read("scores.jsonl", Score)

        @settings(max_examples=40, deadline=None)
        @given(
            spoiled(finished / "manifest.json"),
            spoiled(finished / "rows.jsonl"),
            st.binary(max_size=30),
        )
        def check(manifest: bytes, rows: bytes, lock: bytes) -> None:
            (run / "manifest.json").write_bytes(manifest)
            (run / "rows.jsonl").write_bytes(rows)
            (run / ".lock").write_bytes(lock)
            fuzz.read_or_refused(open_and_read)

        check()


LABELS = {"format_version": 1, "labels": {"0123": "shown", "4567": None, "89": "absent"}}


@settings(max_examples=60, deadline=None)
@given(fuzz.json_files(LABELS) | st.binary(max_size=40))
def test_no_labels_give_anything_but_verdicts_or_an_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.json"
        path.write_bytes(data)
        found = fuzz.read_or_refused(lambda: read_labels(path))
        assert set((found or {}).values()) <= {"shown", "absent", "incoherent", None}


def test_no_metrics_give_anything_but_a_card_or_an_error(finished: Path) -> None:
    good = json.loads(metrics_text(compute_metrics(load_run(finished))))
    vectors = load_vectors(finished / "vectors")
    with tempfile.TemporaryDirectory() as parent:
        run = Path(parent) / "run"
        shutil.copytree(finished / "vectors", run / "vectors")

        @settings(max_examples=40, deadline=None)
        @given(fuzz.json_files(good))
        def check(data: bytes) -> None:
            (run / "metrics.json").write_bytes(data)
            card: Callable[[], str] = lambda: model_card(  # noqa: E731
                vectors, "org/name", measured_effect(vectors, run)
            )
            text = fuzz.read_or_refused(card)
            if text is not None:
                text.encode()

        check()
