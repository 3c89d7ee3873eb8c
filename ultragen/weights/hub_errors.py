"""Why files of the Hub can't be had and what to do about it, told in one line."""

from __future__ import annotations

import errno
from json import JSONDecodeError
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..files import first_line
from ..presets import MAIN, HubSource

# Answers of HTTP, and what comes back from whoever is not the Hub.
_MOVED = (301, 302, 303, 307, 308)
_NOT_THE_HUB = (FileMetadataError, JSONDecodeError, UnicodeDecodeError)
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    # In this order: the first is also a kind of repository that is not found.
    (GatedRepoError, "is gated: accept its terms on {address} and run `hf auth login`"),
    (DisabledRepoError, "has been disabled: see {address}"),
    (RevisionNotFoundError, "has no revision {revision}: choose one of {address}/commits"),
    (
        RepositoryNotFoundError,
        "is not on the Hub, has moved, or is private: check its name on {address}",
    ),
    (
        IncompleteSnapshotError,
        "is half a download: start again with a network, which goes on from there",
    ),
)


def stored(repository: str) -> Path:
    """Where the Hub's cache keeps a repository."""
    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def explained(
    error: Exception,
    repository: str,
    revision: str,
    source: HubSource,
    local_files_only: bool = False,
) -> OSError:
    """Why a download failed and what to do, in one line.

    Args:
        error: What huggingface_hub or the network raised.
        repository: What was asked for, `owner/name`.
        revision: Its commit, tag or branch.
        source: What it should have held.
        local_files_only: Whether only this machine was looked at.

    Returns:
        The error to raise from `error`.
    """
    address = f"{constants.ENDPOINT}/{repository}"
    another = _another_commit(repository, revision, source)
    error = _answer(error)
    found = next((reason for kind, reason in _REASONS if isinstance(error, kind)), None)
    if found is not None:
        reason = found.format(address=address, revision=revision)
    elif isinstance(error, LocalEntryNotFoundError):
        reason = _unreachable(error, local_files_only) + another
    elif isinstance(error, HfHubHTTPError):
        reason = _refused(error, address)
    elif isinstance(error, _NOT_THE_HUB):
        reason = (
            "can't be downloaded, for what answers is not the Hub, but perhaps a proxy or a login "
            f"page: open {address} in a browser, check HTTPS_PROXY and HF_ENDPOINT"
        )
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = f"does not fit on the disk of {constants.HF_HUB_CACHE}: free space, set HF_HOME"
    else:
        reason = f"can't be downloaded ({first_line(error)}): check the network{another}"
    return OSError(
        f"{source.name[0].upper()}{source.name[1:]}, {repository}, {reason}, or set "
        f"{source.variable} to a local copy or another repository."
    )


def _answer(error: Exception) -> Exception:
    """What came back over the network, where huggingface_hub tells of its cache instead."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, (HfHubHTTPError, *_NOT_THE_HUB)):
            return link
        link = link.__cause__
    return error


def _unreachable(error: Exception, local_files_only: bool) -> str:
    if local_files_only or constants.HF_HUB_OFFLINE:
        return (
            f"is not in {constants.HF_HUB_CACHE}, and downloads are switched off: unset "
            "HF_HUB_OFFLINE"
        )
    why = f" ({first_line(error.__cause__)})" if error.__cause__ else ""
    return f"is not on this machine, and the Hub can't be reached{why}: check the network"


def _another_commit(repository: str, revision: str, source: HubSource) -> str:
    """A way out for who has the repository at another commit than the one that is pinned."""
    if revision == MAIN or not any(stored(repository).glob("snapshots/*")):
        return ""
    return (
        f", or set {source.variable}={repository}@{MAIN} to take the version that is there "
        f"instead of {revision[:7]}"
    )


def _refused(error: HfHubHTTPError, address: str) -> str:
    status = getattr(error.response, "status_code", None)
    if status in _MOVED:
        return f"has moved: {address} shows its new name; choose that"
    if status == 401:
        return f"asks for a login, though {address} should be public: run `hf auth login`"
    if status == 429:
        return (
            "can't be downloaded yet (the Hub answered 429, too many requests): wait some minutes, "
            "or run `hf auth login`, which allows more"
        )
    trouble = ", it has trouble of its own" if status and status >= 500 else ""
    return f"can't be downloaded (the Hub answered {status}{trouble}): try again later"
