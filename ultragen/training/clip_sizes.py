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
# all but motion: half of the steps use them. Portrait clips teach frames that are not 16:9.
BASE_SIZES = (
    ClipSize(288, 512, num_frames=1, batch_size=512, pool=100_000, first=3_000, chunk=128),
    ClipSize(288, 512, batch_size=128, pool=24_000, first=500, chunk=32, weight=0.8),
    ClipSize(512, 288, batch_size=128, pool=6_000, first=250, chunk=32, weight=0.2),
)
# K is mostly what "auto" takes at the size. The pools leave room for recorded steps on 80 GB.
ULTRAGEN_SIZES = (
    ClipSize(
        544, 960, num_frames=1, batch_size=128, pool=16_000, first=1_000, chunk=32, weight=0.25,
        windows=(2, 2, 4),
    ),
    ClipSize(
        544, 960, batch_size=24, pool=3_000, first=120, chunk=8, weight=0.22, windows=(2, 2, 4)
    ),
    ClipSize(
        544, 960, num_frames=33, batch_size=12, pool=600, first=36, chunk=4, weight=0.05,
        windows=(2,),
    ),
    ClipSize(960, 544, batch_size=24, pool=1_200, first=72, chunk=8, weight=0.08, windows=(2,)),
    ClipSize(
        736, 736, num_frames=5, batch_size=48, pool=2_400, first=144, chunk=16, weight=0.05,
        windows=(2,),
    ),
    ClipSize(
        1088, 1920, num_frames=1, batch_size=32, pool=4_000, first=200, chunk=8, weight=0.18,
        windows=(4, 4, 6),
    ),
    ClipSize(
        1088, 1920, batch_size=6, pool=800, first=24, chunk=2, weight=0.11, windows=(4, 4, 6)
    ),
    ClipSize(
        2176, 3840, num_frames=1, batch_size=8, pool=800, first=40, chunk=2, weight=0.06,
        windows=(8,),
    ),
)  # fmt: skip
# Nothing is rendered here; single frames teach guidance at a fifth of a clip's cost.
BASE_DISTILL_SIZES = (
    ClipSize(288, 512, num_frames=1, batch_size=256, weight=0.4),
    ClipSize(288, 512, batch_size=96, weight=0.5),
    ClipSize(512, 288, batch_size=96, weight=0.1),
)
DISTILL_SIZES = (
    ClipSize(544, 960, num_frames=1, batch_size=96, weight=0.27, windows=(2,)),
    ClipSize(544, 960, batch_size=24, weight=0.35, windows=(2,)),
    ClipSize(960, 544, batch_size=24, weight=0.06, windows=(2,)),
    ClipSize(1088, 1920, num_frames=1, batch_size=24, weight=0.18, windows=(4,)),
    ClipSize(1088, 1920, batch_size=6, weight=0.09, windows=(4,)),
    ClipSize(2176, 3840, num_frames=1, batch_size=6, weight=0.05, windows=(8,)),
)
