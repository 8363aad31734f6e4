"""A small run to report on, with its plots or without them."""

import pytest

from mlx_steer.report import plots, write_report
from tests.helpers.synthetic_run import CHOICE, small_run


@pytest.fixture
def folder(tmp_path):
    return small_run(tmp_path / "run").write(CHOICE)


def report_text(folder):
    return write_report(folder).markdown.read_text(encoding="utf-8")


without_plots = pytest.mark.usefixtures("no_plots")


@pytest.fixture
def no_plots(monkeypatch):
    """Most of a report's time goes into plots, which do not matter where only text is read."""
    monkeypatch.setattr(plots, "draw", lambda metrics: {})
