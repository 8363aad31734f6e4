"""Whether the behavior's judge can read its prompts, and sees the pairs as they are meant."""

from collections.abc import Iterator

from mlx_steer.behaviors import Behavior, PromptItem
from mlx_steer.checks.lint.findings import Finding, percent, severity
from mlx_steer.errors import DataError
from mlx_steer.judge import JUDGES, judge_response

_PLAIN = "This is a plain sentence that answers the question."


def check_judge(behavior: Behavior) -> Iterator[Finding]:
    """Problems that would otherwise show at the end of a run, when its rows are judged."""
    if behavior.judge not in JUDGES:
        yield Finding(
            "error",
            "judge",
            "behavior.yaml",
            f"there is no judge {behavior.judge!r}",
            f"use one of: {', '.join(JUDGES)}",
        )
        return
    unreadable: dict[str, str] = {}
    for item in behavior.prompts:
        try:
            judge_response(behavior.judge, item, _PLAIN)
        except DataError as error:
            unreadable[item.id] = str(error)
    if unreadable:
        yield Finding(
            "error",
            "judge",
            "prompts",
            f"the judge {behavior.judge} cannot judge {len(unreadable)} of {len(behavior.prompts)} "
            f"prompts: {next(iter(unreadable.values())).rstrip('.')}",
            "put the field `check` of these prompts right",
            tuple(unreadable),
        )
    for side, meant in (("positive", "shown"), ("negative", "absent")):
        yield from _side(behavior, side, meant)


def _side(behavior: Behavior, side: str, meant: str) -> Iterator[Finding]:
    otherwise: list[str] = []
    for pair in behavior.pairs:
        item = PromptItem(pair.id, pair.prompt, "target", system=pair.system, tools=pair.tools)
        try:
            judgement = judge_response(behavior.judge, item, getattr(pair, side))
        except DataError:
            return  # a judge that goes by a prompt's check finds none in a pair
        if judgement.verdict != meant:
            otherwise.append(pair.id)
    part = len(otherwise) / len(behavior.pairs)
    if part > 0.1:
        yield Finding(
            severity(part > 0.5),
            "judge",
            f"pairs, {side} side",
            f"the judge {behavior.judge} does not call {len(otherwise)} of {len(behavior.pairs)} "
            f"{side} responses ({percent(part)}) {behavior.verdict_word(meant)}",  # type: ignore[arg-type]
            "reword them or take another judge: what is extracted should be what is measured",
            tuple(otherwise),
        )
