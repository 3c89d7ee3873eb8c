"""The convolutions that make the grid of a compressed branch small and large again (paper §4.2,
eq. 2 and 5)."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops.compress import compress
from ..ops.depthwise import depthwise_conv3d


class Compression(nn.Conv2d):
    """Depthwise convolution whose stride is its size, on tokens (eq. 2)."""

    def forward(self, grid: Tensor) -> Tensor:
        """b t h w d → b t ⌈h/factor⌉ ⌈w/factor⌉ d; edges are repeated where needed."""
        return compress(grid, self.weight, self.bias)


class Decompression(nn.Conv3d):
    """Depthwise 3 × 3 × 3 convolution on tokens (eq. 5)."""

    def forward(self, grid: Tensor) -> Tensor:
        """b t h w d → b t h w d."""
        return depthwise_conv3d(grid, self.weight, self.bias)
