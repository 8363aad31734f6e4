"""Chat templates applied to token ids, with no begin-of-sequence token beyond the template's own.

Knows nothing about weights: a `ChatFormat` wraps a tokenizer and can be used without a network.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cached_property
from itertools import groupby
from typing import Any

from jinja2.exceptions import TemplateError

from mlx_steer.errors import ModelError
from mlx_steer.model.thinking import ANALYSIS, FINAL, MESSAGE_END, Marks, call_in

Message = Mapping[str, str]

# A text that no conversation contains.
_MARKER = "\x00system\x00"

# Some templates write today's date into the prompt (Llama 3.2, SmolLM3, gpt-oss). It would make
# other rows of the same experiment tomorrow, so here it is always the same day.
_TODAY = date(2025, 1, 1)
_PARTS = ("%Y", "%y", "%m", "%d", "%B", "%b", "%A", "%a")
_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{part}', '{_TODAY:{part}}')" for part in _PARTS)
    + " }}{% endmacro %}{{ '' }}"
)

# Special tokens that open or part tool calls; text without them would not show the call.
_CALL_MARKS = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>")


class ChatFormat:
    """A tokenizer's chat template as token ids.

    Args:
        tokenizer: mlx-lm's `TokenizerWrapper`.
        model_id: Named in errors.
        thinking: Whether models that can think (Qwen3, GLM, gpt-oss) are asked to.
    """

    def __init__(self, tokenizer: Any, model_id: str, thinking: bool = False) -> None:
        """See the class."""
        if not tokenizer.has_chat_template:
            raise ModelError(
                f"{model_id} has no chat template, and steering experiments need one; "
                "use the instruction-tuned version of the model"
            )
        self.tokenizer = tokenizer
        self.thinking = thinking
        self._model_id = model_id
        self._error = ""

    @property
    def sha256(self) -> str:
        """The hash of the template's source text, as hex digits."""
        template = self.tokenizer.chat_template
        text = template if isinstance(template, str) else repr(sorted(dict(template or {}).items()))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def tokenizer_sha256(self) -> str:
        """The hash of what turns text into tokens and back, as hex digits."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            text = json.dumps(sorted(self.tokenizer.get_vocab().items()))
        else:
            state = json.loads(backend.to_str())
            # transformers sets these two anew at every call
            del state["truncation"], state["padding"]
            text = json.dumps(state)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def default_system_prompt(self) -> str | None:
        """The system prompt the template inserts where none is given, if it does so (SmolLM2)."""
        user = {"role": "user", "content": "hi"}
        bare = self._try([user])
        told = self._try([{"role": "system", "content": _MARKER}, user])
        if bare is None or told is None or _MARKER not in told:
            return None
        before, after = told.split(_MARKER, 1)
        if not (bare.startswith(before) and bare.endswith(after) and len(before) + len(after) > 4):
            return None
        inserted = bare[len(before) : len(bare) - len(after)]
        return inserted.strip() or None

    def prompt_ids(
        self,
        prompt: str,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[int]:
        """Token ids of one user turn, up to and including the generation prompt."""
        messages: list[Message] = [{"role": "user", "content": prompt}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        return self.conversation_ids(messages, tools)

    def answer_ids(
        self,
        prompt: str,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[int]:
        """Token ids of one user turn, up to where the text of an answer begins.

        As `prompt_ids`, but the thinking that the prompt leaves open is ended.
        """
        ids, marks = self.prompt_ids(prompt, system, tools), self._marks
        if marks is None or not marks.opened(ids):
            return ids
        return [*ids, *marks.end, *([] if marks.always else self.response_ids("\n\n"))]

    def conversation_ids(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """Token ids of a conversation, up to and including the generation prompt.

        A leading system message is folded into the first user turn where the template refuses or
        drops the system role (Mistral v0.1 and v0.2, Gemma). Tools the template does not show are
        written into the system message in Hermes form. Where gpt-oss is not to think and has no
        tools to call, the final channel is opened for it.

        Raises:
            ModelError: If the template cannot render the messages.
        """
        text = self._render(messages, tools)
        if self._has_channels and not (self.thinking or tools) and not text.endswith(FINAL):
            text += FINAL
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def response_ids(self, response: str) -> list[int]:
        """Token ids of a response's own text, to be appended to a prompt's ids."""
        return list(self.tokenizer.encode(response, add_special_tokens=False))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of response tokens, without special tokens but for those of tool calls."""
        if self._call_ids.isdisjoint(tokens):
            return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))
        runs = groupby(tokens, key=self._call_ids.__contains__)
        return "".join(
            str(self.tokenizer.decode(list(run), skip_special_tokens=not marks))
            for marks, run in runs
        )

    def texts(self, ids: Sequence[int], tokens: Sequence[int]) -> tuple[str, str]:
        """The thinking and the answer of a response, as text; either may be empty.

        Args:
            ids: The prompt's token ids.
            tokens: The response's.
        """
        marks = self._marks
        if marks is None:
            return "", self.decode(tokens)
        thinking, answer = marks.parts(ids, tokens)
        if not thinking and len(answer) == len(tokens):
            return "", self.decode(tokens)
        if marks.always and not answer:
            call = call_in(str(self.tokenizer.decode(list(tokens), skip_special_tokens=False)))
            if call is not None:
                return self.decode(thinking).strip(), call
        return self.decode(thinking).strip(), self.decode(answer).lstrip()

    @cached_property
    def silent_ids(self) -> frozenset[int]:
        """The special tokens that `decode` leaves out of the text."""
        return frozenset(self._special.values()) - self._call_ids

    @property
    def stop_ids(self) -> frozenset[int]:
        """The token ids that end a response.

        Those that the model's files name, and the one that the template ends an answer with: some
        files name only the end of a text.
        """
        return self._turn_end.union(self.tokenizer.eos_token_ids)

    @cached_property
    def _turn_end(self) -> frozenset[int]:
        if self._has_channels:  # there, what ends a message does not end the response
            return frozenset()
        talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": _MARKER}]
        rest = (self._try(talk, answered=True) or "").rpartition(_MARKER)[2]
        return frozenset(self._special.values()).intersection(self.response_ids(rest)[:1])

    @cached_property
    def _special(self) -> dict[str, int]:
        """The tokens that are no text."""
        added = self.tokenizer.added_tokens_decoder
        return {str(token): index for index, token in added.items() if token.special}

    @property
    def thinking_end(self) -> tuple[int, ...] | None:
        """The token ids that together end the thinking; None for models that do not think."""
        return self._marks.end if self._marks is not None else None

    def thinks(self, ids: Sequence[int]) -> bool:
        """Whether the response to a prompt begins with thinking.

        It does where thinking is asked for, and where the prompt itself opens it: some templates
        do so always.
        """
        marks = self._marks
        if marks is None:
            return False
        return marks.opened(ids) or (self.thinking and not marks.always)

    @cached_property
    def _has_channels(self) -> bool:
        """Whether responses are in gpt-oss's format."""
        return FINAL in str(self.tokenizer.chat_template)

    @property
    def _marks(self) -> Marks | None:
        if self._has_channels:
            return self._channel_marks
        start, end = self.tokenizer.think_start_tokens, self.tokenizer.think_end_tokens
        return Marks(tuple(start), tuple(end)) if start and end else None

    @cached_property
    def _channel_marks(self) -> Marks:
        start, end, close = map(self.response_ids, (ANALYSIS, FINAL, MESSAGE_END))
        return Marks(tuple(start), tuple(end), tuple(close), always=True)

    @cached_property
    def _call_ids(self) -> frozenset[int]:
        """The special tokens of tool calls."""
        wrapper = self.tokenizer
        own = (mark for mark in (wrapper.tool_call_start, wrapper.tool_call_end) if mark)
        marks = {*_CALL_MARKS, *own} & self._special.keys()
        return frozenset(self._special[mark] for mark in marks)

    def _render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
        if tools:
            text = self._try(messages, tools)
            if text is not None and self._shows_tools(text, messages, tools):
                return text
            messages = _with_tools_in_system(messages, tools)
        text = self._try(messages)
        has_system = bool(messages) and messages[0]["role"] == "system"
        if has_system and (text is None or not self._shows_system(messages)):
            text = self._try(_fold_system(messages))
        if text is None:
            raise ModelError(
                f"the chat template of {self._model_id} cannot render the roles "
                f"{[m['role'] for m in messages]}: {self._error}"
            )
        return text

    def _shows_system(self, messages: Sequence[Message]) -> bool:
        # By a text that nobody else says: the user may quote the system prompt.
        probe = self._try([{**messages[0], "content": _MARKER}, *messages[1:]])
        return probe is not None and _MARKER in probe

    def _shows_tools(
        self, text: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
    ) -> bool:
        # The conversation may name a tool as well, so it is compared with itself without tools.
        bare = self._try(messages) or ""
        names = {str(tool["function"]["name"]) for tool in tools}
        return all(text.count(name) > bare.count(name) for name in names)

    def _try(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        answered: bool = False,
    ) -> str | None:
        """The rendered messages; with a generation prompt unless the last is an answer."""
        options: dict[str, Any] = {"tools": [dict(t) for t in tools]} if tools else {}
        template = self.tokenizer.chat_template
        if isinstance(template, str) and "strftime_now" in template:
            options["chat_template"] = _CLOCK + template
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(m) for m in messages],
                tokenize=False,
                add_generation_prompt=not answered,
                enable_thinking=self.thinking,
                **options,
            )
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            self._error = str(error)
            return None
        return str(text)


def _fold_system(messages: Sequence[Message]) -> list[Message]:
    system, first, *rest = messages
    return [{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *rest]


_HERMES = """You may call these tools. To call one, answer with a line of the form
<tool_call>{{"name": NAME, "arguments": {{...}}}}</tool_call>
<tools>
{tools}
</tools>"""


def _with_tools_in_system(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> list[Message]:
    text = _HERMES.format(tools="\n".join(json.dumps(dict(t)) for t in tools))
    if messages and messages[0]["role"] == "system":
        system, *rest = messages
        return [{"role": "system", "content": f"{system['content']}\n\n{text}"}, *rest]
    return [{"role": "system", "content": text}, *messages]
