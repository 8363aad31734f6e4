"""behaviors list, show, new, start, lint."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_steer.cli.group import Group
from mlx_steer.cli.options import TEXT
from mlx_steer.words import PromptSet, Split, Verdict

if TYPE_CHECKING:
    from mlx_steer.behaviors import Behavior, Tool
    from mlx_steer.checks.lint import LintReport

_VERDICTS: tuple[Verdict, ...] = ("shown", "absent", "incoherent")
_SETS: tuple[PromptSet, ...] = ("target", "other", "borderline")
_SPLITS: tuple[Split, ...] = ("select", "test", "gate")


@click.group(cls=Group)
def behaviors() -> None:
    """Look at behaviors, start one of your own, and check it."""


@behaviors.command("list", short_help="Print the shipped behaviors.")
def list_() -> None:
    """Print the shipped behaviors, and the shelf of two-sentence ones."""
    from rich.table import Table

    from mlx_steer.behaviors import list_behaviors, load_behavior
    from mlx_steer.behaviors.two_sentences import shelf
    from mlx_steer.cli.output import console

    table = Table("name", "title", "pairs", *_SPLITS, caption="select, test, gate: prompts")
    table.columns[0].no_wrap = True
    for name in list_behaviors():
        found = load_behavior(name)
        counts = [str(sum(item.split == split for item in found.prompts)) for split in _SPLITS]
        table.add_row(name, found.title, str(len(found.pairs)), *counts)
    console().print(table)
    on_shelf = Table("name", "title", "what to expect", title="Two sentences", title_justify="left")
    on_shelf.columns[0].no_wrap = True
    for one in shelf():
        on_shelf.add_row(one.name, one.title, one.expect)
    console().print(on_shelf)
    click.echo("Try one: mlx-steer run --model smollm2-135m --name pirate")


@behaviors.command()
@click.argument("name")
def show(name: str) -> None:
    """Print a behavior: NAME is shipped, on the shelf, or a folder."""
    from mlx_steer.behaviors import load_behavior
    from mlx_steer.behaviors.two_sentences import behavior_of, from_shelf
    from mlx_steer.cli.output import safe

    on_shelf = from_shelf(name)
    for line in _described(behavior_of(on_shelf) if on_shelf else load_behavior(name)):
        click.echo(safe(line))


@behaviors.command(short_help="Write a FOLDER with a behavior of your own.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--from", "source", metavar="NAME", help="Copy a behavior instead of the example.")
def new(folder: Path, source: str | None) -> None:
    """Write a FOLDER with a behavior of your own to edit, and an experiment with it."""
    from mlx_steer.behaviors.start import EXPERIMENT_FILE, place_of, write_new_behavior

    behavior, place = write_new_behavior(folder, source), place_of(folder)
    click.echo(
        f"{place} holds the behavior {behavior.name}: edit behavior.yaml, pairs.jsonl and "
        "prompts.jsonl,\n"
        f"check it with: mlx-steer behaviors lint {shlex.quote(place)}\n"
        f"and try it with: mlx-steer run {shlex.quote(f'{place}/{EXPERIMENT_FILE}')}"
    )


@behaviors.command(short_help="Write a FOLDER of two sentences to edit.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--positive", required=True, metavar="SENTENCE", type=TEXT, help="To lead to.")
@click.option("--negative", required=True, metavar="SENTENCE", type=TEXT, help="To lead away from.")
def start(folder: Path, positive: str, negative: str) -> None:
    """Write a FOLDER with a behavior of two opposed sentences to edit, and an experiment with it.

    It holds the questions that are asked; the model writes the contrast pairs when it is run.
    """
    from mlx_steer.behaviors.start import EXPERIMENT_FILE, place_of, write_two_sentences

    behavior, place = write_two_sentences(folder, positive, negative), place_of(folder)
    click.echo(
        f"{place} holds the behavior {behavior.name}: edit behavior.yaml and prompts.jsonl,\n"
        f"check it with: mlx-steer behaviors lint {shlex.quote(place)}\n"
        f"and try it with: mlx-steer run {shlex.quote(f'{place}/{EXPERIMENT_FILE}')}"
    )


@behaviors.command(short_help="Check a behavior for what spoils vectors and rates.")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def lint(name: str, as_json: bool) -> None:
    """Check a behavior for what spoils vectors and rates; NAME is a shipped one or a folder.

    Looks for sides of unequal length or style, duplicates, pairs that leak into prompts, and pairs
    that the behavior's own judge reads otherwise. Exit code 1 on errors.
    """
    from mlx_steer.behaviors import load_behavior
    from mlx_steer.checks.lint import lint_behavior
    from mlx_steer.cli.output import safe

    report = lint_behavior(load_behavior(name))
    if as_json:
        counts = {"errors": len(report.errors), "warnings": len(report.warnings)}
        click.echo(json.dumps({**asdict(report), **counts}, indent=2))
    else:
        for line in _findings(report):
            click.echo(safe(line))
    if report.errors:
        sys.exit(1)


def _described(found: Behavior) -> list[str]:
    words = ", ".join(f"{found.verdict_word(verdict)} ({verdict})" for verdict in _VERDICTS)
    sets = ", ".join(f"{word} ({name})" for name, word in found.sets.items())
    lines = [
        f"{found.name}: {found.title}",
        found.description.strip(),
        "",
        f"judge: {found.judge}",
        f"verdicts: {words}",
        f"sets: {sets}",
        f"contrast pairs: {len(found.pairs)} (sha256 {found.sha256})"
        if found.sentences is None
        else "contrast pairs: written by the model, under the two system prompts below",
    ]
    for name in _SETS:
        counts = {split: len(found.select(name, split)) for split in _SPLITS}
        if any(counts.values()):
            shown = ", ".join(f"{split} {count}" for split, count in counts.items() if count)
            lines.append(f"{found.set_word(name)} prompts: {shown}")
    if found.tools:
        lines.append(f"tools: {', '.join(map(_tool_name, found.tools))}")
    for short, text in found.system_prompts.items():
        lines += ["", f"system prompt {short}:", f"  {text.strip()}"]
    for pair in found.pairs[:: max(1, len(found.pairs) // 3)][:3]:
        lines += ["", f"{pair.id}: {pair.prompt}"]
        lines += [f"  system: {pair.system}"] if pair.system else []
        lines += [f"  + {_indented(pair.positive)}", f"  - {_indented(pair.negative)}"]
    return lines


def _findings(report: LintReport) -> list[str]:
    numbers = report.numbers
    lines = [
        f"{report.behavior}: {numbers['pairs']} pairs of {numbers['positive_characters']} "
        f"(positive) and {numbers['negative_characters']} (negative) characters on average, in no "
        f"pair more than {100 * numbers['largest_pair_difference']:.0f} % apart"
    ]
    for group, about in numbers["prompts"].items():
        lines.append(f"  {group}: {about['count']} prompts of {about['characters']} characters")
    for finding in report.findings:
        ids = ", ".join(finding.ids[:6]) + (", ..." if len(finding.ids) > 6 else "")
        place = f"{finding.where}: {ids}" if ids else finding.where
        lines += ["", f"{finding.severity} ({finding.rule}) in {place}", f"  {finding.message}"]
        lines.append(f"  -> {finding.advice}")
    lines += ["", f"{_count(report.errors, 'error')}, {_count(report.warnings, 'warning')}"]
    return lines


def _count(items: tuple[object, ...], word: str) -> str:
    return f"{len(items)} {word}" + ("" if len(items) == 1 else "s")


def _tool_name(tool: Tool) -> str:
    function = tool.get("function")
    return str(function.get("name")) if isinstance(function, dict) else "?"


def _indented(text: str) -> str:
    return text.replace("\n", "\n    ")
