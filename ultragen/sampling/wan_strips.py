"""In how many strips of rows Wan's autoencoder decodes a frame: its memory, counted.

The decoder sees in time by keeping the last two input frames of each causal convolution. In values
per pixel of the clip's frame, for Wan2.1's channels (384 at 1/8 and 1/4 of the size, 192 at 1/2,
96 at the full size):

    convolutions of the first blocks, at 1/8     10 × 2 × 384 / 64 + 12                   132
    second block, at 1/4    (192 + 5 × 384 + 384 of the one in time) × 2 / 16             312
    third block, at 1/2                           6 × 2 × 192 / 4                         576
    last block and the output, at the full size   7 × 2 × 96                             1344

In bfloat16 that is 9.9 GB at 1088×1920 and 39.5 GB at 2176×3840 before anything is computed, in
strips or not, if all rows go through time together. Only what is kept for a strip whose frames are
all decoded can be given back. So the first strips are decoded through the whole clip one after the
other, and only their pictures stay, 3 values a pixel. The last ones, as many as memory holds, then
go through time side by side, and whole frames come out one by one. What all strips start from is
kept at 1/4 of the size: 24 values a pixel of the frame for each latent frame, 2.1 GB for 81 frames
at 1088×1920. Before the first upsampling it would be 6, and strips would compute more rows twice.

A strip computes with as many rows beyond its own as the convolutions behind see: at inner edges 48,
20 and 7 pixels for the second, third and last block. At 1088×1920, 4 strips compute 11 % more
operations than the whole frame, 8 strips 26 % and 17 strips 59 % (counted).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import inf

from ..hardware import GIB

# Values that are kept for the next latent frame per pixel (see above), and the rows of pixels
# beyond a strip for which they are, on each side.
LOW_STATE = 132
STATES = ((312, 48), (576, 20), (1344, 7))
# Within a residual block of the last stage: its input, the hidden state, and these with the two
# frames before them; 4 frames of 96 channels. The rows are those before they are cut.
WORKING, WORKING_ROWS = 4 * 96 * 7 // 2, 20
FEATURES = 24  # of each latent frame
PIECE = 4 * 3 * 7  # a latent frame's pictures, joined, and in float32 on their way out
ROWS_PER_FEATURE = 4
# The largest tensor, 6 frames of 96 channels, must have fewer values: kernels index by 32 bits.
MOST_VALUES = 2**31 - 1
SHORTEST = 64  # rows of pixels of a strip
# Decoding takes no more than these bytes, or these values a pixel beside what is kept of the whole
# clip, however much is free: longer strips would save a few percent of the time, and further ones
# side by side only the wait for the first frame.
USUAL_MEMORY, USUAL_VALUES = 3 * GIB, 1090


@dataclass(frozen=True)
class Clip:
    """What is decoded.

    Attributes:
        height: Rows of pixels.
        width: Columns of pixels.
        latent_frames: Frames of the latents; 1 + 4 (n - 1) of the clip.
        bytes_per_value: Of the type that is computed in.
        batch: Clips at once.
    """

    height: int
    width: int
    latent_frames: int
    bytes_per_value: int = 2
    batch: int = 1

    def memory(self, strips: int, resident: int) -> int:
        """Bytes of decoding beside the weights, in equal strips of which some are resident."""
        rows = -(-self.height // (strips * ROWS_PER_FEATURE)) * ROWS_PER_FEATURE

        def seen(beyond: int) -> int:
            return min(self.height, rows + 2 * beyond)

        state = sum(values * seen(beyond) for values, beyond in STATES)
        # The first blocks are done before the pictures of more than one strip are there.
        whole = LOW_STATE + PIECE + FEATURES
        if resident < strips:
            above = self.pictures * (strips - resident) // strips
            whole = max(LOW_STATE + self.pictures // strips, above + PIECE)
            whole += FEATURES * self.latent_frames
        values = self.height * whole + resident * state + WORKING * seen(WORKING_ROWS)
        return values * self.width * self.batch * self.bytes_per_value

    @property
    def pictures(self) -> int:
        """Values per pixel of the clip itself."""
        return 3 * (4 * self.latent_frames - 3)

    def indexable(self, strips: int) -> bool:
        """Whether every tensor of a strip is small enough to be indexed."""
        rows = min(self.height, -(-self.height // strips) + 2 * WORKING_ROWS)
        return rows * self.width * self.batch * 6 * 96 <= MOST_VALUES

    def residents(self, strips: int) -> Iterable[int]:
        """How many of the strips may be resident, the best numbers first: with many, the first
        frame is complete sooner."""
        return range(strips, 0, -1)

    @property
    def most_strips(self) -> int:
        return max(1, self.height // SHORTEST)

    @property
    def least_memory(self) -> int:
        """Bytes without which the clip can't be decoded."""
        strips = shortest_strips(self)
        return self.memory(strips.number, strips.resident)

    @property
    def usual_memory(self) -> int:
        """Bytes that decoding takes at most where more are free."""
        values = FEATURES * self.latent_frames + self.pictures + USUAL_VALUES
        pixels = self.height * self.width * self.batch
        return max(USUAL_MEMORY, values * pixels * self.bytes_per_value)


@dataclass(frozen=True)
class Strips:
    """How a frame is cut.

    Attributes:
        number: Strips of about equal height, from top to bottom.
        resident: How many of them, the lowest, go through time side by side; those above are
            computed through the whole clip before the first frame is complete.
    """

    number: int = 1
    resident: int = 1

    def ranges(self, rows: int) -> list[range]:
        """The strips' own rows, of all rows of the features."""
        number = min(self.number, rows)
        edges = [rows * i // number for i in range(number + 1)]
        return [range(*pair) for pair in pairwise(edges)]


@cache
def shortest_strips(clip: Clip) -> Strips:
    """What takes the least memory. Of a long clip that is not as many strips as there can be: what
    all but the resident ones start from, and their pictures, are kept for the whole clip."""
    numbers = [n for n in range(1, clip.most_strips + 1) if clip.indexable(n)]
    pairs = [(n, resident) for n in numbers for resident in clip.residents(n)]
    return Strips(*min(pairs or [(clip.most_strips, 1)], key=lambda pair: clip.memory(*pair)))


def choose_strips(clip: Clip, memory: float) -> Strips:
    """The fewest strips that memory holds, and of these the best number of resident ones that it
    holds; where it holds none, those that take the least.

    Args:
        clip: What is decoded or encoded.
        memory: Bytes that this may take beside the weights.
    """
    for number in range(1, clip.most_strips + 1):
        if not clip.indexable(number):
            continue
        for resident in clip.residents(number):
            if clip.memory(number, resident) <= memory:
                return Strips(number, resident)
    return shortest_strips(clip)


def shorter_strips(clip: Clip, strips: Strips, memory: float = inf) -> Strips:
    """What takes a quarter less memory, and no more than is there, where these are too long; these
    themselves where nothing takes less."""
    counted = clip.memory(strips.number, strips.resident)
    shorter = choose_strips(clip, min(0.75 * counted, memory))
    return shorter if clip.memory(shorter.number, shorter.resident) < counted else strips
