"""In how many strips of rows Wan's autoencoder encodes a clip: its memory, counted.

As in decoding (`wan_strips`), each causal convolution keeps the last two frames of its input, and
those that halve the time the last one. In values per pixel of the clip's frame, for Wan2.1's
channels (96 at the full size, 192 at 1/2, 384 at 1/4 and 1/8 of it):

    pictures and first blocks, at the full size   2 × 3 + 4 × 2 × 96                       774
    second blocks, at 1/2                         (96 + 3 × 192) × 2 / 4                   336
    first halving of the time, at 1/4             192 / 16                                  12
    third blocks, at 1/4                          (192 + 3 × 384) × 2 / 16                 168
    the rest, at 1/8                              (9 × 2 × 384 + 384) / 64                 114

What the strips end with is at 1/4 of the size: 24 values a pixel for each latent frame, 2.1 GB for
81 frames at 1088×1920. Strips are computed through the whole clip one after the other, and what
follows, on whole frames, begins when all are done. Clips so long that this takes more than what all
strips keep for the next frame go through time with all strips side by side.

A strip computes with the rows that the convolutions behind see: at inner edges 13 pixels above and
16 below for the first blocks, 8 and 10 for the second ones. The two differ because what halves the
rows sees one row below, and none above. At 1088×1920, 4 strips compute 4 % more operations than the
whole frame, 8 strips 10 % and 17 strips 23 % (counted).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..hardware import GIB
from .wan_strips import FEATURES, MOST_VALUES, ROWS_PER_FEATURE, WORKING, Clip

# Values that are kept for the next latent frame per pixel (see above), and the rows of pixels
# beyond a strip for which they are, above and below together.
STATES = ((774, 29), (336, 18), (12, 0))
WORKING_ROWS = 29
LOW_STATE = 168 + 114
# Within a residual block at 1/4: as `WORKING`, but 2 frames of 384 channels.
LOW_WORKING = 2 * 384 * 4 // 16
MEANS = 1  # of each latent frame: 2 × 16 / 64, once more when they are joined
# Encoding takes no more than these bytes, or these values a pixel beside what all strips end with,
# however much is free: longer strips would save a few percent of the time.
USUAL_MEMORY, USUAL_VALUES = 3 * GIB, 750


@dataclass(frozen=True)
class EncodedClip(Clip):
    """What is encoded; of the latents' frames as of the pictures, see `Clip`."""

    def memory(self, strips: int, resident: int) -> int:
        """Bytes of encoding beside the weights and the pictures, in equal strips of which some are
        resident."""
        rows = -(-self.height // (strips * ROWS_PER_FEATURE)) * ROWS_PER_FEATURE

        def seen(beyond: int) -> int:
            return min(self.height, rows + beyond)

        state = sum(values * seen(beyond) for values, beyond in STATES)
        fine = WORKING * seen(WORKING_ROWS)
        low = LOW_STATE + FEATURES
        features = FEATURES * self.latent_frames * (strips - resident) // strips
        if resident:
            values = resident * state + self.height * low + max(fine, self.height * LOW_WORKING)
        else:
            values = max(state + fine, self.height * (low + LOW_WORKING))
        values += self.height * (features + MEANS * self.latent_frames)
        return values * self.width * self.batch * self.bytes_per_value

    def indexable(self, strips: int) -> bool:
        """Whether every tensor of a strip is small enough to be indexed."""
        rows = min(self.height, -(-self.height // strips) + WORKING_ROWS)
        return rows * self.width * self.batch * 6 * 96 <= MOST_VALUES

    def residents(self, strips: int) -> Iterable[int]:
        """None where what the strips end with takes less than their states, else all."""
        return sorted((0, strips), key=lambda resident: self.memory(strips, resident))

    @property
    def usual_memory(self) -> int:
        """Bytes that encoding takes at most where more are free."""
        values = FEATURES * self.latent_frames + USUAL_VALUES
        pixels = self.height * self.width * self.batch
        return max(USUAL_MEMORY, values * pixels * self.bytes_per_value)
