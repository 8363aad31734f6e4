"""Every command and every line of Python in a model card is run, and all four ways agree."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mlx_steer import load_model
from mlx_steer.gguf_header import read_header
from mlx_steer.vectors import SteeringVector, SteeringVectorSet, load_vectors
from mlx_steer.vectors.exchange.formats import ImportOptions, read_foreign
from mlx_steer.vectors.model_card import model_card
from mlx_steer.vectors.share import push_vectors
from tests.helpers.command import Run, runner
from tests.helpers.hub_stand_in import WRITER, log_in, running_hub
from tests.helpers.tiny import HIDDEN, LAYERS, random_vector, tiny_folder
from tests.helpers.vector_sets import vector_set

NAME, LAYER = "org/refusal-tiny", 3


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(monkeypatch, capsys)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The card of vectors on the hub; commands are run in an empty folder beside the model."""
    monkeypatch.chdir(tmp_path)
    info = load_model(str(tiny_folder("llama", Path("model")))).info
    metadata = vector_set((1,), hidden_size=HIDDEN, num_layers=LAYERS, model=info).metadata
    vector = SteeringVector(LAYER, random_vector(LAYER), 10.0)
    with running_hub(monkeypatch, tmp_path / "cache") as hub:
        log_in(monkeypatch, WRITER)
        SteeringVectorSet([vector], metadata).save("mine")
        push_vectors(Path("mine"), NAME)
        yield hub.repos[NAME].files["README.md"].decode()


def blocks(card: str) -> list[tuple[str, str]]:
    return re.findall(r"```(\w+)\n(.*?)```", card, flags=re.S)


def executed(code: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    exec(compile(code, "card", "exec"), {"__name__": "card"})
    return capsys.readouterr().out.strip()


@pytest.mark.slow
def test_what_the_card_says_can_be_done_as_it_stands_there(
    card: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    said: dict[str, str] = {}
    for language, text in blocks(card):
        if language == "python":
            said["pytorch" if "import torch" in text else "mlx"] = executed(text, capsys)
            continue
        for line in text.strip().splitlines():
            program, *arguments = shlex.split(line)
            if program == "mlx-steer":
                done = run(*arguments)
                assert done.code == 0, done.err
                said[f"mlx-steer {arguments[0]}"] = done.out
            elif program == "mlx_lm.generate":
                command = [sys.executable, "-m", "mlx_lm", "generate", *arguments]
                said["baked"] = subprocess.run(
                    command, check=True, capture_output=True, text=True
                ).stdout
            else:
                # llama-cli is not at hand; test_llama_cpp shows what it does with such a file.
                assert program == "llama-cli"
                file = Path(arguments[arguments.index("--control-vector") + 1])
                found = read_foreign(file, ImportOptions()).arrays
                expected = load_vectors("vectors/refusal-tiny")[LAYER].array
                assert np.array_equal(found[LAYER], expected)
                assert read_header(file).tensors.keys() == {f"direction.{LAYER}"}

    # One prompt, one vector, and the same words whichever way.
    words = plain(said["mlx"])[:60]
    assert len(words) == 60
    assert plain(said["pytorch"]).startswith(words)
    assert words in plain(said["baked"])
    assert f"layer {LAYER}, strength 1" in said["mlx-steer generate"]


def plain(text: str) -> str:
    """Without special tokens, which some decoders print and others leave out."""
    return re.sub(r"<\|?\w+\|?>", "", text)


def test_a_card_offers_only_what_the_vectors_can_do() -> None:
    plain = model_card(vector_set((0,)), "refusal")
    assert "cannot hold these of layer 0" in plain and "llama-cli" not in plain
    assert "vectors pull" not in plain  # it is not on the hub
    qwen = vector_set().metadata.model.model_copy(update={"model_type": "qwen2"})
    assert "mlx-steer bake" in plain
    assert "mlx-steer bake" not in model_card(vector_set(model=qwen), "refusal")
    packed = qwen.model_copy(update={"quantization": {"bits": 4}})
    assert "needs the original weights" in model_card(vector_set(model=packed), "refusal")
    adapted = qwen.model_copy(update={"id": "org/big + poet"})
    assert "import torch" not in model_card(vector_set(model=adapted), "refusal")
