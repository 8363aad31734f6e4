"""Whether a response gives the right answer to a short factual question; by string."""

import re
from collections.abc import Mapping

from pydantic import JsonValue


def is_right(check: Mapping[str, JsonValue] | None, response: str) -> bool:
    """Whether one of the ways to write the answer occurs, as whole words, whatever its case.

    It is lenient: a response that names several answers is right if one of them is.

    Args:
        check: A question's `check`, with `answers`.
        response: The text of the response.
    """
    answers = (check or {}).get("answers")
    if not isinstance(answers, list):
        return False
    return any(
        re.search(rf"(?<!\w){re.escape(str(answer))}(?!\w)", response, re.IGNORECASE)
        for answer in answers
    )
