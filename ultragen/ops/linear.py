"""Linear layers together with what stands before or after them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.activations import GELU
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .dispatch import fused_runs, plain_is_forced
from .layer_checks import dense_weight, is_bare


def updated_linear(x: Tensor, linear: nn.Linear, down: nn.Linear, up: nn.Linear) -> Tensor:
    """x·(W + A·B), a projection with a low-rank update (paper eq. 4).

    Without gradients the update goes into the weight first: fewer tokens pass through the factors
    than through memory.

    Args:
        x: … d.
        linear: W, d → d; its weight may be in FP8.
        down: A, d → rank.
        up: B, rank → d.

    Returns:
        … d.
    """
    base = None if torch.is_grad_enabled() else dense_weight(linear)
    if base is None or not (is_bare(down) and is_bare(up)):
        return linear(x) + up(down(x))
    weight = torch.addmm(base, up.weight, down.weight)
    return F.linear(x, weight, linear.bias + F.linear(down.bias, up.weight, up.bias))


def linear_gelu(x: Tensor, layer: GELU) -> Tensor:
    """Linear layer and GELU (tanh): b n d → b n hidden."""
    proj = layer.proj
    plain = torch.is_grad_enabled() or not is_bare(proj)
    # Autocast does not know the operators, and gives tokens of another type than the weight.
    plain = plain or proj.weight.dtype != x.dtype
    if not plain and x.is_cuda and fused_runs("triton_modulation", x.device):
        rows = x.flatten(0, -2)
        out = torch._addmm_activation(proj.bias, rows, proj.weight.t(), use_gelu=True)
        return out.unflatten(0, x.shape[:-1])
    # On a CPU the operator above is another GELU.
    if not plain and fused_runs("cpu_modulation", x.device):
        from .cpu_modulation import linear_gelu as fused

        return fused(x, proj.weight, proj.bias)
    return layer.gelu(proj(x))


def patch_embedding(x: Tensor, weight: Tensor, bias: Tensor | None, patch: Sequence[int]) -> Tensor:
    """A convolution whose stride is its size, as one matrix product.

    Tokens come out one after the other in memory, as the blocks take them, where the convolution
    leaves feature after feature.

    Args:
        x: Latents, b c t h w.
        weight: d c pt ph pw, as `nn.Conv3d` keeps it.
        bias: d, or None.
        patch: Latent frames, rows and columns of a patch.

    Returns:
        b d t' h' w'.
    """
    if plain_is_forced():
        return F.conv3d(x, weight, bias, stride=tuple(patch))
    pt, ph, pw = patch
    patches = rearrange(x, "b c (t pt) (h ph) (w pw) -> b t h w (c pt ph pw)", pt=pt, ph=ph, pw=pw)
    return F.linear(patches, weight.flatten(1), bias).movedim(-1, 1)
