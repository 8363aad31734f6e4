"""A response's text as it grows, token by token: thinking and answer apart, no special tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from mlx_steer.model.chat import ChatFormat


class Speech:
    """Turns tokens into text with the model's streaming detokenizer of mlx-lm.

    Args:
        chat: Tokenizer and chat template.
        ids: The prompt, which decides whether the response begins with thinking.
    """

    def __init__(self, chat: ChatFormat, ids: Sequence[int]) -> None:
        """See the class."""
        self._chat = chat
        self._words = chat.tokenizer.detokenizer
        self._end = chat.thinking_end if chat.thinks(ids) else None
        # What may be the beginning of the mark that ends the thinking.
        self._held: deque[int] = deque()
        self._trims = self._end is not None

    @property
    def thinking(self) -> bool:
        """Whether the thinking has not ended yet."""
        return self._end is not None

    def add(self, token: int) -> str:
        """The text that a token adds."""
        if self._end is None:
            return self._said([token])
        self._held.append(token)
        if tuple(self._held) == self._end:
            self._held.clear()
            self._end = None
            self._words = self._chat.tokenizer.detokenizer
            self._trims = True
            return ""
        ready = []
        while tuple(self._held) != self._end[: len(self._held)]:
            ready.append(self._held.popleft())
        return self._said(ready)

    def rest(self) -> str:
        """What is left, now that no more tokens come."""
        text = self._said(list(self._held))
        self._words.finalize()
        return text + self._trimmed(str(self._words.last_segment))

    def _said(self, tokens: Sequence[int]) -> str:
        silent = self._chat.silent_ids
        text = ""
        for token in tokens:
            if token not in silent:
                self._words.add_token(token)
                text += self._trimmed(str(self._words.last_segment))
        return text

    def _trimmed(self, text: str) -> str:
        """The text, without what opens the thinking, and the space between it and the answer."""
        if not self._trims:
            return text
        if self._end is not None:
            text = text.replace(str(self._chat.tokenizer.think_start or ""), "")
        text = text.lstrip()
        self._trims = not text
        return text
