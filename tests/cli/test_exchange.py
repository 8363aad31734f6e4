"""vectors export, import and check, and bake, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import mlx_lm
import numpy as np
import pytest

from mlx_steer import load_model, load_vectors, steered
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


def test_a_baked_folder_answers_as_the_steered_model(
    run: Run, shared: Path, tmp_path: Path
) -> None:
    steering = ("--vectors", shared / "vectors", "--layer", "2", "--strength", "0.7")
    done = run("bake", "--model", shared / "model", *steering, "--out", tmp_path / "baked")
    assert done.code == 0 and "add at layer 2, strength 0.7" in done.out
    model, baked = load_model(str(shared / "model")), load_model(str(tmp_path / "baked"))
    prompt = model.chat.prompt_ids("Draw it.")
    with steered(model, load_vectors(shared / "vectors"), layer=2, strength=0.7):
        expected = mlx_lm.generate(model.network, model.tokenizer, prompt, max_tokens=12)
    assert mlx_lm.generate(baked.network, baked.tokenizer, prompt, max_tokens=12) == expected
    assert mlx_lm.generate(model.network, model.tokenizer, prompt, max_tokens=12) != expected


def test_a_direction_is_baked_out_and_what_is_left_is_said(
    run: Run, shared: Path, tmp_path: Path
) -> None:
    done = run(
        *("bake", "--model", shared / "model", "--vectors", shared / "vectors", "--layer", "2"),
        *("--operator", "ablate", "--out", tmp_path / "baked"),
    )
    assert done.code == 0
    assert "projection at every write, not ablation of one block's output" in done.err
