"""What docs/server.md tells to send is answered, by a tiny model with the layers that it names."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_steer.serve.catalog import Catalog, Offered
from mlx_steer.serve.completions import Service
from mlx_steer.vectors import SteeringVector, SteeringVectorSet
from tests.helpers.serving import listening, living
from tests.helpers.tiny import HIDDEN, random_vector, tiny_model
from tests.helpers.vector_sets import metadata

PAGE = Path(__file__).parents[2] / "docs" / "server.md"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    model = tiny_model(num_hidden_layers=16)
    about = metadata(hidden_size=HIDDEN, num_layers=16)
    vectors = SteeringVectorSet([SteeringVector(15, random_vector(1), 20.0)], about)
    catalog = Catalog(Offered("smollm2-135m", HIDDEN, 16), {"refusal": vectors})
    with (
        living(model) as scheduler,
        listening(Service(scheduler, model.chat, catalog, model.context)) as found,
    ):
        yield found


def blocks(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_curl_commands_are_answered(address: str) -> None:
    scripts = [block for block in blocks("bash") if block.startswith("curl")]
    assert len(scripts) == 2
    for script in scripts:
        here = script.replace("http://localhost:8080", address)
        done = subprocess.run(["bash", "-euc", here], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert '"error"' not in done.stdout


def test_the_python_runs(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(block.replace("http://localhost:8080", address), names)
    printed = capsys.readouterr().out
    assert "'steered': True" in printed and len(printed) > 100
