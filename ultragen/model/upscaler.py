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
    arXiv 1707.02921). With a stride they work at a part of it, on pixels side by side in the
    channels, as Real-ESRGAN does for small factors (arXiv 2107.10833). The last convolution starts
    at zero: a fresh network interpolates.

    Args:
        channels: Width of the convolutions.
        num_blocks: Residual blocks.
        stride: Pixels on each axis for one position of the convolutions.
    """

    SCALE = 4
    way_out = "Restore the folder, or choose the upscaler lanczos."

    @register_to_config
    def __init__(self, channels: int = 48, num_blocks: int = 5, stride: int = 1) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3 * stride**2, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(num_blocks)))
        self.conv_out = nn.Conv2d(channels, 3 * (stride * self.SCALE) ** 2, 3, padding=1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        """Enlarges `b c h w` in [0, 1] to `b c 4h 4w`, not clamped: gradients pass everywhere."""
        stride, (height, width) = self.config.stride, images.shape[-2:]
        whole = functional.pad(images, (0, -width % stride, 0, -height % stride), "replicate")
        hidden = self.conv_in(functional.pixel_unshuffle(whole, stride))  # b d h/stride w/stride
        hidden = hidden + self.blocks(hidden)
        detail = functional.pixel_shuffle(self.conv_out(hidden), stride * self.SCALE)  # b c 4h 4w
        detail = detail[..., : self.SCALE * height, : self.SCALE * width]
        return detail + functional.interpolate(
            images, scale_factor=self.SCALE, mode="bicubic", align_corners=False
        )
