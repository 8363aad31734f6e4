"""The report as data: sections of paragraphs, lists, tables, plots and quoted responses.

Both report.md and report.html are written from it, so that they say the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cell:
    """One table cell.

    Attributes:
        text: Plain text.
        rows: The rows behind a number, as filters of the response browser: condition, split, set
            and verdict.
    """

    text: str
    rows: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Table:
    """A table; `marked` are the indices of rows to stand out, such as the chosen cell."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences or facts."""

    items: Sequence[str]


@dataclass(frozen=True)
class Plot:
    """A picture under plots/, with what it shows in words."""

    name: str
    alt: str


@dataclass(frozen=True)
class Quote:
    """One response, with its prompt and verdict."""

    prompt: str
    about: str
    response: str


@dataclass(frozen=True)
class Quotes:
    """Responses of one condition."""

    title: str
    quotes: Sequence[Quote]


Block = Paragraph | Bullets | Table | Plot | Quotes


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Opening:
    """The verdict, what it rests on, a small table and one picture.

    Attributes:
        tone: good, bad or open.
        label: The verdict as a sentence.
        sentence: What it rests on.
        facts: Of two columns.
        plot: The picture; None if it was not drawn.
    """

    tone: str
    label: str
    sentence: str
    facts: Table
    plot: Plot | None


@dataclass(frozen=True)
class Document:
    """The whole report.

    Attributes:
        title: Its heading.
        subtitle: One line under it.
        answer: What it opens with; None for a run without an answer.
        warnings: What a reader must know before any number.
        cautions: What a reader must know of the answer.
        headline: What was found, in sentences: beside an answer, at most five.
        sections: In order.
    """

    title: str
    subtitle: str
    answer: Opening | None
    warnings: Sequence[str]
    cautions: Sequence[str]
    headline: Sequence[str]
    sections: Sequence[Section] = field(default_factory=tuple)
