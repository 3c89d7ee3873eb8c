"""Which clips the transformers are trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ClipSize:
    """One kind of clip that a transformer is trained on.

    Attributes:
        height: Rows in pixels.
        width: Columns in pixels.
        num_frames: Frames, 4n + 1.
        batch_size: Clips a step in each process.
        pool: Clips kept on the device.
        first: Clips made before training starts.
        chunk: Clips rendered at a time.
        weight: How often a step uses this kind.
        windows: Settings of K to draw from; empty for a dense model.
    """

    height: int
    width: int
    num_frames: int = 17
    batch_size: int = 128
    pool: int = 24_000
    first: int = 3_000
    chunk: int = 32
    weight: float = 1.0
    windows: tuple[int, ...] = ()

    def with_batch(self, scale: float) -> ClipSize:
        """The same kind in smaller or larger batches, of one clip at least."""
        return replace(self, batch_size=max(1, round(scale * self.batch_size)))


# Single frames have a fifth of a clip's tokens and cost a seventeenth of its rendering, and teach
# all but motion: half of the steps use them.
BASE_SIZES = (
    ClipSize(288, 512, num_frames=1, batch_size=512, pool=100_000, first=3_000, chunk=128),
    ClipSize(288, 512, batch_size=128, pool=24_000, first=500, chunk=32),
)
# K is mostly what "auto" takes at the size. The pools leave room for recorded steps on 80 GB.
ULTRAGEN_SIZES = (
    ClipSize(
        544, 960, num_frames=1, batch_size=128, pool=16_000, first=1_000, chunk=32, weight=0.3,
        windows=(2, 2, 4),
    ),
    ClipSize(
        544, 960, batch_size=24, pool=3_000, first=120, chunk=8, weight=0.3, windows=(2, 2, 4)
    ),
    ClipSize(
        1088, 1920, num_frames=1, batch_size=32, pool=4_000, first=200, chunk=8, weight=0.25,
        windows=(4, 4, 6),
    ),
    ClipSize(
        1088, 1920, batch_size=6, pool=800, first=24, chunk=2, weight=0.15, windows=(4, 4, 6)
    ),
)  # fmt: skip
# Nothing is rendered here; single frames teach guidance at a fifth of a clip's cost.
BASE_DISTILL_SIZES = (
    ClipSize(288, 512, num_frames=1, batch_size=256, weight=0.4),
    ClipSize(288, 512, batch_size=96, weight=0.6),
)
DISTILL_SIZES = (
    ClipSize(544, 960, num_frames=1, batch_size=96, weight=0.3, windows=(2,)),
    ClipSize(544, 960, batch_size=24, weight=0.4, windows=(2,)),
    ClipSize(1088, 1920, num_frames=1, batch_size=24, weight=0.2, windows=(4,)),
    ClipSize(1088, 1920, batch_size=6, weight=0.1, windows=(4,)),
)
