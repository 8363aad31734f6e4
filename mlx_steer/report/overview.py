"""One page of several runs' answers: assess.md and assess.html, which open with a table."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from mlx_steer.errors import RunError
from mlx_steer.files import write_beside
from mlx_steer.report.first_screen import PLOT, FirstScreen
from mlx_steer.report.markdown import escape, inline
from mlx_steer.report.wording import one_line


@dataclass(frozen=True)
class Assessed:
    """A behavior's answer, or why there is none.

    Attributes:
        title: The behavior's.
        folder: The run directory, beside the page; None if nothing was run.
        first: What its report opens with.
        problem: Why there is no answer.
    """

    title: str
    folder: str | None = None
    first: FirstScreen | None = None
    problem: str = ""

    @property
    def verdict(self) -> str:
        """One sentence."""
        return self.first.label if self.first else f"No answer: {one_line(self.problem)}"

    def fact(self, what: str) -> str:
        """A line of the answer's table; empty if there is none."""
        return dict(self.first.facts).get(what, "") if self.first else ""

    @property
    def change(self) -> str:
        """How the target rate changes."""
        return self.first.facts[1][1] if self.first else ""


COLUMNS = ("behavior", "answer", "where", "target rate", "price", "system prompt instead")


def cells(one: Assessed) -> tuple[str, ...]:
    """A behavior's line of the table, under `COLUMNS`."""
    facts = (one.fact("where"), one.change, one.fact("price"), one.fact("system prompt instead"))
    return (one.title, one.verdict, *facts)


def write_overview(folder: Path, model: str, every: Sequence[Assessed]) -> Path:
    """Write assess.md and assess.html into a folder; returns the page.

    Raises:
        RunError: If the folder cannot be written.
    """
    title = one_line(f"Does steering work on {model}?")
    lines = [f"# {escape(title)}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(map(inline, cells(one)))} |" for one in every]
    for one in every:
        lines += ["", f"## {escape(one.title)}", "", escape(one.verdict)]
        if one.first and one.folder:
            lines += [inline(one.first.sentence), "", f"![]({one.folder}/plots/{PLOT}.png)", ""]
            lines += [f"- {inline(finding)}" for finding in one.first.findings]
            lines += ["", f"All numbers: [{one.folder}/report.md]({one.folder}/report.md)"]
    pictures = {one.folder: _picture(folder / one.folder) for one in every if one.folder}
    environment = Environment(
        loader=PackageLoader("mlx_steer.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("overview.html.j2").render(
        title=title, columns=COLUMNS, every=every, cells=cells, pictures=pictures
    )
    try:
        write_beside(folder / "assess.md", ("\n".join(lines) + "\n").encode())
        write_beside(folder / "assess.html", page.encode())
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror or error}") from error
    return folder / "assess.html"


def _picture(run: Path) -> str | None:
    try:
        data = (run / "plots" / f"{PLOT}.png").read_bytes()
    except OSError:
        return None
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
