"""The files of a dataset: settings, and shards of latents and text embeddings.

    dataset.json              the settings
    latents/NAME.safetensors  the latents of some clips
    latents/NAME.json         what they are, and which files were left out; marks the shard as done
    text/NAME.safetensors     embeddings of some captions, and so their `.json`

Each is written whole or not at all. A shard whose `.json` is missing does not count: a run was
killed before it was whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..files import create_json, whole_file, write_json

FORMAT = 1
LATENTS: Final = "latents"
TEXT: Final = "text"
SETTINGS = "dataset.json"
SHARD_BYTES = 2**28
SHARD_SECONDS = 60.0  # of work that a kill may cost
Size = tuple[int, int, int]
"""Rows and columns in pixels, and frames."""


@dataclass(frozen=True)
class DatasetSettings:
    """What all clips of a dataset have in common.

    Attributes:
        model: Whose latents these are: `wan` or `embedded`.
        vae: Fingerprint of the autoencoder.
        text_encoder: Fingerprint of tokenizer and text encoder; None where captions alone are kept.
        frame_rate: Frames a second.
        buckets: Sizes that clips were cut to, each HEIGHTxWIDTHxFRAMES.
        clips: Which clips were cut from a source: the first alone, `head`, or `all`.
        enlarge: Whether clips smaller than every bucket were enlarged.
        version: Of the files' format.
    """

    model: Literal["wan", "embedded"]
    vae: str
    text_encoder: str | None
    frame_rate: float
    buckets: tuple[str, ...]
    clips: Literal["head", "all"] = "head"
    enlarge: bool = False
    version: int = FORMAT


@dataclass(frozen=True)
class EncodedClip:
    """Where a clip was cut out, and where its latents lie.

    Attributes:
        start: Seconds in the source.
        height: Rows in pixels.
        width: Columns in pixels.
        num_frames: Frames, 4n + 1.
        tensor: Key of its latents in the shard.
        digest: Hash of its latents.
    """

    start: float
    height: int
    width: int
    num_frames: int
    tensor: str
    digest: str


@dataclass(frozen=True)
class EncodedSource:
    """A file that is done, whatever came out of it.

    Attributes:
        name: Its path in the folder of clips.
        size: Its bytes, when it was read.
        modified: When it was last changed, in nanoseconds.
        captions: One or several to draw from.
        clips: What was cut out of it; none if it was left out.
        left_out: Why it was, or why a part of it was; None if it was not.
    """

    name: str
    size: int
    modified: int
    captions: tuple[str, ...]
    clips: tuple[EncodedClip, ...] = ()
    left_out: str | None = None

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> EncodedSource:
        clips = tuple(EncodedClip(**clip) for clip in entry["clips"])
        return cls(**{**entry, "captions": tuple(entry["captions"]), "clips": clips})


def size_text(size: Iterable[int]) -> str:
    """As buckets are typed: HEIGHTxWIDTHxFRAMES."""
    return "x".join(map(str, size))


def caption_key(caption: str) -> str:
    """Name of a caption's embedding."""
    return hashlib.sha256(caption.encode("utf-8", "surrogatepass")).hexdigest()


def latents_digest(latents: Tensor) -> str:
    """Hash of a tensor's bytes."""
    return hashlib.sha256(save({"": latents.contiguous().cpu()})).hexdigest()


def is_dataset(folder: Path) -> bool:
    """Whether a folder is one that `dataset` wrote."""
    return (folder / SETTINGS).is_file()


def read_settings(folder: Path) -> DatasetSettings:
    """The settings of a dataset.

    Raises:
        ValueError: The folder is no dataset, or one of another version.
        OSError: The file is damaged.
    """
    if not is_dataset(folder):
        raise ValueError(
            f"{folder} is no dataset, it has no {SETTINGS}: make one of a folder of clips with "
            "`python -m ultragen dataset CLIPS --out DATASET`."
        )
    content = _read_json(folder / SETTINGS)
    if content.get("version") != FORMAT:
        raise ValueError(
            f"{folder} has version {content.get('version')} of the format, and this UltraGen reads "
            f"{FORMAT}: make it again with `dataset`."
        )
    if {each.name for each in fields(DatasetSettings)} != content.keys():
        raise _damaged(folder / SETTINGS)
    return DatasetSettings(**{**content, "buckets": tuple(content["buckets"])})


def create_settings(folder: Path, settings: DatasetSettings) -> None:
    """Writes the settings of a new dataset, or compares them with those that are there.

    Raises:
        ValueError: The folder holds a dataset with other settings, which are named.
        OSError: The folder can't be written to.
    """
    create_json(folder / SETTINGS, asdict(settings))
    before = asdict(read_settings(folder))
    for name, value in asdict(settings).items():
        if before[name] != value:
            raise ValueError(
                f"{folder} holds a dataset with {name} {_shown(before[name])}, not "
                f"{_shown(value)}: choose another --out, or start again with --overwrite."
            )


def open_dataset(folder: Path, settings: DatasetSettings, overwrite: bool = False) -> None:
    """Creates a dataset, or goes on with one of the same settings, tidied up.

    Args:
        folder: Where it lies.
        settings: What all of its clips have in common.
        overwrite: Whether what is there is removed first.

    Raises:
        ValueError: The folder holds a dataset with other settings, or latents that are none.
        OSError: The folder can't be written to.
    """
    if is_dataset(folder):
        if overwrite:
            forget(folder)
    elif taken := [kind for kind in (LATENTS, TEXT) if _is_taken(folder / kind)]:
        raise ValueError(
            f"{folder} is no dataset, but has files in {' and '.join(taken)}: choose another --out."
        )
    try:
        create_settings(folder, settings)
        remove_leftovers(folder)
    except OSError as error:
        if error.strerror is None:  # our own
            raise
        raise OSError(
            f"{folder} can't be written to ({error.strerror}): choose another --out."
        ) from error


