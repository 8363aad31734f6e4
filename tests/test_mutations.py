"""Mistakes on purpose (scripts/mutations.py): they can still be made, and tests notice them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts.mutations import MUTATIONS, ROOT, Mutation, copied, run_tests

every = pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)


@every
def test_a_mistake_can_be_made(mutation: Mutation, tmp_path: Path) -> None:
    copy = tmp_path / mutation.file
    copy.parent.mkdir(parents=True)
    shutil.copy(ROOT / mutation.file, copy)
    mutation.apply(tmp_path)
    assert copy.read_text(encoding="utf-8") != (ROOT / mutation.file).read_text(encoding="utf-8")
    assert all((ROOT / test).is_file() for test in mutation.tests)


@pytest.mark.slow
@every
def test_a_mistake_is_noticed(mutation: Mutation, tmp_path: Path) -> None:
    root = copied(tmp_path)
    mutation.apply(root)
    assert run_tests(root, mutation.tests).failed
