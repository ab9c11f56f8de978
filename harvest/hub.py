"""What the Hugging Face Hub answers, as sentences; and which commit a name stands for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import SplinterpError


def hub_commit(repo: str, kind: str, revision: str | None, error: type[SplinterpError]) -> str | None:
    """The commit that `revision` (None: the main branch) of a hub repository stands for.

    One short request, instead of the half minute of retries with which a download meets a missing network.

    Args:
        kind: "model" or "dataset".
        error: the exception class for the sentence.

    Returns:
        40 hex digits; None when the hub cannot be reached, so that only what is cached can be used.

    Raises:
        SplinterpError: of class `error`: no such repository or revision, or no access to it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    with hub_sentences(repo, kind, revision, error):
        try:
            info = api.repo_info(repo, repo_type=kind, revision=revision, timeout=20)
            if getattr(info, "gated", False):
                api.auth_check(repo, repo_type=kind)
        except HfHubHTTPError:
            raise
        except (ConnectionError, _transport_error()):
            return None
    return info.sha


@contextmanager
def hub_sentences(name: str, kind: str, revision: str | None, error: type[SplinterpError]) -> Iterator[None]:
    """Turn the hub's exceptions, however the libraries wrapped them, into one sentence of class `error`."""
    from huggingface_hub import errors

    what = {"model": "model", "dataset": "data set"}[kind]
    try:
        yield
    except (OSError, ValueError, _transport_error()) as problem:
        causes = [type(cause) for cause in _causes(problem)]

        def is_a(*classes: type) -> bool:
            return any(issubclass(cause, classes) for cause in causes)

        if is_a(errors.GatedRepoError):
            page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"
            sentence = (
                f"The {what} {name} is open only to those who accepted its licence: accept it at {page}, then set HF_TOKEN "
                "to a token of that account (or run `hf auth login`)."
            )
        elif is_a(errors.RevisionNotFoundError):
            sentence = (
                f"The {what} {name} has no revision '{revision}'; see its page on huggingface.co for the branches and tags."
            )
        elif is_a(errors.RepositoryNotFoundError):
            sentence = (
                f"There is no {what} '{name}' on huggingface.co that you may read, nor a file or directory of that name; "
                "check the name, or set HF_TOKEN if it is private."
            )
        elif is_a(errors.HFValidationError):
            sentence = f"'{name}' is neither an existing file or directory nor a possible name of a {what} on huggingface.co."
        elif is_a(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError, _transport_error()):
            sentence = (
                f"The {what} {name} is not on this machine and huggingface.co cannot be reached; "
                "connect to the network, or give a file or directory."
            )
        else:
            raise
        raise error(sentence) from problem


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error`, and the exceptions it was raised from, outermost first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _transport_error() -> type[Exception]:
    """The HTTP client's own base class of errors: httpx's or httpx2's, by the version of huggingface_hub."""
    from huggingface_hub import errors

    return vars(errors)["HTTPError"]
