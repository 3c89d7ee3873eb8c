"""A folder of clips → a dataset: captions first, then clips, each once, by one process or several.

Both networks need not be on the device together. A run that is killed goes on: every process takes
the files whose turn it is and leaves out those that are done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal, cast

from torch import Tensor

from ..hardware import free_memory, is_out_of_memory
from .buckets import Bucket
from .clip_reading import read_ahead, read_jobs
from .encoders import (
    CaptionEncoder,
    caption_bytes,
    encode_clip,
    latent_bytes,
    load_autoencoder,
    locate_base,
)
from .encoding_processes import Processes
from .planning import Job, Request, changed, file_state, plan
from .report import Remaining, Report, check_disk, plan_text
from .shard_files import (
    LATENTS,
    TEXT,
    DatasetSettings,
    EncodedClip,
    EncodedSource,
    ShardWriter,
    caption_key,
    latents_digest,
    open_dataset,
    read_sources,
    read_text_index,
)
from .shards import text_fingerprint, vae_fingerprint
from .sources import LeftOut, Source, find_sources


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
        request, processes = self.request, self.processes
        # What is wrong is said once, and what is missing is downloaded once.
        if not processes.first:
            processes.wait()
        request.check()
        sources, without = self._find_sources()
        base = locate_base(request.model, request.base)
        if processes.first:
            processes.wait()
        self._open(base)
        jobs = self._plan(sources, base)
        if request.model == "wan":
            self._encode_captions(base, jobs)
        failed = processes.gather(self._encode_clips(base, jobs))
        report = Report.read(request.out, chain(without, *failed))
        if processes.first:
            report.write()
        return report

    def _find_sources(self) -> tuple[list[Source], list[LeftOut]]:
        """The clips, and what is left out already. What lies in the dataset's own folder, where
        that is one of the folders with clips, is neither."""
        request, out = self.request, self.request.out.resolve()
        found, left_out = find_sources(request.folder, request.caption_columns, request.table)
        if out.is_relative_to(folder := request.folder.resolve()):
            own = f"{out.relative_to(folder).as_posix()}/"
            found = [source for source in found if not source.name.startswith(own)]
            left_out = [each for each in left_out if not each.name.startswith(own)]
        sources = []
        for source in found:
            if is_unicode(source.name, *source.captions):
                sources.append(source)
            else:
                left_out.append(LeftOut(ascii(source.name), "name or caption is not UTF-8"))
        return sources, left_out

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
            request.clips,
            request.enlarge,
        )
        if self.processes.first:
            open_dataset(request.out, settings, request.overwrite)
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
                f"{len(names)} of the files in {request.out} or their captions have changed since, "
                f"or are gone ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}): their "
                "clips stay as they are; --overwrite encodes everything again."
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
        with memory_said("the captions"), flushed(writer):
            encoder = CaptionEncoder(base, self.processes.device)
            for number, (caption, embedding) in enumerate(encoder.encode(captions), 1):
                writer.add_text(caption, embedding)
                remaining.add(1)
                said = f"caption {number} of {len(captions)}, {remaining}"
                self.show(remaining.fraction, said)
        del encoder
        free_memory(self.processes.device)

    def _encode_clips(self, base: Path, jobs: list[Job]) -> list[LeftOut]:
        """Encodes the clips of jobs; returns what failed and is not written down, so that the next
        run tries it again."""
        if not jobs:
            return []
        request, device = self.request, self.processes.device
        self.show(0.0, "loading the autoencoder")
        failed: list[LeftOut] = []
        done, remaining = EncodedClips(), Remaining(sum(j.clips * j.clip_pixels for j in jobs))
        with memory_said("the clips"), flushed(ShardWriter(request.out, LATENTS)) as writer:
            vae = load_autoencoder(request.model, base, device)
            for job, found in read_ahead(read_jobs(jobs, request.frame_rate, device, vae.dtype)):
                self.show(remaining.fraction, f"{job.source.name}, {remaining}")
                if isinstance(found, list):
                    done.add(job, encode_clip(vae, found), request.frame_rate)
                    remaining.add(job.clip_pixels)
                    continue
                if found is None or found.lasting:
                    reason = str(found) if found else done.left_out
                    writer.add_source(job.done(done.clips, reason), done.latents)
                else:
                    failed.append(LeftOut(job.source.name, str(found)))
                # Clips that did not come are no longer to be waited for.
                remaining.add((job.clips - done.seen) * job.clip_pixels)
                done = EncodedClips()
        return failed


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


@dataclass
class EncodedClips:
    """Clips of one file, as far as they are encoded.

    Attributes:
        clips: What is written of them.
        latents: Their latents c t h w by the keys of their tensors.
        seen: How many there were.
        left_out: Why some of them are left out.
    """

    clips: list[EncodedClip] = field(default_factory=list)
    latents: dict[str, Tensor] = field(default_factory=dict)
    seen: int = 0
    left_out: str | None = None

    def add(self, job: Job, latents: Tensor, frame_rate: float) -> None:
        """Adds the next clip."""
        bucket, number = cast(Bucket, job.bucket), self.seen
        self.seen += 1
        if not latents.isfinite().all():
            self.left_out = "latents that are not finite"
            return
        start, tensor = number * bucket.num_frames / frame_rate, f"{job.source.name}#{number}"
        size = bucket.height, bucket.width, bucket.num_frames
        self.clips.append(EncodedClip(start, *size, tensor, latents_digest(latents)))
        self.latents[tensor] = latents
