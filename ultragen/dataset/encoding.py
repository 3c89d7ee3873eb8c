"""A folder of clips → a dataset: captions first, then clips, each once, by one process or several.

Both networks need not be on the device together. A run that is killed goes on: every process takes
the files whose turn it is and leaves out those that are done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..files import first_line
from ..hardware import free_memory, is_out_of_memory
from .buckets import Bucket, fit
from .encoders import (
    Autoencoder,
    CaptionEncoder,
    caption_bytes,
    encode_clip,
    latent_bytes,
    load_autoencoder,
    locate_base,
)
from .frames import DamagedVideo, read_frames
from .planning import Job, Request, changed, file_state, plan
from .processes import Processes
from .report import Remaining, Report, check_disk, plan_text
from .shards import (
    LATENTS,
    TEXT,
    DatasetSettings,
    EncodedClip,
    EncodedSource,
    ShardWriter,
    caption_key,
    create_settings,
    forget,
    latents_digest,
    read_sources,
    read_text_index,
    remove_leftovers,
    text_fingerprint,
    vae_fingerprint,
)
from .sources import LeftOut, Source, find_sources

PIECE = 8  # frames that are read, scaled and encoded at a time
Show = Callable[[float, str], None]


class Unreadable(Exception):
    """A file gives no further frames; says why."""


class TooShort(Unreadable):
    """It has none."""


@dataclass
class Encoding:
    """A run, from a folder of clips to a dataset.

    Attributes:
        request: What is asked for.
        processes: Who takes part.
        show: Called with the fraction that this process has done of a stage, and a text.
        say: Called with lines for people.
    """

    request: Request
    processes: Processes
    show: Callable[[float, str], None]
    say: Callable[[str], None]

    def run(self) -> Report:
        """Makes the dataset, or what is missing of it.

        Raises:
            ValueError: There are no clips or captions, a size that the model can't take, or a
                dataset with other settings.
            OSError: Files of the model are missing, or the disk is full or too small.
            RuntimeError: The GPU's memory ran out.
        """
        request, out = self.request, self.request.out.resolve()
        request.check()
        sources, without = find_sources(request.folder, request.caption_columns, request.table)
        sources = [each for each in sources if out not in each.path.resolve().parents]
        odd = [each for each in sources if not is_unicode(each.name, *each.captions)]
        without += [LeftOut(ascii(each.name), "name or caption is not UTF-8") for each in odd]
        base = self._locate()
        self._open(base)
        jobs = self._plan([each for each in sources if each not in odd], base)
        if request.model == "wan":
            self._encode_captions(base, jobs)
        self._encode_clips(base, jobs)
        self.processes.wait()
        report = Report.read(request.out, without)
        if self.processes.first:
            report.write()
        return report

    def _locate(self) -> Path:
        """The pipeline's folder; the first process downloads what the others then find."""
        if not self.processes.first:
            self.processes.wait()
        base = locate_base(self.request.model, self.request.base)
        if self.processes.first:
            self.processes.wait()
        return base

    def _open(self, base: Path) -> None:
        """Creates the dataset, or compares its settings and tidies up after a run that was
        killed."""
        request = self.request
        wan = request.model == "wan"
        settings = DatasetSettings(
            cast(Literal["wan", "embedded"], request.model),
            vae_fingerprint(base),
            text_fingerprint(base) if wan else None,
            request.frame_rate,
            tuple(sorted(map(str, request.buckets))),
            request.enlarge,
        )
        if self.processes.first:
            try:
                if request.overwrite:
                    forget(request.out)
                create_settings(request.out, settings)
                remove_leftovers(request.out)
            except PermissionError as error:
                raise OSError(
                    f"{request.out} can't be written to ({error.strerror}): choose another --out."
                ) from error
        self.processes.wait()

    def _plan(self, sources: list[Source], base: Path) -> list[Job]:
        """This process's part of what is to be done; says what all of it is.

        Raises:
            OSError: It does not fit on the disk.
        """
        request, processes = self.request, self.processes
        done = {source.name: source for _, source in read_sources(request.out)}
        if processes.first and (names := changed(sources, done)):
            self.say(
                f"{len(names)} of the clips in {request.out} are of files that have changed or "
                f"are gone ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}): they stay "
                "as they are; --overwrite encodes everything again."
            )
        jobs = []
        mine = sources[processes.rank :: processes.count]
        for number, source in enumerate(mine):
            self.show(number / len(mine), f"looking at file {number + 1} of {len(mine)}")
            if is_missing(source, done):
                jobs.append(plan(source, request))
        clips: Counter[str] = Counter()
        for job in jobs:
            if job.bucket is not None:
                clips[str(job.bucket)] += job.clips
        gathered = processes.gather((clips, self._needed(jobs, base)))
        total = sum((each for each, _ in gathered), Counter())
        needed = sum(size for _, size in gathered)
        if processes.first and total:
            self.say(plan_text(total, needed, check_disk(request.out, needed)))
        processes.wait()
        return jobs

    def _needed(self, jobs: list[Job], base: Path) -> int:
        """Bytes that the latents and embeddings of jobs will take."""
        latents = sum(
            job.clips * latent_bytes(base, job.bucket) for job in jobs if job.bucket is not None
        )
        texts = self._captions(jobs) if self.request.model == "wan" else []
        return latents + (caption_bytes(base, texts) if texts else 0)

    def _captions(self, jobs: list[Job]) -> list[str]:
        """Captions of jobs that are not encoded yet, and the empty one, once each."""
        there = read_text_index(self.request.out)
        wanted = {text for job in jobs if job.bucket for text in job.source.captions}
        if self.processes.first:
            wanted.add("")
        return sorted(text for text in wanted if caption_key(text) not in there)

    def _encode_captions(self, base: Path, jobs: list[Job]) -> None:
        captions = self._captions(jobs)
        if not captions:
            return
        self.show(0.0, "loading the text encoder")
        writer, remaining = ShardWriter(self.request.out, TEXT), Remaining(len(captions))
        with memory_said("the text encoder"), flushed(writer):
            encoder = CaptionEncoder(base, self.processes.device)
            for number, (caption, embedding) in enumerate(encoder.encode(captions), 1):
                writer.add_text(caption, embedding)
                remaining.add(1)
                said = f"caption {number} of {len(captions)}, {remaining}"
                self.show(remaining.fraction, said)
        del encoder
        free_memory(self.processes.device)

    def _encode_clips(self, base: Path, jobs: list[Job]) -> None:
        request, vae = self.request, None
        remaining = Remaining(sum(job.pixels for job in jobs))
        with flushed(ShardWriter(request.out, LATENTS)) as writer:
            for number, job in enumerate(jobs, 1):
                said = f"file {number} of {len(jobs)}, {remaining}"
                self.show(remaining.fraction, said)
                if job.bucket is None:
                    writer.add_source(job.done(), {})
                    continue
                with memory_said(f"clips of {job.bucket}"):
                    vae = vae or load_autoencoder(request.model, base, self.processes.device)
                    clips, latents, reason = encode_source(vae, job, request.frame_rate)
                writer.add_source(job.done(clips, reason), latents)
                remaining.add(job.pixels)