def _is_taken(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    return value[:12] if isinstance(value, str) else str(value)


def read_sources(folder: Path) -> Iterator[tuple[str, EncodedSource]]:
    """The files that are done, once each, with the shard that holds their latents.

    Raises:
        OSError: A shard is missing or damaged.
    """
    found: dict[str, tuple[str, EncodedSource]] = {}
    for shard, entry in _entries(folder, LATENTS):
        try:
            source = EncodedSource.from_json(entry)
        except (TypeError, KeyError) as error:
            raise _damaged((folder / shard).with_suffix(".json")) from error
        # What was left out may have been tried again; two runs at once may encode the same.
        earlier = found.get(source.name)
        if earlier is None or _rank(source) > _rank(earlier[1]):
            found[source.name] = shard, source
    yield from found.values()


def _rank(source: EncodedSource) -> tuple[bool, int]:
    return bool(source.clips), source.modified


def read_text_index(folder: Path) -> dict[str, str]:
    """Key of each embedding → the shard that holds it; errors as in `read_sources`."""
    return {entry["caption"]: shard for shard, entry in _entries(folder, TEXT)}


def _entries(folder: Path, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((folder / kind).glob("[!.]*.json")):
        content = _read_json(path)
        shard = path.with_suffix(".safetensors")
        if not shard.is_file() or shard.stat().st_size != content.get("bytes"):
            state = "incomplete" if shard.is_file() else "missing"
            raise OSError(
                f"{shard} is {state}: copy it again, or remove {path.name} beside it and run "
                "`dataset` again."
            )
        for entry in content["entries"]:
            yield shard.relative_to(folder).as_posix(), entry


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path) from error
    if not isinstance(content, dict):
        raise _damaged(path)
    return content


def _damaged(path: Path) -> OSError:
    return OSError(f"{path} is damaged: copy it again, or remove it and run `dataset` again.")


def read_tensor(path: Path, key: str) -> Tensor:
    """One tensor of a shard.

    Raises:
        OSError: The shard is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(key)
    except (SafetensorError, FileNotFoundError) as error:
        raise OSError(
            f"{path} is missing or damaged: copy it again, or remove {path.stem}.json beside it "
            "and run `dataset` again."
        ) from error


@dataclass
class ShardWriter:
    """Collects tensors, and writes them as a shard once they are many or wait for long.

    Attributes:
        folder: The dataset.
        kind: `latents` or `text`.
        most_bytes: Of tensors in a shard, but for the last one that was added.
        most_seconds: From the first tensor of a shard until it is written.
        written: Bytes in the shards so far.
    """

    folder: Path
    kind: Literal["latents", "text"]
    most_bytes: int = field(default_factory=lambda: SHARD_BYTES)
    most_seconds: float = field(default_factory=lambda: SHARD_SECONDS)
    written: int = 0
    _tensors: dict[str, Tensor] = field(default_factory=dict)
    _entries: list[Mapping[str, Any]] = field(default_factory=list)
    _since: float = 0.0

    def add_source(self, source: EncodedSource, latents: Mapping[str, Tensor]) -> None:
        """Adds a file that is done, and the latents of its clips by their keys.

        Raises:
            OSError: The disk is full, or the folder can't be written to.
        """
        self._add(asdict(source), latents)

    def add_text(self, caption: str, embedding: Tensor) -> None:
        """Adds a caption's embedding n d; errors as in `add_source`."""
        key = caption_key(caption)
        self._add({"caption": key}, {key: embedding})

    def _add(self, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        if not self._entries:
            self._since = time.monotonic()
        self._entries.append(entry)
        self._tensors.update(tensors)
        size = sum(tensor.nbytes for tensor in self._tensors.values())
        if size >= self.most_bytes or time.monotonic() - self._since >= self.most_seconds:
            self.flush()

    def flush(self) -> None:
        """Writes what was collected; errors as in `add_source`."""
        if not self._entries:
            return
        content = save({key: tensor.contiguous() for key, tensor in self._tensors.items()})
        # By its content: what is encoded again after a kill takes the place of what was left.
        name = hashlib.sha256(content + json.dumps(self._entries).encode()).hexdigest()[:16]
        path = self.folder / self.kind / f"{name}.safetensors"
        try:
            # `save_file` of safetensors does not raise OSError where the disk is full.
            with whole_file(path) as partial:
                partial.write_bytes(content)
            write_json(path.with_suffix(".json"), {"bytes": len(content), "entries": self._entries})
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            state = (
                "is full, or files are limited in size"
                if full
                else f"fails ({error.strerror or error})"
            )
            raise OSError(
                f"The disk of {self.folder} {state}. What was written before stays: make room, and "
                "the same command goes on."
            ) from error
        self.written += len(content)
        self._tensors, self._entries = {}, []


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed run left: half-written files, and shards that don't count."""
    for path in (*folder.glob(".*.partial.*"), *folder.glob("*/.*.partial.*")):
        path.unlink(missing_ok=True)
    for kind in (LATENTS, TEXT):
        for path in (folder / kind).glob("*.safetensors"):
            if not path.with_suffix(".json").exists():
                path.unlink(missing_ok=True)


def forget(folder: Path) -> None:
    """Removes a dataset from its folder, and nothing else: marks first and settings last, so that
    one whose removal is killed is a smaller dataset."""
    for pattern in (f"{LATENTS}/*.json", f"{TEXT}/*.json"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    remove_leftovers(folder)
    (folder / SETTINGS).unlink(missing_ok=True)
