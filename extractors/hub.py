"""From a Hub id to the commit it means: the part of a fingerprint that names the weights.

A branch moves, a commit does not, so features are always filed under the commit. With a network
the Hub is asked; without one, the commit that the local cache last saw for that branch is used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from extractors.errors import InputError, MachineError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_TIMEOUT_SECONDS = 10.0
_COMMIT = r"[0-9a-f]{40}"


@dataclass(frozen=True)
class HubModel:
    """A model repository at one commit.

    Attributes:
        repository: ``owner/name``.
        revision: the branch, tag or commit that was asked for; "main" by default.
        commit: what it means, 40 hexadecimal digits.
        online: whether the Hub itself answered just now.
    """

    repository: str
    revision: str
    commit: str
    online: bool


def resolve_model(repository: str, revision: str | None = None) -> HubModel:
    """The commit that a branch or tag of a Hub repository means; a commit is taken at its word.

    Args:
        repository: ``owner/name``.
        revision: branch, tag or commit; None is the default branch.

    Raises:
        InputError: no such repository or revision, or no access to it.
        MachineError: the Hub cannot be reached and the cache knows nothing about it.
    """
    if revision and re.fullmatch(_COMMIT, revision):
        return HubModel(repository, revision, revision, online=False)
    try:
        return ask_hub(repository, revision)
    except MachineError:
        commit = _cached_commit(repository, revision or "main")
        if commit is None:
            raise
        return HubModel(repository, revision or "main", commit, online=False)


def ask_hub(repository: str, revision: str | None = None) -> HubModel:
    """Ask the Hub itself, once, without the many retries of a download.

    Raises:
        InputError: no such repository or revision, or no access to it.
        MachineError: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    with plain_hub_errors(repository, revision):
        info = HfApi().model_info(repository, revision=revision, timeout=_TIMEOUT_SECONDS)
    if not info.sha:
        raise MachineError(f"the Hub gave no commit for {repository}: try again later")
    return HubModel(repository, revision or "main", info.sha, online=True)


def is_known_locally(model: HubModel, filename: str) -> bool:
    """Whether the cache holds a file of the model, or knows that the model has no such file."""
    from huggingface_hub import try_to_load_from_cache

    return try_to_load_from_cache(model.repository, filename, revision=model.commit) is not None


def configurations(model: HubModel) -> Path:
    """The folder in the cache with every JSON file of the model, downloaded if need be."""
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            model.repository,
            revision=model.commit,
            allow_patterns=["*.json"],
            local_files_only=not model.online,
        )
    )


def remember(model: HubModel) -> None:
    """Note in the cache which commit a branch meant, once the model is there.

    The files are downloaded by commit, so that a branch that moves meanwhile cannot mix two models;
    but then the library notes no branch, and a later run without a network would not find them.
    """
    reference = _cache_folder(model.repository) / "refs" / model.revision
    if model.online and model.revision != model.commit:
        with suppress(OSError):  # a cache that cannot be written to still works with a network
            reference.parent.mkdir(parents=True, exist_ok=True)
            # Renamed into its place: a run that dies here must not leave half a commit behind.
            new = reference.with_name(f".{reference.name}.{os.getpid()}")
            new.write_text(model.commit)
            new.replace(reference)


@contextmanager
def plain_hub_errors(repository: str, revision: str | None = None) -> Iterator[None]:
    """Turn what loading from the Hub can raise into one sentence of the right kind."""
    from huggingface_hub import errors

    at = f" at revision '{revision}'" if revision else ""
    try:
        yield
    except errors.GatedRepoError as error:
        raise InputError(
            f"{repository} is gated: accept its terms on https://huggingface.co/{repository} and "
            "log in with 'hf auth login'"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise InputError(
            f"there is no model '{repository}' on the Hugging Face Hub, or no access to it: check "
            "the spelling, or log in with 'hf auth login' if it is private"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{repository} has no revision '{revision}'") from error
    except (InputError, MachineError):
        raise
    except Exception as error:
        answer = _answer_of_hub(error)
        if answer is not None:
            raise _refused(answer, repository, at) from error
        if not _is_connection_failure(error):
            raise
        raise MachineError(
            f"{repository}{at} is not in the local cache and the Hugging Face Hub cannot be "
            "reached: connect to a network, or name a folder (for texts also 'minilm')"
        ) from error


def _answer_of_hub(error: BaseException) -> HfHubHTTPError | None:
    """The Hub's own refusal where there was one; libraries wrap it in errors of theirs."""
    from huggingface_hub import errors

    for cause in _causes(error):
        if isinstance(cause, errors.HfHubHTTPError):
            # A library looks for files that a model may lack; such an answer is the reason only
            # where it was named as one.
            missing = isinstance(cause, errors.EntryNotFoundError)
            if not missing or cause in (error, error.__cause__):
                return cause
    return None


def _refused(answer: HfHubHTTPError, repository: str, at: str) -> InputError | MachineError:
    from huggingface_hub import errors

    if isinstance(answer, errors.EntryNotFoundError):
        file = str(answer.response.url).partition("?")[0].rpartition("/")[2]
        return InputError(f"{repository}{at} has no {file}: it is no model of this kind")
    status = answer.response.status_code
    if status in (401, 403):
        return InputError(
            f"the Hugging Face Hub gives no access to {repository} (status {status}): log in with "
            "'hf auth login', as somebody who may read it"
        )
    return MachineError(
        f"the Hugging Face Hub answered {repository}{at} with status {status}: try again later"
    )


def _is_connection_failure(error: BaseException) -> bool:
    """Whether any cause in the chain is a failure of the network (or a refusal to use it)."""
    from huggingface_hub import errors

    offline = (ConnectionError, TimeoutError)  # OfflineModeIsEnabled is a ConnectionError
    offline += (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)
    for cause in _causes(error):
        # The HTTP library below huggingface_hub has changed more than once; its transport errors
        # all derive from a class of this name, so no import of it is needed.
        names = {cls.__name__ for cls in type(cause).__mro__}
        if isinstance(cause, offline) or names & {"TransportError", "RequestException"}:
            return True
        if isinstance(cause, OSError) and "couldn't connect" in str(cause):  # of transformers
            return True
    return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _cached_commit(repository: str, revision: str) -> str | None:
    folder = _cache_folder(repository)
    reference = folder / "refs" / revision
    if not reference.is_file():
        return None
    commit = reference.read_text("utf-8", errors="replace").strip()
    if not re.fullmatch(_COMMIT, commit):  # damaged: as good as none
        return None
    return commit if (folder / "snapshots" / commit).is_dir() else None


def _cache_folder(repository: str) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
