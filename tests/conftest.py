import os

# The tests' products are tiny, and `make test` runs one worker a core: threads would only get into
# each other's way. The first is OpenBLAS's (under MLX and numpy), the second PyTorch's.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

import mlx_steer  # noqa: F401  (before mlx: it puts OpenBLAS in front of it)
from tests.helpers.command import Run, runner

# A slow machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `mlx-steer` with its arguments in this process."""
    return runner(monkeypatch, capsys)
