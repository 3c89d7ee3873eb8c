"""What many clips, or a training, take of one GPU and of many: hours, disk, energy.

Prompts share nothing: each GPU makes its part of them, after it has loaded the model once. A
training exchanges weights and gradients in each step. What was measured stands beside each number
below; from it follows the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from .coefficients import Coefficients
from .cost import Job, estimate

COUNTS = (1, 2, 4, 8, 16, 32, 64)
"""GPUs of a table."""
START = {"embedded": 4.4, "wan": 30.0}
"""Seconds until a process begins its first clip: the 10.2 s that `batch` took for three clips on
two CPU cores, less the 5.8 s of these (2026-11-30); on an H100 20 s of loading (docs/hardware.md),
and about 10 for the libraries, which were not timed apart."""
CLIP_BYTES = 0.034
"""Bytes that a pixel takes in an MP4, the mean of the page's six examples, of 17 frames; they lie
between 0.021 and 0.050. Nobody has measured the published weights' clips."""

TRAINING_PASSES = 4.4
"""Forward passes that a training step of a clip takes as long as, with AdamW and all blocks
recomputed: 6.96 s at 1088 × 1920 × 81 on an H200, where a pass takes 1.57 (docs/training-wan.md,
docs/benchmarks.md)."""
EXCHANGE = 0.42
"""Seconds by which very many GPUs of one host make a step longer, of which n GPUs take the part
(n - 1) / n: two H200s took 7.23 s for a step that one does in 7.02."""
TRAINING_START = 47.0
"""Seconds until the first step (docs/training-wan.md)."""
ENCODING = 3.8e-8
"""Seconds that `dataset` takes for a pixel of what it keeps: 6.4 s for 1088 × 1920 × 81 on an H200,
most of it for reading the file of 4K that this is made from (docs/training-wan.md)."""
LATENT_BYTES = 0.134
"""Bytes of latents and captions for a pixel: 22.8 MB for such a clip (`whole-training.json`)."""
CHECKPOINT_BYTES, EXPORT_BYTES = 21.2e9, 7.1e9
"""Of a training of all weights (docs/training-wan.md); a new checkpoint is there before the old
one goes."""


@dataclass(frozen=True)
class Plan:
    """What work takes on so many GPUs.

    Attributes:
        gpus: How many there are.
        seconds: From the start to the end.
    """

    gpus: int
    seconds: float

    @property
    def gpu_hours(self) -> float:
        """Hours of all GPUs together, waiting included."""
        return self.gpus * self.seconds / 3600

    def energy(self, watts: float) -> float:
        """Kilowatt hours of GPUs that take so many watts each."""
        return self.gpu_hours * watts / 1000


def clip_seconds(job: Job, coefficients: Coefficients) -> float:
    """Seconds of a native clip alone, from the prompt to the file."""
    stages = estimate(job, coefficients)
    writing = job.pixels * coefficients.encode
    return stages["text"] + stages["denoise"] + stages["decode"] + writing


def clips_on(gpus: int, clips: Mapping[float, int], start: float, together: int = 1) -> Plan:
    """What clips take of GPUs that share them out.

    Args:
        gpus: How many there are.
        clips: How many take so many seconds each.
        start: Seconds until a GPU begins its first clip.
        together: How many of them make each clip together.
    """
    number, seconds = sum(clips.values()), sum(each * count for each, count in clips.items())
    # The last clips are made while GPUs without any wait: as many rounds as the fullest GPU has.
    rounds = ceil(number / (gpus // together))
    return Plan(gpus, start + rounds * seconds / number)


def training_step(job: Job, coefficients: Coefficients, gpus: int) -> float:
    """Seconds of a step with one clip on each GPU.

    Args:
        job: Of a clip, with one step and one pass.
        coefficients: Of the card.
        gpus: How many share weights, gradients and states.
    """
    one = TRAINING_PASSES * estimate(job, coefficients)["denoise"]
    return one + EXCHANGE * (gpus - 1) / gpus


def training_on(gpus: int, clips: int, job: Job, coefficients: Coefficients) -> Plan:
    """What it takes to train on so many clips, those of all passes over a dataset counted."""
    steps = ceil(clips / gpus)
    return Plan(gpus, TRAINING_START + steps * training_step(job, coefficients, gpus))


def dataset_on(gpus: int, clips: int, job: Job) -> Plan:
    """What it takes to make latents of so many clips."""
    return Plan(gpus, TRAINING_START + ceil(clips / gpus) * job.pixels * ENCODING)
