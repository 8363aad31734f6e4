"""Put known mistakes into a copy of the package, one at a time, and show which tests notice.

    python scripts/mutations.py

Each is a mistake that toolkits of this kind have made. The copy is tested as it is first, so that a
failing test means the mistake and nothing else. Exit code 1 if a mistake goes unnoticed; a text to
change that is no longer there is an error: move the mutation to where the code has gone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import click

ROOT = Path(__file__).parents[1]
COPIED = ("mlx_steer", "tests", "scripts", "configs", "docs", "pyproject.toml", "README.md")
# The rest of a mistake's failures would only take time.
_ENOUGH = 3


@dataclass(frozen=True)
class Mutation:
    """A mistake.

    Attributes:
        name: What is wrong then.
        file: The file it is made in, from the repository's root.
        edits: Texts that stand there exactly once, and what is put in their place.
        tests: Files of tests that should notice.
    """

    name: str
    file: str
    edits: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]

    def apply(self, root: Path) -> None:
        """Make the mistake in a copy of the repository.

        Raises:
            click.ClickException: If a text is not there exactly once.
        """
        path = root / self.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        for old, new in self.edits:
            if text.count(old) != 1:
                raise click.ClickException(
                    f"{self.name}: {self.file} should hold this once and holds it "
                    f"{text.count(old)} times; adapt the mutation to the code:\n{old}"
                )
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")


MUTATIONS = (
    Mutation(
        "rotary permutation of GGUF files left out",
        "mlx_steer/model/gguf/weights.py",
        (("return pairs.swapaxes(1, 2).reshape(array.shape)", "return array"),),
        ("tests/model/test_gguf.py",),
    ),
    Mutation(
        "layer off by one",
        "mlx_steer/engine/steering.py",
        (("chosen = [blocks[i] for", "chosen = [blocks[(i + 1) % len(blocks)] for"),),
        ("tests/oracle/test_hugging_face.py", "tests/oracle/test_reference.py"),
    ),
    Mutation(
        "vector added before the block, not after it",
        "mlx_steer/engine/steering.py",
        (
            (
                "        out = site.replay",
                "        if site.plan is not None:\n"
                "            args = (site.plan(args[0]), *args[1:])\n"
                "        out = site.replay",
            ),
            ("        if site.plan is not None:\n            hidden = site.plan(hidden)\n", ""),
        ),
        ("tests/oracle/test_hugging_face.py", "tests/oracle/test_reference.py"),
    ),
    Mutation(
        "second begin-of-sequence token",
        "mlx_steer/model/chat.py",
        (
            (
                "self.tokenizer.encode(text, add_special_tokens=False)",
                "self.tokenizer.encode(text, add_special_tokens=True)",
            ),
        ),
        ("tests/model/test_chat.py", "tests/oracle/test_hugging_face.py"),
    ),
    Mutation(
        "padding on the left where the caches expect it on the right",
        "mlx_steer/engine/forward.py",
        (("list(s) + [0] * (longest - len(s))", "[0] * (longest - len(s)) + list(s)"),),
        ("tests/engine/test_batching.py", "tests/oracle/test_hugging_face.py"),
    ),
    Mutation(
        "float32 vector on a bfloat16 stream",
        "mlx_steer/engine/row_plan.py",
        (("hidden + self.shift.astype(hidden.dtype)", "hidden.astype(mx.float32) + self.shift"),),
        ("tests/oracle/test_dtype.py",),
    ),
    Mutation(
        "strength applied twice",
        "mlx_steer/engine/operators.py",
        (("added += item.strength * vector", "added += item.strength**2 * vector"),),
        ("tests/engine/test_steering.py", "tests/oracle/test_reference.py"),
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What the tests said: how many passed, and the names of those that failed."""

    passed: int
    failed: tuple[str, ...]


def run_tests(root: Path, tests: Sequence[str]) -> Outcome:
    """Run tests of a copy of the repository, the slow ones left out.

    Raises:
        click.ClickException: If they cannot be run at all, which proves nothing.
    """
    report = root / "junit.xml"
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    options = ["-q", "-m", "not slow", "-p", "no:cacheprovider", f"--maxfail={_ENOUGH}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", *tests],
        cwd=root,
        # Python tells a changed file by its size and its second of change, which may be the same.
        env={**own, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1):
        raise click.ClickException(f"the tests cannot be run:\n{done.stdout[-3000:]}")
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [c for c in cases if any(c.find(how) is not None for how in ("failure", "error"))]
    return Outcome(len(cases) - len(failed), tuple(str(case.get("name")) for case in failed))


def copied(parent: Path) -> Path:
    """A copy of the repository, as far as tests need it."""
    root = parent / "copy"
    root.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, root / name, ignore=ignored)
        else:
            shutil.copy(source, root / name)
    return root


@click.command(help=__doc__)
def main() -> None:
    """See the module."""
    with tempfile.TemporaryDirectory() as parent:
        root = copied(Path(parent))
        every = sorted({test for mutation in MUTATIONS for test in mutation.tests})
        sound = run_tests(root, every)
        if sound.failed:
            raise click.ClickException(f"without any mistake these fail: {', '.join(sound.failed)}")
        click.echo(f"Without a mistake {sound.passed} tests pass.\n")
        click.echo("| mistake | noticed | first by |\n|---|---|---|")
        unnoticed = 0
        for mutation in MUTATIONS:
            original = (root / mutation.file).read_text(encoding="utf-8")
            mutation.apply(root)
            found = run_tests(root, mutation.tests).failed
            (root / mutation.file).write_text(original, encoding="utf-8")
            unnoticed += not found
            first = f"`{found[0].partition('[')[0]}`" if found else ""
            click.echo(f"| {mutation.name} | {'yes' if found else 'NO'} | {first} |")
    sys.exit(1 if unnoticed else 0)


if __name__ == "__main__":
    main()
