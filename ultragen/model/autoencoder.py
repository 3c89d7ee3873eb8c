"""The embedded model's compact video autoencoder: 16× in space, 4× in time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .strict_loading import StrictLoading

FRAMES_PER_LATENT = 4
PATCH = 4


def group_frames(video: Tensor) -> Tensor:
    """Stacks 4n + 1 frames into n + 1 groups of four; the first frame makes a group of its own.

    Args:
        video: b c (4n+1) h w.

    Returns:
        b (n+1) (4c) h w.

    Raises:
        ValueError: if the number of frames is not 4n + 1.
    """
    frames = video.shape[2]
    if frames % FRAMES_PER_LATENT != 1:
        below = max(1, frames - (frames - 1) % FRAMES_PER_LATENT)
        raise ValueError(
            f"The number of frames must be 4n + 1, not {frames}: "
            f"choose {below} or {below + FRAMES_PER_LATENT}."
        )
    first = video[:, :, :1].expand(-1, -1, FRAMES_PER_LATENT - 1, -1, -1)
    video = torch.cat([first, video], dim=2)
    return rearrange(video, "b c (g t) h w -> b g (t c) h w", t=FRAMES_PER_LATENT)


def ungroup_frames(groups: Tensor) -> Tensor:
    """Inverse of `group_frames`: b (n+1) (4c) h w → b c (4n+1) h w."""
    video = rearrange(groups, "b g (t c) h w -> b c (g t) h w", t=FRAMES_PER_LATENT)
    return video[:, :, FRAMES_PER_LATENT - 1 :]


def latent_statistics(vae: ModelMixin, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of an autoencoder's latents, 1 c 1 1 1."""
    mean, std = (
        torch.tensor(values, device=like.device).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std


def normalize(vae: ModelMixin, latents: Tensor) -> Tensor:
    """An autoencoder's own latents b c t h w → latents of unit variance, in float32."""
    mean, std = latent_statistics(vae, latents)
    return (latents.float() - mean) / std


def denormalize(vae: ModelMixin, latents: Tensor) -> Tensor:
    """Inverse of `normalize`, in the autoencoder's own type."""
    mean, std = latent_statistics(vae, latents)
    return (latents * std + mean).to(vae.dtype)


class ResidualBlock(nn.Module):
    """Two convolutions around the identity, without normalisation: statistics over the frame
    would make a crop decode differently from the whole."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


def residual_stage(channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))


class CompactAutoencoder(StrictLoading, ConfigMixin):
    """Compresses video 16× in space and 4× in time, with the interface of diffusers' Wan VAE.

    Four frames are stacked in the channels and go through two-dimensional convolutions at 1/4,
    1/8 and 1/16 of the frame's size. The decoder sees the latent frame before its own as well, so
    that motion carries on over group borders, and needs no other memory: a clip is decoded group
    by group, with the same result.

    Args:
        z_dim: Latent channels.
        encoder_channels: Channels at 1/4, 1/8 and 1/16 of the size.
        encoder_blocks: Residual blocks at these sizes.
        decoder_channels: Channels at 1/16, 1/8 and 1/4 of the size.
        decoder_blocks: Residual blocks at these sizes.
        noise: Standard deviation of the posterior around the encoder's mean, in latent units.
        latents_mean: Mean of each latent channel over the training set.
        latents_std: Standard deviation of each latent channel over the training set.
        scale_factor_spatial: Pixels on each axis for one latent position.
        scale_factor_temporal: Frames for one latent frame.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        z_dim: int = 48,
        encoder_channels: tuple[int, int, int] = (64, 128, 256),
        encoder_blocks: tuple[int, int, int] = (1, 1, 2),
        decoder_channels: tuple[int, int, int] = (256, 128, 64),
        decoder_blocks: tuple[int, int, int] = (4, 3, 2),
        noise: float = 0.05,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        scale_factor_spatial: int = 16,
        scale_factor_temporal: int = FRAMES_PER_LATENT,
    ) -> None:
        super().__init__()
        pixels = 3 * FRAMES_PER_LATENT * PATCH**2
        fine, middle, coarse = encoder_channels
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(PATCH),
            nn.Conv2d(pixels, fine, 3, padding=1),
            residual_stage(fine, encoder_blocks[0]),
            nn.Conv2d(fine, middle, 4, stride=2, padding=1),
            residual_stage(middle, encoder_blocks[1]),
            nn.Conv2d(middle, coarse, 4, stride=2, padding=1),
            residual_stage(coarse, encoder_blocks[2]),
            nn.Conv2d(coarse, z_dim, 3, padding=1),
        )
        coarse, middle, fine = decoder_channels
        self.decoder = nn.Sequential(
            nn.Conv2d(2 * z_dim, coarse, 3, padding=1),
            residual_stage(coarse, decoder_blocks[0]),
            nn.Conv2d(coarse, 4 * middle, 3, padding=1),
            nn.PixelShuffle(2),
            residual_stage(middle, decoder_blocks[1]),
            nn.Conv2d(middle, 4 * fine, 3, padding=1),
            nn.PixelShuffle(2),
            residual_stage(fine, decoder_blocks[2]),
            nn.Conv2d(fine, pixels, 3, padding=1),
            nn.PixelShuffle(PATCH),
        )

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple:
        """Video b 3 (4n+1) h w in [-1, 1] → posterior over latents b z (n+1) h/16 w/16.

        Raises:
            ValueError: if the frames are not 4n + 1, or rows or columns not multiples of 16.
        """
        scale = self.config.scale_factor_spatial
        height, width = x.shape[-2:]
        if height % scale or width % scale:
            raise ValueError(
                f"Rows and columns must be multiples of {scale}, not {height}×{width}."
            )
        groups = group_frames(x)
        mean = self.encoder(groups.flatten(0, 1)).unflatten(0, groups.shape[:2])
        mean = rearrange(mean, "b g z h w -> b z g h w")
        spread = torch.full_like(mean, 2 * torch.tensor(self.config.noise).log().item())
        posterior = DiagonalGaussianDistribution(torch.cat([mean, spread], dim=1))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode_groups(self, z: Tensor) -> Iterator[Tensor]:
        """Decodes latents b z g h w group by group: b 3 t 16h 16w in [-1, 1], first t = 1, then
        t = 4. Needs memory for one group, whatever the clip's length."""
        for i in range(z.shape[2]):
            pair = torch.cat([z[:, :, max(0, i - 1)], z[:, :, i]], dim=1)
            frames = self.decoder(pair)[:, None]
            yield ungroup_frames(frames) if i == 0 else self._frames(frames)

    @staticmethod
    def _frames(groups: Tensor) -> Tensor:
        return rearrange(groups, "b g (t c) h w -> b c (g t) h w", t=FRAMES_PER_LATENT)

    @apply_forward_hook
    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple:
        """Latents b z (n+1) h w → video b 3 (4n+1) 16h 16w, about [-1, 1]."""
        video = torch.cat(list(self.decode_groups(z)), dim=2)
        return DecoderOutput(sample=video) if return_dict else (video,)

    def decode_at_once(self, z: Tensor) -> Tensor:
        """`decode`, all groups in one pass, for crops in training: b z (n+1) h w → b 3 (4n+1)
        16h 16w."""
        before = torch.cat([z[:, :, :1], z[:, :, :-1]], dim=2)
        pairs = rearrange(torch.cat([before, z], dim=1), "b z g h w -> (b g) z h w")
        return ungroup_frames(self.decoder(pairs).unflatten(0, (z.shape[0], -1)))

    def forward(self, x: Tensor) -> Tensor:
        """Encodes and decodes b 3 (4n+1) h w."""
        return self.decode(self.encode(x).latent_dist.mode()).sample
