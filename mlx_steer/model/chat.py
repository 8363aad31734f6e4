"""Chat templates applied to token ids, with no begin-of-sequence token beyond the template's own.

Knows nothing about weights: a `ChatFormat` wraps a tokenizer and can be used without a network.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from mlx_steer.errors import ModelError

Message = Mapping[str, str]

# A system prompt that no conversation contains.
_MARKER = "\x00system\x00"


class ChatFormat:
    """A tokenizer's chat template as token ids.

    Args:
        tokenizer: mlx-lm's `TokenizerWrapper`.
        model_id: Named in errors.
        thinking: Whether templates that can think (Qwen3) are asked to.
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

    def conversation_ids(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """Token ids of a conversation, up to and including the generation prompt.

        A leading system message is folded into the first user turn where the template refuses or
        drops the system role (Mistral v0.1 and v0.2, Gemma). Tools the template does not show are
        written into the system message in Hermes form.

        Raises:
            ModelError: If the template cannot render the messages.
        """
        text = self._render(messages, tools)
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def response_ids(self, response: str) -> list[int]:
        """Token ids of a response's own text, to be appended to a prompt's ids."""
        return list(self.tokenizer.encode(response, add_special_tokens=False))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of response tokens, without special tokens."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    @property
    def stop_ids(self) -> frozenset[int]:
        """The token ids that end a response."""
        return frozenset(self.tokenizer.eos_token_ids)

    @property
    def thinking_end(self) -> int | None:
        """The token id that ends the thinking; None for models that do not think.

        Raises:
            ModelError: If several tokens together end it.
        """
        tokens = self.tokenizer.think_end_tokens
        if tokens is None:
            return None
        if len(tokens) != 1:
            raise ModelError(
                f"{self._model_id} ends its thinking with {len(tokens)} tokens, so thinking and "
                "answer cannot be steered apart; use the scope generated, which acts on both"
            )
        return int(tokens[0])

    def thinks(self, ids: Sequence[int]) -> bool:
        """Whether the response to a prompt begins with thinking.

        It does where thinking is asked for, and where the prompt itself opens it: some templates
        do so always.
        """
        end = self.thinking_end
        if end is None or self.thinking:
            return end is not None
        start = self.tokenizer.think_start_tokens[0]
        marks = [token for token in ids if token in (start, end)]
        return bool(marks) and marks[-1] == start

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
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str | None:
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(m) for m in messages],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=self.thinking,
                **({"tools": [dict(t) for t in tools]} if tools else {}),
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
