"""Losses and scores that several stages use."""

from __future__ import annotations

import torch
from torch import Tensor


def gradient_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the pictures' horizontal and vertical differences: keeps edges
    that a plain L1 would blur. Inputs … h w."""
    error = prediction - target
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def psnr(error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of an error whose signal spans 1."""
    return -10 * torch.log10(error.square().mean())
