"""vectors export, import and check, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mlx_steer.vectors import load_vectors
from tests.helpers.command import Run
from tests.helpers.small_run import shared_folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_folder(tmp_path_factory.mktemp("good"))


def test_vectors_go_out_scaled_and_come_back(run: Run, shared: Path, tmp_path: Path) -> None:
    out, back = tmp_path / "x.gguf", tmp_path / "back"
    done = run(
        *("vectors", "export", shared / "vectors", "--format", "gguf", "--layers", "2"),
        *("--strength", "0.5", out),
    )
    assert (done.code, done.out) == (0, f"{out}: layers 2 at strength 0.5\n")
    done = run("vectors", "import", out, "--out", back)
    assert done.code == 0 and "imported from x.gguf (llama.cpp control vector)" in done.out
    ours, theirs = load_vectors(shared / "vectors"), load_vectors(back)
    assert np.array_equal(theirs[2].array, (ours * 0.5)[2].array)
    assert run("vectors", "show", back, "--json").code == 0
    assert run("vectors", "compare", shared / "vectors", back).code == 0


def test_vectors_of_unknown_making_are_shown_without_relative_doses(
    run: Run, shared: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import save_file

    save_file({"layer_5": np.ones(64, np.float32)}, tmp_path / "evil.safetensors")
    done = run(
        *("vectors", "import", tmp_path / "evil.safetensors", "--out", tmp_path / "v"),
        *("--model", shared / "model"),
    )
    assert done.code == 0
    assert "imported from evil.safetensors (safetensors); unknown" in done.out
    own = json.loads((tmp_path / "v" / "metadata.json").read_text())
    assert own["layers"]["5"]["hidden_norm"] is None
    assert own["model"]["id"] == str(shared / "model")
    checked = run("vectors", "check", tmp_path / "v", "--model", shared / "model")
    assert checked.code == 0 and "the very weights they are for" in checked.out
    steered = run(
        *("generate", "--model", shared / "model", "--vectors", tmp_path / "v", "--layer", "5"),
        *("--max-tokens", "4", "Hello."),
    )
    assert steered.code == 0


def test_check_says_what_is_not_the_same(run: Run, shared: Path, tmp_path: Path) -> None:
    from tests.helpers.tiny import tiny_folder

    other = tiny_folder("llama", tmp_path / "other", seed=1)
    checked = run("vectors", "check", shared / "vectors", "--model", other)
    assert checked.code == 0
    assert "6 layers of 64; the shape fits" in checked.out
    assert "directions may differ" in checked.err
