"""Finding a model's files: a local file or folder, the Hub's cache, or a download."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import filter as matching
from pathlib import Path
from shutil import disk_usage

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import enable_progress_bars

from ..presets import MAIN, TEXT_ENCODER_VARIABLE, WAN_SOURCE, HubSource
from .folders import SUFFIXES
from .hub_errors import explained, stored

_REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_INDEX = "model_index.json"
_NO_ANSWER = (404, 405, 501)  # without the Hub's own word for what is missing


def named(given: str | Path | None, source: HubSource) -> str:
    """What names the files: the argument, else the environment variable, else the Hub's own."""
    return str(given or os.environ.get(source.variable) or source.repository)


def text_encoder_file(given: str | Path | None = None) -> Path | None:
    """The file that umT5 is taken from, by the argument or the environment; None for the base
    model's own.

    Raises:
        OSError: if there is no such file.
    """
    text = str(given or os.environ.get(TEXT_ENCODER_VARIABLE) or "")
    path = Path(text).expanduser()
    if text and not path.is_file():
        raise FileNotFoundError(
            f"There is no file {text}: set {TEXT_ENCODER_VARIABLE} to a file of umT5-XXL's encoder "
            "in FP8 (.safetensors) or GGUF, or to nothing."
        )
    return path if text else None


def base_source(text_encoder: Path | None) -> HubSource:
    """Where the base model comes from, without the text encoder that a file stands for."""
    if text_encoder is None:
        return WAN_SOURCE
    files = tuple(name for name in WAN_SOURCE.files if not name.startswith("text_encoder/"))
    return replace(WAN_SOURCE, files=files)


def locate(given: str | Path | None, source: HubSource, local_files_only: bool = False) -> Path:
    """The local file or folder of a model, downloaded where it is not there yet.

    A download that was broken off goes on where it stopped; huggingface_hub shows how far it is.
    Neither a login nor a token is needed for a public repository. A single file of a branch that
    nobody named stays as it was first downloaded; `owner/name@main` takes the newest.

    Args:
        given: A path, `owner/name` or `owner/name@revision`; None takes the source's variable, or
            its own repository.
        source: What is looked for.
        local_files_only: Take only what is on this machine; HF_HUB_OFFLINE=1 does so too.

    Raises:
        OSError: if the files can't be had, with the reason and the way out.
    """
    place = _resolve(given, source)
    if isinstance(place, Path):
        return place
    repository, revision = place
    unnamed = "@" not in named(given, source)
    first = len(source.files) == 1 and unnamed and not local_files_only  # a folder may lack a part
    if first and (found := find_local(given, source)):
        return found
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
    files = (path.relative_to(folder).as_posix() for path in folder.glob("**/*"))
    _check_files(files, repository, source)
    return folder / source.files[0] if len(source.files) == 1 else folder


@dataclass(frozen=True)
class Preview:
    """A model before it is downloaded.

    Attributes:
        path: What of it is on this machine now: its file or folder, or a folder with its
            `model_index.json` alone; None if it is nothing.
        missing: Bytes that have to be downloaded, as far as the Hub tells.
    """

    path: Path | None
    missing: int = 0


def preview(given: str | Path | None, source: HubSource) -> Preview:
    """Checks that a model can be had, before this one or another is downloaded for an hour.

    The Hub is asked which files there are, and for the one that says what model it is; it is not
    asked for a model that is on this machine, or with HF_HUB_OFFLINE=1.

    Args:
        given: As in `locate`.
        source: What is looked for.

    Raises:
        OSError: as in `locate`.
    """
    place = _resolve(given, source)
    if isinstance(place, Path):
        return Preview(place)
    if (found := find_local(given, source)) or constants.HF_HUB_OFFLINE:
        return Preview(found)
    repository, revision = place
    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
        if info.gated:
            HfApi().auth_check(repository)
        if info.siblings:  # mirrors may not list them
            _check_files((file.rfilename for file in info.siblings), repository, source)
        missing = _missing(info, repository, source)
        index = None
        if _INDEX in source.files:
            index = snapshot_download(repository, revision=revision, allow_patterns=[_INDEX])
    except FileNotFoundError:
        raise
    except Exception as error:  # as above
        if type(error) is HfHubHTTPError and error.response.status_code in _NO_ANSWER:
            return Preview(None)  # a mirror may have the files, and no more
        raise explained(error, repository, revision, source) from error
    return Preview(Path(index) if index else None, missing)


def find_local(given: str | Path | None, source: HubSource) -> Path | None:
    """The file or folder if it is on this machine, whole as far as names tell; else None."""
    try:
        return locate(given, source, local_files_only=True)
    except OSError:
        return None


def assets_folder(name: str) -> Path:
    """Where huggingface_hub has other packages keep what they make of its files; it need not be
    there."""
    return Path(constants.HF_ASSETS_CACHE) / "ultragen" / name


def origin(path: Path) -> str:
    """`owner/name@commit` of what lies in the Hub's cache; of other paths the last name."""
    found = re.search(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]+)", path.as_posix())
    return f"{found[1]}/{found[2]}@{found[3]}" if found else path.name


def _resolve(given: str | Path | None, source: HubSource) -> Path | tuple[str, str]:
    """A path that is there, or a repository and its revision."""
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
    own = found["repository"] == source.repository
    return found["repository"], found["revision"] or (source.revision if own else MAIN)


def _is_file_name(text: str) -> bool:
    return text.endswith((*SUFFIXES, ".json"))


def _check_files(names: Iterable[str], repository: str, source: HubSource) -> None:
    names = list(names)
    if missing := [pattern for pattern in source.files if not matching(names, pattern)]:
        raise FileNotFoundError(
            f"{repository} is not {source.name}, or not all of it is here: it has no "
            f"{', '.join(missing)}. Take {source.repository}, or a copy of it, in "
            f"{source.variable}."
        )


def check_space(missing: int) -> None:
    """Checks that downloads fit on the disk.

    Args:
        missing: Their bytes.

    Raises:
        OSError: if they don't.
    """
    cache = Path(constants.HF_HUB_CACHE)
    there = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    free = disk_usage(there).free
    if missing > free:
        raise OSError(
            f"What is missing of the model, {missing / 1e9:.1f} GB, does not fit on the disk of "
            f"{cache}, where {free / 1e9:.1f} GB are free: free space, or set HF_HOME to a folder "
            "on another disk."
        )


def _missing(info: ModelInfo, repository: str, source: HubSource) -> int:
    """Bytes that are not here yet, neither whole nor in half a download."""
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    missing = sum(
        sizes[name]
        for pattern in source.files
        for name in matching(sizes, pattern)
        if not isinstance(try_to_load_from_cache(repository, name, revision=info.sha), str)
    )
    begun = stored(repository).glob("blobs/*.incomplete")
    return max(0, missing - sum(path.stat().st_size for path in begun))