def is_unicode(*texts: str) -> bool:
    """Whether texts can be written as UTF-8: names of files and escapes in tables may hold
    anything."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def is_missing(source: Source, done: dict[str, EncodedSource]) -> bool:
    """Whether a file is still to be encoded; one that was left out is tried again once it has
    changed."""
    before = done.get(source.name)
    if before is None or before.clips:
        return before is None
    return file_state(source.path) != (before.size, before.modified)


@contextmanager
def flushed(writer: ShardWriter) -> Iterator[ShardWriter]:
    """Writes what a writer has collected at the end, and when the user stops the run."""
    try:
        yield writer
    except KeyboardInterrupt:
        writer.flush()
        raise
    writer.flush()


@contextmanager
def memory_said(what: str) -> Iterator[None]:
    """Tells in one line that memory ran out, and what takes less.

    Raises:
        RuntimeError: It ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RuntimeError(
            f"The memory ran out while {what} were encoded: stop other programs, or choose a "
            "smaller --bucket or fewer frames; what is encoded so far stays."
        ) from error


def encode_source(
    vae: Autoencoder, job: Job, frame_rate: float
) -> tuple[list[EncodedClip], dict[str, Tensor], str | None]:
    """Encodes one clip after the other of a file, as long as there are frames.

    Returns:
        The clips, their latents c t h w by the key of their tensor, and why a part of the file, or
        all of it, was left out; None if it was not.
    """
    bucket = cast(Bucket, job.bucket)
    frames = readable(read_frames(job.source.path, frame_rate))
    groups = read_ahead(group_frames(frames, bucket.num_frames))
    clips: list[EncodedClip] = []
    latents: dict[str, Tensor] = {}
    with closing(groups):
        for number in range(job.clips):
            try:
                encoded = encode_clip(vae, take_clip(groups, bucket, vae.device))
            except TooShort as error:
                return clips, latents, None if clips else str(error)
            except Unreadable as error:
                return clips, latents, str(error)
            if not encoded.isfinite().all():
                return clips, latents, "its latents are not finite"
            tensor = f"{job.source.name}#{number}"
            start = number * bucket.num_frames / frame_rate
            size = bucket.height, bucket.width, bucket.num_frames
            clips.append(EncodedClip(start, *size, tensor, latents_digest(encoded)))
            latents[tensor] = encoded
    return clips, latents, None


def readable(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same frames, where every error of their reader is `Unreadable`."""
    try:
        yield from frames
    except DamagedVideo as error:
        raise Unreadable(first_line(error)) from error
    except Exception as error:  # readers of people's files raise whatever they like
        if is_out_of_memory(error):
            raise
        raise Unreadable(f"can't be read: {first_line(error)}") from error


def group_frames(frames: Iterator[np.ndarray], num_frames: int) -> Iterator[np.ndarray]:
    """Frames h w 3 → clips one after the other, each as groups t h w 3 of 1 + 8, 8, 8, ... frames;
    a group that is not whole is left out."""
    while True:
        missing = num_frames
        while missing:
            size = min(missing, PIECE + (missing == num_frames))
            group = list(islice(frames, size))
            if len(group) < size:
                return
            yield np.stack(group)
            missing -= size


def read_ahead(groups: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same groups, of which the next is read while the last one is encoded."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, groups, None)
        while (group := coming.result()) is not None:
            coming = pool.submit(next, groups, None)
            yield group


def take_clip(
    groups: Iterator[np.ndarray], bucket: Bucket, device: torch.device
) -> Iterator[Tensor]:
    """Groups of frames t h w 3 → the pieces of one clip at its bucket's size, c t h w in [0, 1].

    Raises:
        TooShort: The groups end before the clip does.
    """
    missing = bucket.num_frames
    while missing:
        group = next(groups, None)
        if group is None:
            raise TooShort(
                f"too short: {bucket.num_frames - missing} of {bucket.num_frames} frames"
            )
        missing -= len(group)
        yield rearrange(fit(torch.from_numpy(group).to(device), bucket), "t c h w -> c t h w")
