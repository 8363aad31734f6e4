"""The report as markdown. Nothing in a prompt or a response can break the page."""

import re
from collections.abc import Iterator, Sequence

from mlx_steer.report.document import (
    Block,
    Bullets,
    Document,
    Paragraph,
    Plot,
    Quote,
    Quotes,
    Table,
)
from mlx_steer.report.wording import one_line, plain

_SPECIAL = re.compile(r"([\\`*_\[|~$]|<(?=[A-Za-z/!?])|&(?=[#A-Za-z]))")
# At the start of a block these would open a list, a heading, a quotation or a rule.
_OPENING = re.compile(r"^(?:(\d+)(?=[.)](?:\s|$))|(?=[-+=#>]))")


def render(document: Document) -> str:
    """The document as the text of report.md."""
    return "\n\n".join(_parts(document)) + "\n"


def escape(text: str) -> str:
    """Text on one line that markdown shows as it is, also at the start of a block."""
    # "1\." is how markdown writes a number that opens no list.
    return _OPENING.sub(r"\1\\", inline(text))


def inline(text: str) -> str:
    """Text on one line that markdown shows as it is, inside a table or after other text."""
    return _SPECIAL.sub(r"\\\1", one_line(text))


def fenced(text: str) -> str:
    """Text in a code block whose fence is longer than any run of backticks in the text."""
    text = plain(text).strip("\n").replace("\t", "    ")
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _parts(document: Document) -> Iterator[str]:
    yield f"# {escape(document.title)}"
    yield from map(_warning, document.warnings)
    if document.answer:
        opening = document.answer
        yield f"**{escape(opening.label)}** {inline(opening.sentence)}"
        yield _table(opening.facts)
        if opening.plot:
            yield from _block(opening.plot)
    yield from map(_warning, document.cautions)
    if document.subtitle:
        yield escape(document.subtitle)
    if document.headline:
        yield "## Key findings"
        yield _bullets(document.headline)
    for section in document.sections:
        yield f"## {escape(section.title)}"
        for block in section.blocks:
            yield from _block(block)


def _warning(text: str) -> str:
    return f"> **Warning.** {inline(text)}"


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Paragraph):
        yield escape(block.text)
    elif isinstance(block, Bullets):
        yield _bullets(block.items)
    elif isinstance(block, Table):
        yield _table(block)
    elif isinstance(block, Plot):
        yield f"![{inline(block.alt)}](plots/{block.name}.png)"
    elif isinstance(block, Quotes):
        yield f"### {escape(block.title)}"
        for quote in block.quotes:
            yield from _quote(quote)


def _bullets(items: Sequence[str]) -> str:
    return "\n".join(f"- {escape(item)}" for item in items)


def _table(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns)]
    text = [f"| {' | '.join(inline(c) for c in lines[0])} |", f"| {' | '.join(lines[1])} |"]
    for index, row in enumerate(table.rows):
        cells = [inline(cell.text) for cell in row]
        if index in table.marked:
            cells = [f"**{cell}**" if cell else cell for cell in cells]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


def _quote(quote: Quote) -> Iterator[str]:
    yield f"**{inline(quote.prompt)}** {inline(quote.about)}"
    yield fenced(quote.response)
