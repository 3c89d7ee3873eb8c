"""UltraGen's self-attention as the paper's section 4 tells it: slow, plain and in float64.

One clip, one window and one head at a time. Nothing here is shared with `ultragen.model.attention`:
windows are index ranges, rotary positions are complex numbers, resampling is a matrix and the
convolutions are sums over their taps. Grids are t h w d, without a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Reference:
    """What one layer is, in the words of the transformer's configuration."""

    heads: int
    windows: int
    odd: bool
    branches: tuple[str, ...] = ("hierarchical", "global")
    crossing: str = "grow"
    uneven: str = "split"
    global_keys_from: str = "key"
    lora_rank: int = 4
    eps: float = 1e-6

    def __call__(
        self, weights: dict[str, Tensor], tokens: Tensor, grid, timestep: Tensor
    ) -> Tensor:
        """Attention of a whole batch.

        Args:
            weights: The layer's state dictionary.
            tokens: Input, b (t h w) d.
            grid: t, h and w.
            timestep: Diffusion time in 0..1000, b.
        """
        weights = {name: value.double() for name, value in weights.items()}
        clips = tokens.double().unflatten(1, grid)
        times = timestep.double()
        return torch.stack(
            [self.layer(weights, x, time) for x, time in zip(clips, times, strict=True)]
        ).flatten(1, 3)

    def layer(self, weights: dict[str, Tensor], x: Tensor, time: Tensor) -> Tensor:
        """Eq. 3: local with hierarchical, the result with global; each gate weighs the finer."""
        fused = self.local(weights, x)
        for name, factor in (("hierarchical", 2), ("global", 4)):
            if name in self.branches:
                part = below(weights, f"branches.{name}.")
                gate = time_gate(part, time)
                fused = gate * fused + (1 - gate) * self.compressed(weights, part, x, name, factor)
        return linear(weights, "to_out.0", fused)

    def local(self, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        """Eq. 6-9."""
        height, width = x.shape[1:3]
        parts = self.windows + (self.odd and self.crossing == "grow")
        x = resample(x, self.rows(height, parts), self.rows(width, parts))
        query = rms_norm(linear(weights, "to_q", x), weights["norm_q.weight"], self.eps)
        key = rms_norm(linear(weights, "to_k", x), weights["norm_k.weight"], self.eps)
        out = self.windowed(query, key, linear(weights, "to_v", x), parts)
        return resample(out, height, width)

    def compressed(
        self, weights: dict[str, Tensor], part: dict[str, Tensor], x: Tensor, name: str, factor: int
    ) -> Tensor:
        """Eq. 2, 4 and 5 for the global, eq. 10 and 11 for the hierarchical branch."""
        height, width = x.shape[1:3]
        x = strided_convolution(x, part["compression.weight"], part["compression.bias"], factor)
        keys_from = "to_k"
        if name == "hierarchical":
            parts = self.windows // 2 + (self.odd and self.crossing == "grow")
            rows, columns = (self.rows(length, parts) for length in x.shape[1:3])
            x = resample(x, rows, columns)
        elif self.global_keys_from == "query":
            keys_from = "to_q"
        query = linear(weights, "to_q", x) + self.low_rank(part, "lora_q", x)
        key = linear(weights, keys_from, x) + self.low_rank(part, "lora_k", x)
        value = linear(weights, "to_v", x) + self.low_rank(part, "lora_v", x)
        query = rms_norm(query, weights["norm_q.weight"], self.eps)
        key = rms_norm(key, weights["norm_k.weight"], self.eps)
        if name == "hierarchical":
            out = self.windowed(query, key, value, parts)
        else:
            out = attend(query, key, value, self.heads)
        # Rows and columns that padding added are cut off before the last convolution, so that a
        # frame has the same border of zeros whatever its size.
        padded = [math.ceil(length / factor) * factor for length in (height, width)]
        out = resample(out, *padded)[:, :height, :width]
        return volume_convolution(out, part["decompression.weight"], part["decompression.bias"])

    def low_rank(self, part: dict[str, Tensor], name: str, x: Tensor) -> Tensor | float:
        """Eq. 4, with biases and without a scale."""
        if not self.lora_rank:
            return 0.0
        return linear(part, f"{name}.lora_B", linear(part, f"{name}.lora_A", x))

    def rows(self, length: int, parts: int) -> int:
        """Length to which an axis is resampled: the nearest multiple, the smaller of two."""
        if self.uneven == "split":
            return length
        multiples = [parts * i for i in range(1, length + 2)]
        return min(multiples, key=lambda multiple: (abs(multiple - length), multiple))

    def ranges(self, length: int, parts: int) -> list[slice]:
        """The windows of an axis."""
        cuts = np.cumsum([0] + [len(part) for part in np.array_split(np.arange(length), parts)])
        if self.odd and self.crossing == "shift":
            # Every window moves up or left by half the first one; the frame's borders stay.
            moved = [int(cut) - math.ceil(cuts[1] / 2) for cut in cuts[1:]]
            cuts = sorted({0, *moved, length})
        return [slice(int(a), int(b)) for a, b in pairwise(cuts)]

    def windowed(self, query: Tensor, key: Tensor, value: Tensor, parts: int) -> Tensor:
        out = torch.full_like(value, math.nan)
        for rows in self.ranges(value.shape[1], parts):
            for columns in self.ranges(value.shape[2], parts):
                tube = (slice(None), rows, columns)
                out[tube] = attend(query[tube], key[tube], value[tube], self.heads)
        return out


def below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of one part, under their names within it."""
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix)
    }


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Over all heads together."""
    return x / ((x * x).mean(-1, keepdim=True) + eps).sqrt() * weight


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Softmax attention of all tokens of a tube with each other; positions start at its corner."""
    shape = value.shape
    turn = positions(*shape[:3], shape[3] // heads)
    query, key, value = (x.reshape(-1, heads, shape[3] // heads) for x in (query, key, value))
    out = []
    for head in range(heads):
        q, k = rotate(query[:, head], turn), rotate(key[:, head], turn)
        scores = q @ k.T / math.sqrt(q.shape[1])
        weights = (scores - scores.amax(1, keepdim=True)).exp()
        out.append(weights / weights.sum(1, keepdim=True) @ value[:, head])
    return torch.cat(out, dim=1).reshape(shape)


def positions(frames: int, height: int, width: int, size: int) -> Tensor:
    """Unit complex numbers e^(i·position·frequency) of each token and pair of features. A third of
    the pairs, rounded down, belongs to the row, as many to the column, the others to the frame."""
    pairs = size // 6
    counts = (size // 2 - 2 * pairs, pairs, pairs)
    frequencies = [10000.0 ** -(torch.arange(n).double() / n) for n in counts]
    angles = [
        torch.cat([place * f for place, f in zip((t, h, w), frequencies, strict=True)])
        for t in range(frames)
        for h in range(height)
        for w in range(width)
    ]
    angle = torch.stack(angles)
    return torch.complex(angle.cos(), angle.sin())


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turns pairs of neighbouring features: n d."""
    pairs = torch.view_as_complex(x.reshape(len(x), -1, 2))
    return torch.view_as_real(pairs * turn).flatten(1)


def time_gate(part: dict[str, Tensor], time: Tensor) -> Tensor:
    """sigmoid(MLP(sinusoid)): cosines first, then sines."""
    half = part["gate.embedding.0.weight"].shape[1] // 2
    angle = time * 10000.0 ** -(torch.arange(half).double() / half)
    x = torch.cat([angle.cos(), angle.sin()])
    x = linear(part, "gate.embedding.2", silu(linear(part, "gate.embedding.0", x)))
    return 1 / (1 + (-linear(part, "gate.projection.1", silu(x))).exp())


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def strided_convolution(x: Tensor, weight: Tensor, bias: Tensor, factor: int) -> Tensor:
    """Depthwise, stride = size; the last row and column are repeated as far as needed."""
    height, width = x.shape[1:3]
    rows, columns = math.ceil(height / factor), math.ceil(width / factor)
    out = bias.expand(x.shape[0], rows, columns, -1).clone()
    for i, j, di, dj in taps(rows, columns, factor):
        row, column = min(factor * i + di, height - 1), min(factor * j + dj, width - 1)
        out[:, i, j] += weight[:, 0, di, dj] * x[:, row, column]
    return out


def taps(rows: int, columns: int, factor: int) -> Iterator[tuple[int, ...]]:
    return map(tuple, np.ndindex(rows, columns, factor, factor))


def volume_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise 3 × 3 × 3 over frame, row and column, with zeros around the clip."""
    out = bias.expand_as(x).clone()
    around = torch.zeros([length + 2 for length in x.shape[:3]] + [x.shape[3]], dtype=x.dtype)
    around[1:-1, 1:-1, 1:-1] = x
    for t, h, w in np.ndindex(3, 3, 3):
        near = around[t : t + x.shape[0], h : h + x.shape[1], w : w + x.shape[2]]
        out += weight[:, 0, t, h, w] * near
    return out


def resample(x: Tensor, height: int, width: int, antialias: bool = False) -> Tensor:
    """Bilinear, pixel centres at half-integers."""
    vertical = resampling(x.shape[1], height, antialias)
    horizontal = resampling(x.shape[2], width, antialias)
    return torch.einsum("hi,wj,tijd->thwd", vertical, horizontal, x)


def resampling(old: int, new: int, antialias: bool) -> Tensor:
    """The matrix new × old of one axis: a triangle around each new centre. Its half width is one
    old pixel, with antialiasing one new pixel where that is more."""
    reach = max(1.0, old / new) if antialias else 1.0
    centres = (torch.arange(new).double() + 0.5) * old / new - 0.5
    if not antialias:
        centres = centres.clamp(0, old - 1)
    distance = (torch.arange(old).double() - centres[:, None]).abs() / reach
    weights = (1 - distance).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)
