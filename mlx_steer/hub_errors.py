"""What the Hugging Face hub's client raises, in one sentence that says what to do.

Its exceptions come from several places, the HTTP library under it among them, which differs between
versions of the client; so anything it raises is taken.
"""

LOG_IN = "log in with: hf auth login"


def hub_problem(
    error: Exception, repo: str, revision: str | None = None, kind: str = "repo"
) -> str:
    """Say what went wrong between here and the hub.

    Args:
        error: What the client raised.
        repo: `org/name`.
        revision: The revision that was asked for.
        kind: What the repo should be, for the sentence: `model`, `repo`.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return (
            f"{repo} is gated: accept its terms on https://huggingface.co/{repo}, "
            "then run: hf auth login"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}; leave it out or see the hub"
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has no {kind} {repo}, or it is private; check the name, or {LOG_IN}"
    if isinstance(error, HFValidationError):
        return f"{repo!r} is not a valid hub id: {error}"
    if isinstance(error, LocalTokenNotFoundError):
        return f"the hub wants to know who you are; {LOG_IN}"
    if isinstance(error, HfHubHTTPError):
        return _refused(error.response.status_code, repo)
    if isinstance(error, OfflineModeIsEnabled):
        return f"{repo} cannot be reached: HF_HUB_OFFLINE is set; unset it and run it again"
    if isinstance(error, OSError) and error.errno is not None:
        return f"the files of {repo} cannot be stored: {error.strerror}"
    if isinstance(error, LocalEntryNotFoundError):
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    reason = " ".join(str(error).split())[:200] or "no reason given"
    if type(error).__name__.startswith("Connect"):  # httpx's, whichever version of it is in use
        return f"the hub cannot be reached ({reason}); connect and run it again"
    return (
        f"the connection to the hub broke while {repo} was on its way "
        f"({type(error).__name__}: {reason}); run it again"
    )


def _refused(status: int, repo: str) -> str:
    if status == 401:
        return f"the hub does not accept the token it was given; {LOG_IN}"
    if status == 403:
        return (
            f"the token in use may not do this with {repo}; log in with one that has write "
            "permission there: hf auth login"
        )
    if status >= 500 or status == 429:
        return f"the hub answers with error {status} for {repo}; try again later"
    return f"the hub refuses the request for {repo} with error {status}"
