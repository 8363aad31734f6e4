import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

# The tests' products are tiny, and `make test` runs one worker a core: threads would only get into
# each other's way. The first is OpenBLAS's (under MLX and numpy), the second PyTorch's.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

import mlx_steer  # noqa: F401  (before mlx: it puts OpenBLAS in front of it)
from mlx_steer.engine import speed
from tests.helpers.browser import chromium
from tests.helpers.command import Run, runner

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

# Runs of tests are neither timed for anyone nor kept: two steps of each kind say how fast they
# are, and nothing need be forced to disk.
speed.MOST_STEPS = 2
os.fsync = lambda handle: None

# A slow machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `mlx-steer` with its arguments in this process."""
    return runner(monkeypatch, capsys)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[WebDriver]":
    """Headless Chromium; where it is missing, the test is skipped."""
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver
