"""A training so small that a laptop runs every stage in seconds: to try the commands out."""

from __future__ import annotations

from .build import TINY_SIZE
from .clip_sizes import ClipSize
from .stage_options import StageOptions

TINY = StageOptions(
    size=TINY_SIZE,
    base_sizes=(ClipSize(64, 96, num_frames=5, batch_size=2, pool=4, first=2, chunk=2),),
    ultragen_sizes=(
        ClipSize(96, 128, num_frames=5, batch_size=2, pool=4, first=2, chunk=2, windows=(2,)),
        ClipSize(160, 160, num_frames=5, batch_size=1, pool=4, first=2, chunk=2, windows=(2, 4)),
    ),
    base_distill_sizes=(ClipSize(64, 96, num_frames=5, batch_size=2),),
    distill_sizes=(ClipSize(96, 128, num_frames=5, batch_size=3, windows=(2,)),),
    distill=(("steps", 2), ("guidance_scale", 3.0)),
    autoencoder=(
        ("batch_size", 2),
        ("crop", 32),
        ("num_frames", 5),
        ("pool", 8),
        ("frame_sizes", ((64, 96), (96, 128))),
        ("statistics_clips", 2),
    ),
    classifier=(
        ("frame_sizes", ((64, 96), (96, 128))),
        ("num_frames", 5),
        ("batch_size", 2),
        ("pool", 8),
        ("chunk", 2),
        ("held_out", 4),
    ),
    upscaler=(("height", 64), ("width", 96), ("crop", 32), ("batch_size", 2), ("pool", 8)),
)
