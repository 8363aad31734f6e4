"""What goes wrong with a request, in the shape of the OpenAI API's errors."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import JsonValue, ValidationError


@dataclass(eq=False)  # not frozen: raising writes an exception's traceback
class Problem(Exception):
    """A request that is refused, or cannot be served now.

    Attributes:
        status: HTTP status.
        message: One sentence: what, where, what to do.
        param: The request's field it is about, as a path.
        code: A word for programs.
        retry_after: Seconds after which the same request may succeed.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after: int | None = None

    def __str__(self) -> str:
        """The message."""
        return self.message

    def body(self) -> dict[str, JsonValue]:
        """The JSON of the response."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": kinds.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }


def invalid(message: str, param: str | None = None) -> Problem:
    """A request that says something impossible."""
    return Problem(400, message, param, "invalid_value")


def from_validation(error: ValidationError) -> Problem:
    """The first thing that is wrong with a request's body."""
    first = error.errors(include_url=False)[0]
    # Branches of a union and of a tagged type are no fields of the request.
    place = ".".join(str(p) for p in first["loc"] if isinstance(p, int) or p.islower())
    said = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return invalid(f"{place or 'the body'}: {said}", place or None)
