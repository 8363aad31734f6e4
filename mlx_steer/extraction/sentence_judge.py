"""The model as judge of a behavior of two sentences: log-ratios of responses to known prompts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from mlx_steer.behaviors import PromptItem, Sentences
from mlx_steer.conditions import digest
from mlx_steer.engine.jobs import too_long
from mlx_steer.engine.log_ratio import Contrasted, LogRatio, log_ratios, tokens_of, units
from mlx_steer.engine.prefill import common_head
from mlx_steer.errors import DataError
from mlx_steer.model.load import Model
from mlx_steer.sentences import JUDGED_TOKENS
from mlx_steer.team import Team


class SentenceJudge:
    """Reads responses under either sentence.

    Args:
        model: The model that wrote them, or another one.
        sentences: The two.
        items: All prompts whose responses are ever to be read: their common beginnings are run
            once, and the last digits depend on them.

    Raises:
        DataError: If a sentence leaves no room for a prompt and a response.
    """

    def __init__(self, model: Model, sentences: Sentences, items: Sequence[PromptItem]) -> None:
        """See the class."""
        self._model = model
        both = (sentences.positive, sentences.negative)
        chat = model.chat
        self._ids = {
            item.id: tuple(
                tuple(chat.answer_ids(item.prompt, item.system_under(text), item.tools))
                for text in both
            )
            for item in items
        }
        for place, side in enumerate(("positive", "negative")):
            longest = max(len(ids[place]) for ids in self._ids.values())
            what = f"the longest prompt under the {side} sentence"
            if reason := too_long(model, what, longest, JUDGED_TOKENS):
                raise DataError(reason.replace("the prompt or lower max_tokens", "the sentence"))
        self._heads = tuple(
            common_head([ids[place] for ids in self._ids.values()]) if len(items) > 1 else 0
            for place in (0, 1)
        )
        self._masked = tokens_of(model, both)
        self.id = digest(
            {
                "model": model.identity,
                "template": model.chat.sha256,
                "sentences": both,
                "tokens": JUDGED_TOKENS,
            }
        )[:12]

    def ratios(
        self,
        responses: Sequence[tuple[str, PromptItem, str]],
        held: Collection[str] = (),
        team: Team | None = None,
    ) -> Iterator[list[tuple[str, LogRatio]]]:
        """Log-ratios of responses, some at a time.

        Args:
            responses: Key, prompt and text of all that belong together, since their last digits
                depend on one another.
            held: Keys that need not be read.
            team: The ranks that the others are dealt out to; this one's part is read.
        """
        told = []
        for key, item, text in responses:
            positive, negative = self._ids[item.id]
            told.append(
                Contrasted(key, positive, negative, tuple(self._model.chat.response_ids(text)))
            )
        todo = [group for group in units(told) if any(a.key not in held for a in group)]
        mine = (team or Team()).share(todo)
        yield from log_ratios(self._model, mine, (self._heads[0], self._heads[1]), self._masked)
