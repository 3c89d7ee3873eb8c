"""Normalisation over the channels and SiLU, for decoding and encoding by Wan's VAE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .dispatch import fused_runs


def rms_silu(norm: Any, x: Tensor, out: Tensor) -> None:
    """Writes the normalised and activated frames.

    Args:
        norm: Wan's `WanRMS_norm`.
        x: b c t h w.
        out: As `x`, channels last in memory; may be a part of a larger tensor.
    """
    if fused_runs("triton_rms_silu", x.device):
        from .triton_rms_silu import rms_silu as fused

        rows_follow = x.stride(1) == 1 and x.stride(3) == x.shape[1] * x.shape[4]
        last = torch.channels_last_3d
        fused(x if rows_follow else x.contiguous(memory_format=last), norm.gamma, out)
        return
    for i in range(x.shape[2]):  # one by one, because the norm computes in float32
        out[:, :, i : i + 1] = F.silu(norm(x[:, :, i : i + 1]))
