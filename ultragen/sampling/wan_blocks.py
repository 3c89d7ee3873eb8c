"""The blocks of Wan's autoencoder that see in time, for frames that come one group after the other.

Its modules give the weights; the order of the work is ours. Frames are kept with their channels
last, as the fast convolutions of GPUs take them, and each causal convolution finds its input and
the two frames before it in one tensor: what is normalised is written there, and nothing is padded
or copied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.rms_silu import rms_silu

LAST = torch.channels_last_3d
KEPT = 2  # frames that a causal convolution sees before each one

Past = dict[nn.Module, Tensor]
"""The last frames of each convolution's input, b c 2 h w."""


def middle(block: Any, x: Tensor, past: Past) -> Tensor:
    """Residual blocks with attention between them, which sees the whole frame."""
    x = residual(block.resnets[0], x, past)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            x = attention(x)
        x = residual(resnet, x, past)
    return x


def residual(block: Any, x: Tensor, past: Past) -> Tensor:
    """Two causal convolutions around the identity."""
    h = gather(block.conv1, x, past, block.norm1)
    h = convolve(block.conv1, h)
    h = gather(block.conv2, h, past, block.norm2)
    h = convolve(block.conv2, h)
    return h.add_(block.conv_shortcut(x))


def gather(conv: Any, x: Tensor, past: Past, norm: Any = None) -> Tensor:
    """The frames that a causal convolution sees: the last two and the new ones, b c (2+t) h w,
    normalised and activated where there is a norm."""
    b, c, t, h, w = x.shape
    frames = empty((b, c, KEPT + t, h, w), x)
    frames[:, :, :KEPT] = past.pop(conv, 0)  # zeros come before the clip
    if norm is None:
        frames[:, :, KEPT:] = x
    else:
        rms_silu(norm, x, frames[:, :, KEPT:])
    past[conv] = frames[:, :, -KEPT:].clone(memory_format=LAST)
    return frames


def convolve(conv: nn.Conv3d, frames: Tensor) -> Tensor:
    """A causal convolution of gathered frames, b c (2+t) h w → b c t h w."""
    _, rows, columns = conv.kernel_size
    padding = (0, rows // 2, columns // 2)
    return F.conv3d(frames, conv.weight, conv.bias, padding=padding)


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=LAST)
