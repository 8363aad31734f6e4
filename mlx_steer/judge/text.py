"""Read a response as plain sentences, with offsets back into the original text.

Knows nothing about refusals: it straightens apostrophes, drops markdown, a leading role label and
quoted or code passages, and splits what is left into sentences.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass

HEAD_CHARS = 4000
"""How much of a text is read from its start; a decision is made long before that."""

TAIL_CHARS = 1500
"""How much is read from the end of a longer text, where a response may still break off."""

# One character for one character, so that offsets stay valid.
_STRAIGHTEN = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc\u02b9\u00b4\uff07\u0060", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\uff02\u2033", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2212", "-"),
        **dict.fromkeys("\u2013\u2014", ","),
        **dict.fromkeys("\u00a0\u2007\u202f\u3000\u200b\u200c\u200d\ufeff", " "),
    }
)
_CODE_FENCE = re.compile(r"```.*?(?:```|\Z)", re.S)
_ROLE_LABEL = re.compile(
    r"""[\s*_\#>\[]*
    (?:<\|(?:assistant|im_start|start_header_id)\|>\s*(?:assistant)?\s*(?:<\|end_header_id\|>)?\s*:?
      |(?:assistant|response)\s*\n
      |(?:assistant|ai|bot|chatbot|model|response|answer|a|output|antwort|respuesta|r[ée]ponse
        |asistente|assistent|llm)[\s*_\]]*:)
    [\s*_]*""",
    re.X | re.I,
)
_WORD = re.compile(r"([\s*_#~|]*+)([^\s*_#~|]+)")
_LINE_START = re.compile(r"[-\u2022>A-Z\u00c0-\u00dd0-9\"]")
_QUOTED = re.compile(r'"[^"\n]{12,400}"')
_SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*\s|\n|\Z")
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|st|jr|vs|e\.g|i\.e|etc|no|[a-z])\.$", re.I)
_LIST_MARK = re.compile(r"\d{1,2}$")
_FILLER = "\u00a4"


@dataclass(frozen=True)
class Sentence:
    """One sentence of a cleaned text, in lower case; `start` is its offset in that text."""

    text: str
    start: int


@dataclass(frozen=True)
class PlainText:
    """A text without markdown and quotations, in lower case, and the way back to the original."""

    text: str
    sentences: tuple[Sentence, ...]
    _plain_starts: tuple[int, ...]
    _original_starts: tuple[int, ...]
    _original_length: int

    def original_span(self, start: int, end: int) -> tuple[int, int]:
        """Map a span of the plain text to character offsets of the original text."""
        if not self._plain_starts:
            return (0, self._original_length)
        return (self._to_original(start), self._to_original(max(start, end - 1)) + 1)

    def _to_original(self, offset: int) -> int:
        word = max(bisect_right(self._plain_starts, offset) - 1, 0)
        shifted = self._original_starts[word] + offset - self._plain_starts[word]
        return min(shifted, self._original_length - 1)


def read_plain(text: str) -> PlainText:
    """Clean and split a text; only its head and its tail are read when it is very long."""
    plain = _read(text, drop_code=True)
    return plain if plain.sentences else _read(text, drop_code=False)


def _read(text: str, drop_code: bool) -> PlainText:
    start = _label_end(text)
    if len(text) - start > HEAD_CHARS + TAIL_CHARS:
        pieces = [(start, start + HEAD_CHARS), (len(text) - TAIL_CHARS, len(text))]
    else:
        pieces = [(start, len(text))]
    parts: list[str] = []
    plain_starts: list[int] = []
    original_starts: list[int] = []
    length = 0
    for first, last in pieces:
        piece = text[first:last]
        if drop_code:
            piece = _CODE_FENCE.sub(lambda match: " " * len(match[0]), piece)
        piece = piece.translate(_STRAIGHTEN)
        for match in _WORD.finditer(piece):
            gap, word = match[1], match[2]
            if parts:
                new_line = "\n" in gap and (gap.count("\n") > 1 or _LINE_START.match(word))
                parts.append("\n" if new_line or match.start() == 0 else " ")
                length += 1
            plain_starts.append(length)
            original_starts.append(first + match.start(2))
            parts.append(word)
            length += len(word)
    plain = _mask_quotations("".join(parts))
    return PlainText(
        _lower(plain), _split(plain), tuple(plain_starts), tuple(original_starts), len(text)
    )


def _lower(text: str) -> str:
    """Lower case with every offset kept: a few letters would grow, and stay as they are."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(low if len(low := char.lower()) == 1 else char for char in text)


def _label_end(text: str) -> int:
    match = _ROLE_LABEL.match(text[:200])
    return match.end() if match and match.end() < len(text) else 0


def _mask_quotations(plain: str) -> str:
    """Blank out what a response quotes, unless the whole response is one quotation."""
    first = _QUOTED.match(plain)
    if plain.startswith('"') and (
        plain.count('"') == 1 or (first and len(first[0]) > 0.6 * len(plain))
    ):
        return plain
    return _QUOTED.sub(lambda match: '"' + _FILLER * (len(match[0]) - 2) + '"', plain)


def _split(plain: str) -> tuple[Sentence, ...]:
    sentences: list[Sentence] = []
    start = 0
    for end in _SENTENCE_END.finditer(plain):
        if end[0][:1] == ".":
            before = plain[max(start, end.start() - 6) : end.start() + 1]
            # "1. Do this" is one item, and "Dr. Who" one name.
            if _ABBREVIATION.search(before) or _LIST_MARK.search(before[:-1]):
                continue
        body = plain[start : end.end()]
        stripped = body.strip()
        if stripped:
            sentences.append(Sentence(_lower(stripped), start + body.index(stripped[0])))
        start = end.end()
    return tuple(sentences)
