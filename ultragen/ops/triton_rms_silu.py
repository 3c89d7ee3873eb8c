"""Normalisation over the channels and SiLU in one pass, in Triton, for decoding by Wan's VAE.

One after the other, the library's operations read and write the frames about ten times, in part in
float32; here each value is read once and written once, to where the convolution takes it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

VALUES = 4096  # of one program


@triton.jit
def _rms_silu(
    x_ptr, gamma_ptr, out_ptr, places, t, x_b, x_t, out_b, out_t, scale,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """One program: PLACES neighbouring places of one frame, all channels."""
    frame = tl.program_id(1).to(tl.int64)  # (b t)
    place = tl.program_id(0).to(tl.int64) * PLACES + tl.arange(0, PLACES)
    channel = tl.arange(0, WIDTH)
    mask = (place < places)[:, None] & (channel < CHANNELS)[None, :]
    at = place[:, None] * CHANNELS + channel[None, :]
    start = frame // t * x_b + frame % t * x_t
    value = tl.load(x_ptr + start + at, mask=mask, other=0.0).to(tl.float32)
    gamma = tl.load(gamma_ptr + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)
    norm = tl.sqrt(tl.sum(value * value, axis=1))
    # Rounded after each step as diffusers does it, so that the values are the same.
    dtype = out_ptr.dtype.element_ty
    value = (value / tl.maximum(norm, 1e-12)[:, None]).to(dtype).to(tl.float32)
    value = (value * scale).to(dtype).to(tl.float32)
    value = (value * gamma[None, :]).to(dtype).to(tl.float32)
    start = frame // t * out_b + frame % t * out_t
    tl.store(out_ptr + start + at, value / (1 + tl.exp(-value)), mask=mask)


def rms_silu(x: Tensor, gamma: Tensor, out: Tensor) -> None:
    """Writes SiLU of `gamma` × the values over their root mean square into `out`.

    Args:
        x: b c t h w, channels last in memory; frames and rows may be cut out of larger ones.
        gamma: c values.
        out: As `x`, also in memory.
    """
    b, c, t, h, w = x.shape
    width = triton.next_power_of_2(c)
    places = max(1, VALUES // width)
    with torch.cuda.device_of(x):  # Triton takes the current device, wherever the tensors are
        _rms_silu[(triton.cdiv(h * w, places), b * t)](
            x, gamma, out, h * w, t, x.stride(0), x.stride(2), out.stride(0), out.stride(2),
            c**0.5, c, width, places,
        )  # fmt: skip


def try_on(device: torch.device) -> None:
    """Runs the kernel on next to nothing; raises where it does not run."""
    x = torch.ones(1, 1, 1, 1, 1, device=device)
    rms_silu(x, torch.ones(1, device=device), torch.empty_like(x))
