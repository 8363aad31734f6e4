"""report.html: one file that works offline, with a browser of all responses.

Text is escaped by jinja2; responses travel as JSON inside a script element that is not run, and
the page's own script puts them into text nodes.
"""

import base64
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from functools import cache
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined

from mlx_steer.files import CONTROL, TURNING
from mlx_steer.metrics.measure import ScoredRun
from mlx_steer.metrics.verdicts import Scored
from mlx_steer.report.document import Document
from mlx_steer.run.reader import RunData
from mlx_steer.run.records import ConditionRecord
from mlx_steer.words import PromptSet, Verdict

SETS: tuple[PromptSet, ...] = ("target", "other", "borderline")
# What ends a script element or a line of script, control characters, and marks that turn the
# direction of what follows.
_NOT_AS_THEY_ARE = re.compile(rf"[<>&{CONTROL}{TURNING}\u2028\u2029]")

VERDICTS: tuple[Verdict, ...] = ("shown", "absent", "incoherent")


def render(
    document: Document,
    run: RunData,
    scored: Mapping[str, Scored],
    pictures: Mapping[str, bytes],
    chosen: Collection[str],
) -> str:
    """The text of report.html.

    Args:
        document: The report.
        run: The run, for its responses.
        scored: Their verdicts.
        pictures: PNG bytes of the plots by name.
        chosen: The conditions the report is about.
    """
    images = {
        name: f"data:image/png;base64,{base64.b64encode(data).decode()}"
        for name, data in pictures.items()
    }
    template = _environment().get_template("page.html.j2")
    return template.render(
        document=document,
        images=images,
        data=script_json(browser_data(run, scored, chosen)),
        link=_link,
        unbroken=_unbroken,
        kind=lambda block: type(block).__name__,
    )


def browser_data(
    run: RunData, scored: Mapping[str, Scored], chosen: Collection[str]
) -> dict[str, object]:
    """What the response browser shows, in lists that refer to one another by index."""
    conditions = ScoredRun(run, scored).ordered
    cells = {(_gated(c), c.layer, c.strength) for c in conditions if c.name in chosen}
    keys = sorted(scored)
    place = {key: index for index, key in enumerate(keys)}
    rules = sorted({s.judgement.rule for s in scored.values()})
    asked = {p for c in run.conditions for p, key in c.rows.items() if key in place}
    prompts = [item for prompt_id, item in run.prompts.items() if prompt_id in asked]
    number = {item.id: index for index, item in enumerate(prompts)}
    digest = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]
    behavior = run.behavior
    return {
        "run": run.config.name,
        # Rows are known by their content: the same run at another place keeps its labels.
        "store": f"mlx-steer labels {digest}",
        "verdicts": {v: behavior.verdict_word(v) for v in VERDICTS},
        "sets": {s: behavior.set_word(s) for s in SETS},
        "rules": rules,
        "prompts": [
            {
                "id": item.id,
                "set": item.set,
                "split": item.split,
                "category": item.category,
                "text": item.prompt,
                "system": item.system,
            }
            for item in prompts
        ],
        "conditions": [
            {
                "name": c.name,
                # Shown first: what the findings speak of.
                "main": c.kind in ("base", "prompt")
                or (not c.is_control and (_gated(c), c.layer, c.strength) in cells),
                "rows": sorted(
                    [number[p], place[key]] for p, key in c.rows.items() if key in place
                ),
                # Rows are shared with other conditions; whether the gate opened is this one's.
                "gates": sorted(
                    [number[p], int(bool(c.opened(p))), [round(s, 2) for s in scores]]
                    for p, key in c.rows.items()
                    if key in place and (scores := c.scores(p)) is not None
                ),
            }
            for c in conditions
        ],
        "rows": [_row(run, key, scored[key], rules) for key in keys],
    }


def _gated(condition: ConditionRecord) -> bool:
    return bool(condition.gates)


def _row(run: RunData, key: str, scored: Scored, rules: list[str]) -> list[object]:
    text = run.rows[key].text
    start, end = (_utf16(text, offset) for offset in scored.judgement.span)
    perplexity = scored.perplexity
    return [
        key,
        text,
        VERDICTS.index(scored.judgement.verdict),
        rules.index(scored.judgement.rule),
        start,
        end,
        None if scored.human is None else VERDICTS.index(scored.human),
        round(scored.coherence, 2),
        None if perplexity is None else float(f"{perplexity:.3g}"),
    ]


def _utf16(text: str, offset: int) -> int:
    """A character offset as JavaScript counts: characters beyond U+FFFF are two."""
    return offset + sum(char > "\uffff" for char in text[:offset])


def script_json(value: object) -> str:
    """JSON that nothing can break out of, inside a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _NOT_AS_THEY_ARE.sub(lambda m: f"\\u{ord(m.group()):04x}", text)


def _link(rows: Mapping[str, str]) -> str:
    return f"#rows?{urlencode(rows)}"


def _unbroken(text: str) -> str:
    """Text whose numbers are not torn from their units at the end of a line."""
    return text.replace(" = ", "\u00a0=\u00a0").replace(" %", "\u00a0%")


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("mlx_steer.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
