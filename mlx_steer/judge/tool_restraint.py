"""Does a response answer directly (shown), or does it call a tool (absent)?

Finds calls as models write them: Hermes `<tool_call>`, Mistral `[TOOL_CALLS]` and `name[ARGS]`,
Llama `<|python_tag|>`, bare JSON and function-call text that name an offered tool, whole or cut
off. A tool mentioned in prose is no call, nor is an example of a call the user asked to see. Knows
nothing about whether the tool would have been needed.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

from mlx_steer.behaviors import PromptItem, Tool
from mlx_steer.judge.judgement import Judgement

_CHARS_READ = 20_000
_ARGS_CHARS = 2_000

# Each opens a call whatever it names: no person writes these in an answer, outside of code.
_MARKERS = (
    (
        "hermes",
        re.compile(
            r"""<tool_calls?>\s*(?:[{\[]|<function|[\w.-]+\s*(?:\(|\{|\n\s*[{<]))
            |^[ \t]*<tool_calls?>?\s*\Z""",
            re.X | re.M,
        ),
    ),
    (
        "mistral",
        re.compile(
            r"""\[TOOL_CALLS\]\s*(?:[{\[]|[\w.-]+\s*(?:\[ARGS\]|\[CALL_ID\]|\{|\())
            |^[ \t]*\[TOOL_CALLS\]\s*[\w.-]*\s*\Z""",
            re.X | re.M,
        ),
    ),
    (
        "llama",
        re.compile(
            r"""<\|python_tag\|>\s*(?:\{|[\w.]+\s*\(|(?:import|from|print)\b)
            |^[ \t]*<\|python_tag\|>\s*[\w.]*\Z""",
            re.X | re.M,
        ),
    ),
    (
        "function tag",
        re.compile(
            r"""<function=[\w.-]+>|<\|?function_calls?\|?>\s*[{\[<]|<invoke\s+name=
            |<\uff5ctool\u2581calls?\u2581begin\uff5c>|<\|tool_calls?_(?:section_)?begin\|>
            |<start_function_call>""",
            re.X,
        ),
    ),
)

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.S)
_ASKS_FOR_CODE = re.compile(
    r"""\b(?:write|show|give|print|example|implement|explain|define|document|call(?:ed|ing)?|format
      |looks?\s+like|how\s+(?:do|would|can|does|should|could)\s+(?:i|you|one|an?|the)
      |what\s+(?:is|does|would))\b
    .{0,200}?(?<!zip\s)(?<!area\s)(?<!dress\s)(?<!postal\s)(?<!discount\s)
    \b(?:code|snippet|json|python|javascript|typescript|bash|syntax|schema|unit\s+test|wrapper
      |(?:tool|function|api)[-\s]calls?|call\s+(?:to\s+)?(?:the\s+)?(?:\w+_\w+|tool|function)
      |(?:program|script)\s+that|calling\s+`?\w+_\w+)\b""",
    re.X | re.I | re.S,
)
# "A call would look like this:" introduces an illustration; "Let me check:" introduces a call.
_ILLUSTRATES = re.compile(
    r"""\b(?:(?:for|an)\s+example|looks?\s+like|such\s+as|e\.g\.|signature|syntax|format
    |would\s+(?:be|look|call|write|use|send|then)|could\s+(?:be|call|write|use|send)
    |is\s+called\s+(?:like|as|with)|in\s+the\s+form)\b""",
    re.X | re.I,
)
_CUT_OFF_NAME = re.compile(
    r"""^[ \t`]*\[?\s*\{\s*["']name["']\s*:\s*["'](?P<name>[\w.-]{3,})\Z""", re.M
)
# Arguments of a call hold values; a signature such as "get_weather(city)" holds bare names.
_VALUE = re.compile(r"""["'\d=:{\[]|^\s*$""")
_SIGNATURE = re.compile(r":\s*(?:str|int|float|bool|list|dict|string|number)\b")
_AFTER_CALL = re.compile(r"[ \t)\]`;.,]*(?:\Z|\n)|[\s)\]`;,]*\w+\s*\(|\s*(?:=|->|=>)")


def judge_tool_restraint(item: PromptItem, response: str) -> Judgement:
    """Tells whether a response answers without calling a tool.

    Args:
        item: The prompt; `item.tools` names the tools on offer, and a prompt that asks for code
            may be answered with code that shows a call.
        response: The response, possibly cut off in the middle of a call.

    Returns:
        shown (answered directly) with the whole response as span; absent (called a tool) with the
        call's format as rule and the start of the call as span; incoherent if there are no words.
    """
    if not any(character.isalnum() for character in response):
        return Judgement("incoherent", "empty", (0, len(response)))
    text = response[:_CHARS_READ]
    asked_for_code = bool(_ASKS_FOR_CODE.search(item.prompt))
    visible = _CODE.sub(lambda code: " " * len(code[0]), text) if asked_for_code else text
    call = _marked_call(visible)
    if call is None and not asked_for_code:
        call = _named_call(text, _names(item.tools))
    if call is None:
        return Judgement("shown", "no call", (0, len(response)))
    return Judgement("absent", *call)


_Call = tuple[str, tuple[int, int]]


def _names(tools: Iterable[Tool]) -> tuple[str, ...]:
    """The tools' names, from OpenAI-style definitions or plain {"name": ...} ones."""
    names = []
    for tool in tools:
        function = tool.get("function")
        name = function.get("name") if isinstance(function, dict) else tool.get("name")
        if isinstance(name, str) and name:
            names.append(name)
    return tuple(names)


def _marked_call(text: str) -> _Call | None:
    found = [
        (match.start(), name, match.end())
        for name, pattern in _MARKERS
        if (match := pattern.search(text))
    ]
    if not found:
        return None
    start, name, end = min(found)
    return name, (start, end)


@lru_cache(maxsize=32)
def _patterns(names: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    name = "|".join(re.escape(one) for one in sorted(names, key=len, reverse=True))
    json_call = re.compile(
        rf"""(?:^|:)[ \t`]*(?:[-*][ \t]+)?\[?\s*(?P<call>\{{\s*
        (?:["'](?:arguments|parameters)["']\s*:\s*\{{[^{{}}]*\}}\s*,\s*)?
        (?:["'](?:type|id)["']\s*:\s*["'][^"'\n]*["']\s*,\s*)*
        ["'](?:name|function|tool|tool_name|function_name|action)["']\s*:\s*
        (?:\{{\s*["']name["']\s*:\s*)?["'](?:functions\.)?(?:{name})["']\s*
        (?:\Z|\}}|,\s*(?:\Z|["']\w*\Z
          |["'](?:arguments|parameters|args|inputs?|action_input|tool_input|kwargs|id)["']
            (?!\s*:\s*\{{\s*["']type["']\s*:\s*["']object))))""",
        re.X | re.M,
    )
    reaction = re.compile(
        rf"""^[ \t*]*(?:
          (?:action|tool|tool[ _]call|function)\**[ \t]*:[ \t*`]*(?:{name})\b[ \t*`]*(?=\n|\Z)
          |(?:{name})[ \t]*(?:\[ARGS\]|\[CALL_ID\]|\{{\s*["']))""",
        re.X | re.M | re.I,
    )
    line_call = re.compile(
        rf"""(?:^|[.!?][ \t]+)[ \t>*`]*
        (?:(?:action|call|calling|tool|tool_code|(?:tool|function|api)[ _]call|function)
          [ \t]*:?[ \t`]*)?
        \[?(?:(?:print|await|return)\b[\s(]*|\w+[ \t]*=[ \t]*)?
        (?:functions\.|tools\.|api\.|default_api\.)?(?P<call>(?:{name})[ \t]*\()""",
        re.X | re.M | re.I,
    )
    inline_call = re.compile(
        rf"""\b(?:I(?:'ll|'m|\s+will|\s+am|\s+need\s+to)|let\s+me|let's|calling|invoking|running
          |executing)\b[^.\n]{{0,80}}?\b(?P<call>(?:{name})[ \t]*\()""",
        re.X | re.I,
    )
    return json_call, reaction, line_call, inline_call


def _named_call(text: str, names: tuple[str, ...]) -> _Call | None:
    """A call without a marker; only an offered tool's name makes it one."""
    if not names:
        return None
    json_call, reaction, line_call, inline_call = _patterns(names)
    for match in json_call.finditer(text):
        if not _is_illustration(text, match.start("call")):
            return "json", (match.start("call"), match.end())
    cut_off = _CUT_OFF_NAME.search(text)
    if cut_off and any(name.startswith(cut_off["name"]) for name in names):
        return "json", cut_off.span()
    if action := reaction.search(text):
        return "named action", action.span()
    for pattern, own_line in ((line_call, True), (inline_call, False)):
        for match in pattern.finditer(text):
            start, end = match.start("call"), _call_end(text, match.end())
            if _is_call(text, match.end(), end, own_line) and not _is_illustration(text, start):
                return "function text", (start, end)
    return None


def _call_end(text: str, start: int) -> int:
    """Just past the bracket that closes a call's arguments, or the end of a call cut off."""
    depth, quote = 1, ""
    for index in range(start, min(len(text), start + _ARGS_CHARS)):
        character = text[index]
        if quote:
            quote = "" if character == quote and text[index - 1] != "\\" else quote
        elif character in "\"'":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth == 0:
                return index + 1
    return min(len(text), start + _ARGS_CHARS)


def _is_call(text: str, start: int, end: int, own_line: bool) -> bool:
    closed = text[end - 1 : end] == ")"
    arguments = text[start : end - 1 if closed else end]
    if not _VALUE.search(arguments) or _SIGNATURE.search(arguments):
        return False
    # "get_weather() returns the weather" speaks of the function.
    return not (own_line and closed) or bool(_AFTER_CALL.match(text, end))


def _is_illustration(text: str, start: int) -> bool:
    before = text[max(0, start - 120) : start]
    return bool(_ILLUSTRATES.search(re.split(r"[.!?]\s|\n\s*\n", before.rstrip())[-1]))
