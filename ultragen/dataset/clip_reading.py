"""Clips that are read from their files while others are encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from .buckets import Bucket, fit
from .frames import read_frames
from .planning import Fault, Job, faults

T = TypeVar("T")
PIECE = 4  # frames that are read, scaled and encoded at a time


def read_jobs(
    jobs: Iterable[Job], frame_rate: float, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Job, list[Tensor] | Fault | None]]:
    """Reads file after file.

    Args:
        jobs: What is to be read.
        frame_rate: Frames a second.
        device: Where frames are made to fit.
        dtype: The encoder's type.

    Yields:
        Each job with one clip after the other, in pieces 3 t h w in [-1, 1] on the CPU; then with
        its fault, or None.
    """
    # Beside the encoder, which has the device's own stream.
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def fitted(group: list[np.ndarray], bucket: Bucket) -> Tensor:
        with torch.cuda.stream(stream):
            pictures = fit(torch.from_numpy(np.stack(group)).to(device), bucket) * 2 - 1
            return rearrange(pictures, "t c h w -> c t h w").to(dtype).cpu()

    for job in jobs:
        fault = None if job.left_out is None else Fault(job.left_out, job.lasting)
        try:
            for clip in read_clips(job, frame_rate, fitted):
                yield job, clip
        except Fault as error:
            fault = error
        yield job, fault


def read_clips(
    job: Job, frame_rate: float, fitted: Callable[[list[np.ndarray], Bucket], Tensor]
) -> Iterator[list[Tensor]]:
    """The clips of one file, each as what `fitted` makes of its first 5 frames, then of 4 at a
    time.

    Raises:
        Fault: The frames end before the first clip does, or can't be read on.
    """
    if job.bucket is None:
        return
    frames = read_frames(job.source.path, frame_rate)
    for number in range(job.clips):
        pieces: list[Tensor] = []
        missing = job.bucket.num_frames
        while missing:
            size = min(missing, PIECE + (not pieces))
            with faults():
                group = list(islice(frames, size))
            if len(group) < size:
                if number:  # what a file says of its length is rounded
                    return
                raise Fault("shorter than it says")
            pieces.append(fitted(group, job.bucket))
            missing -= size
        yield pieces


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, of which the next is read while the last one is encoded."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
