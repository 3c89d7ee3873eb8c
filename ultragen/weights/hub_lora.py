"""A LoRA on the Hub: one file of a repository."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download

from ..presets import MAIN, HubSource
from .hub_errors import explained

_PLACE = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(/(?P<file>[^@]+))?(@(?P<revision>[\w./-]+))?")
_BESIDE = "adapter_config.json"  # peft's settings


def locate_lora(
    place: str,
    choose: Callable[[Iterable[str]], str],
    file: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
) -> Path:
    """A LoRA's file, downloaded if it is not on this machine yet.

    Args:
        place: `owner/name`, `owner/name/FILE`, and either with `@revision`.
        choose: The LoRA among the files of a repository.
        file: Which file, if `place` does not say so.
        revision: Commit, tag or branch, if `place` does not say so.
        local_files_only: Take only what is on this machine; HF_HUB_OFFLINE=1 does so too.
        token: Of the Hub, for private repositories.
        cache_dir: Where downloads are kept, if not in huggingface_hub's usual place.
        force_download: Download it again.

    Raises:
        OSError: if the file can't be had, with the reason and the way out.
        ValueError: if the repository holds several LoRAs.
    """
    found = _PLACE.fullmatch(place)
    if found is None or place.startswith((".", "~")) or Path(place).suffix in (".ckpt", ".pt"):
        raise FileNotFoundError(
            f"There is no LoRA {place}: give an existing file or folder, or a repository on the "
            "Hub as owner/name or owner/name/FILE."
        )
    repository = found["repository"]
    file, revision = found["file"] or file, found["revision"] or revision or MAIN
    offline = local_files_only or constants.HF_HUB_OFFLINE
    with _explaining(repository, revision, local_files_only):
        info = None
        if file is None and not offline:
            info = HfApi(token=token).model_info(repository, revision=revision)
    if info is not None:
        file = choose(sibling.rfilename for sibling in info.siblings or ())
    with _explaining(repository, revision, local_files_only):
        folder = Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=[file, _BESIDE] if file else None,
                local_files_only=offline,
                force_download=force_download,
                token=token,
                cache_dir=cache_dir,
            )
        )
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    if file is not None and file not in names:
        raise FileNotFoundError(f"The LoRA's repository {repository} has no {file}.")
    return folder / (file or choose(names))


@contextmanager
def _explaining(repository: str, revision: str, local_files_only: bool) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # transport errors share no base class with the Hub's own
        # The way out in it is another value of what named the LoRA, whatever that was.
        source = HubSource("the LoRA", repository, MAIN, "the LoRA's path", ())
        raise explained(error, repository, revision, source, local_files_only) from error
