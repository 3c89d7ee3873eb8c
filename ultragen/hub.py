"""Finding a model's files: a local file or folder, the Hub's cache, or a download."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import enable_progress_bars

from .presets import MAIN, HubSource

_REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_MOVED = (301, 302, 303, 307, 308)
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


def named(given: str | Path | None, source: HubSource) -> str:
    """What names the files: the argument, else the environment variable, else the Hub's own."""
    default = f"{source.repository}@{source.revision}"
    return str(given or os.environ.get(source.variable) or default)


def locate(given: str | Path | None, source: HubSource, local_files_only: bool = False) -> Path:
    """The local file or folder of a model, downloaded where it is not there yet.

    A download that was broken off goes on where it stopped; huggingface_hub shows how far it is.
    Neither a login nor a token is needed for a public repository.

    Args:
        given: A path, `owner/name` or `owner/name@revision`; None takes the source's variable, or
            its own repository.
        source: What is looked for.
        local_files_only: Take only what is on this machine; HF_HUB_OFFLINE=1 does so too.

    Raises:
        OSError: if the files can't be had, with the reason and the way out.
    """
    text = named(given, source)
    path = Path(text).expanduser()
    if path.exists():
        return path
    found = _REPOSITORY.fullmatch(text)
    if found is None or text.startswith((".", "~")) or _is_file_name(text):
        raise FileNotFoundError(
            f"There is no {text}: set {source.variable} to an existing file or folder, or to a "
            f"repository on the Hub such as {source.repository}."
        )
    repository = found["repository"]
    own = repository == source.repository
    revision = found["revision"] or (source.revision if own else MAIN)
    if not local_files_only and constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        enable_progress_bars()  # who silences transformers' bars silences those of downloads too
    try:
        folder = Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(source.files),
                local_files_only=local_files_only,
            )
        )
    except Exception as error:  # transport errors share no base class with the Hub's own
        raise explained(error, repository, revision, source, local_files_only) from error
    return _picked(folder, repository, source)


def find_local(given: str | Path | None, source: HubSource) -> Path | None:
    """The file or folder if it is on this machine, whole as far as names tell; else None."""
    try:
        return locate(given, source, local_files_only=True)
    except OSError:
        return None


def origin(path: Path) -> str:
    """`owner/name@commit` of what lies in the Hub's cache; of other paths the last name."""
    found = re.search(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]+)", path.as_posix())
    return f"{found[1]}/{found[2]}@{found[3]}" if found else path.name


def _is_file_name(text: str) -> bool:
    return text.endswith((".safetensors", ".ckpt", ".pth", ".pt", ".bin", ".json"))


def _picked(folder: Path, repository: str, source: HubSource) -> Path:
    """The one file that is needed, or the folder of several."""
    missing = [pattern for pattern in source.files if not any(folder.glob(pattern))]
    if missing:
        raise FileNotFoundError(
            f"{repository} is not {source.name}, or not all of it is here: it has no "
            f"{', '.join(missing)}. Take {source.repository}, or a copy of it, in "
            f"{source.variable}."
        )
    return folder / source.files[0] if len(source.files) == 1 else folder


def explained(
    error: Exception,
    repository: str,
    revision: str,
    source: HubSource,
    local_files_only: bool = False,
) -> OSError:
    """Why a download failed and what to do, in one line."""
    address = f"{constants.ENDPOINT}/{repository}"
    found = next((reason for kind, reason in _REASONS if isinstance(error, kind)), None)
    if found is not None:
        reason = found.format(address=address, revision=revision)
    elif isinstance(error, LocalEntryNotFoundError):
        reason = _unreachable(local_files_only) + _another_commit(repository, revision, source)
    elif isinstance(error, HfHubHTTPError):
        reason = _refused(error, address)
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = f"does not fit on the disk of {constants.HF_HUB_CACHE}: free space, set HF_HOME"
    else:
        reason = f"can't be downloaded ({_first_line(error)}): check the network"
    return OSError(
        f"{source.name[0].upper()}{source.name[1:]}, {repository}, {reason}, or set "
        f"{source.variable} to a local copy or another repository."
    )


def _unreachable(local_files_only: bool) -> str:
    if local_files_only or constants.HF_HUB_OFFLINE:
        return (
            f"is not in {constants.HF_HUB_CACHE}, and downloads are switched off: unset "
            "HF_HUB_OFFLINE"
        )
    return "is not on this machine, and the Hub can't be reached: check the network"


def _another_commit(repository: str, revision: str, source: HubSource) -> str:
    """A way out for who has the repository at another commit than the one that is pinned."""
    snapshots = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    if revision == MAIN or not any(snapshots.glob("snapshots/*")):
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
    return f"can't be downloaded (the Hub answered {status}): try again later"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
