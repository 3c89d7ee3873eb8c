"""The embedded model's ×4 network, which enlarges the base model's clips."""

from __future__ import annotations

from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn
from torch.nn import functional

from .strict_loading import StrictLoading


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, without normalisation: it would cost contrast."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.conv_out(functional.silu(self.conv_in(hidden)))


class UpscalerNetwork(StrictLoading, ConfigMixin):
    """Enlarges pictures four times, by what it adds to their interpolation.

    All convolutions work at the small size, where they cost a sixteenth, and the last one's
    channels become the pixels between (ESPCN, arXiv 1609.05158; blocks as in EDSR,
    arXiv 1707.02921). The last convolution starts at zero: a fresh network interpolates.

    Args:
        channels: Width of the convolutions.
        num_blocks: Residual blocks.
    """

    SCALE = 4
    way_out = "Restore the folder, or choose the upscaler lanczos."

    @register_to_config
    def __init__(self, channels: int = 48, num_blocks: int = 5) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(num_blocks)))
        self.conv_out = nn.Conv2d(channels, 3 * self.SCALE**2, 3, padding=1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        """Enlarges `b c h w` in [0, 1] to `b c 4h 4w`, not clamped: gradients pass everywhere."""
        hidden = self.conv_in(images)  # b d h w
        hidden = hidden + self.blocks(hidden)  # b d h w
        detail = functional.pixel_shuffle(self.conv_out(hidden), self.SCALE)  # b c 4h 4w
        return detail + functional.interpolate(
            images, scale_factor=self.SCALE, mode="bicubic", align_corners=False
        )
