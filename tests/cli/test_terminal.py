"""What a file or a model says can neither steer the terminal nor be taken for markup."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mlx_steer.serve.speech import Speech
from mlx_steer.vectors import SteeringVectorSet, load_vectors
from tests.helpers import behaviors, small_run
from tests.helpers.command import Run
from tests.helpers.tiny import tiny_folder
from tests.helpers.vector_sets import metadata, vector_set

EVIL = "\x1b[2J\x1b]0;title\x07 \u202egnp.exe\u2069 \x9b31m \x7f\x00\r [/red] [bold]x"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def named(path: Path, name: str) -> Path:
    plain = vector_set((4,))
    SteeringVectorSet(list(plain.values()), metadata(behavior=name)).save(path)
    assert load_vectors(path).metadata.behavior == name
    return path


def test_names_of_vectors_are_shown_and_not_obeyed(run: Run, tmp_path: Path) -> None:
    # Control characters are refused when vectors are loaded; marks of direction and brackets not.
    a, b = named(tmp_path / "a", "[/red] \u202eevil"), named(tmp_path / "b", "[bold]x")
    for arguments in (["show", a], ["cosine", a, b], ["compare", a, b]):
        result = run("vectors", *arguments)
        assert result.code == 0, result.err
        assert not CONTROL.search(result.out + result.err)
    assert "[/red] \\x202eevil, [bold]x" in run("vectors", "cosine", a, b).out


def test_responses_are_shown_and_not_obeyed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = small_run.shared_folder(tmp_path)
    # A model that writes nothing else, in pieces.
    monkeypatch.setattr(Speech, "add", lambda self, token: EVIL[:9])
    monkeypatch.setattr(Speech, "rest", lambda self: EVIL[9:])
    common = ["--model", shared / "model", "--vectors", shared / "vectors", "--layer", "2"]
    for more in (["--steered-only"], []):
        result = run("generate", *common, *more, "--max-tokens", "2", "Draw it.")
        assert result.code == 0, result.err
        assert not CONTROL.search(result.out + result.err)
        assert "\\x1b[2J" in result.out
        assert "[bold]x" in result.out


def test_the_report_holds_no_control_characters_of_a_response(run: Run, tmp_path: Path) -> None:
    folder = small_run.shared_folder(tmp_path) / "run"
    rows = (folder / "rows.jsonl").read_text().splitlines()

    rows = [json.dumps({**json.loads(row), "text": EVIL + "</script><b>"}) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    result = run("report", folder)
    assert result.code == 0, result.err
    for name in ("report.html", "report.md"):
        text = (folder / name).read_bytes().decode()
        found = re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
        assert found is None, (name, text[found.start() - 60 : found.end() + 20])
    # In the Markdown it stands in a fence, which is text.
    assert "</script><b>" not in (folder / "report.html").read_text()


def test_a_model_folders_tokenizer_code_is_never_asked_about(tmp_path: Path, run: Run) -> None:
    """Planning loads the tokenizer: transformers would ask on the terminal for its code."""

    folder = tiny_folder("llama", tmp_path / "model")
    path = folder / "tokenizer_config.json"
    changed = {**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": ["evil.T", None]}}
    changed["tokenizer_class"] = "NoSuchTokenizer"
    path.write_text(json.dumps(changed))
    (folder / "evil.py").write_text("raise SystemExit('planted code has run')\n")
    behavior = behaviors.behavior_folder(tmp_path / "behavior")
    config = tmp_path / "x.yaml"
    config.write_text(json.dumps(small_run.settings(folder, behavior)))
    result = run("plan", config)
    assert "planted" not in result.out + result.err
    assert "Do you wish to run the custom code" not in result.out + result.err
