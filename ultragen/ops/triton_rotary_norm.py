"""Norm across heads, rotary positions and the order of windows in one pass, in Triton.

One by one they read and write the queries a dozen times, part of it in float32. A program takes one
token: it finds it in the grid, and writes it where attention wants it, in its window. The gradient
goes the same way back.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_windows import SIZES, place, shaped, unflatten, window_shape, without_room

PROGRAMS = 1024  # partial sums of the weight's gradient


@triton.jit(do_not_specialize=SIZES)
def _normalise_and_rotate(
    x_ptr, weight_ptr, cos_ptr, sin_ptr, out_ptr, room, eps, d, half, t, h, w,
    top, rows, height, left, columns, width, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one token; behind the last one of a window its first one again."""
    row = tl.program_id(0)
    source, _ = without_room(row, room, t, height, width)
    position, sample = place(source, t, h, w, top, rows, height, left, columns, width)
    features, pairs = tl.arange(0, BLOCK), tl.arange(0, BLOCK // 2)
    inside = features < d
    at = (sample.to(tl.int64) * t * h * w + position) * d
    x = tl.load(x_ptr + at + features, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + features, mask=inside, other=0.0).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, axis=0) / d + eps) * weight
    even, odd = tl.split(tl.reshape(y, (BLOCK // 2, 2)))
    angle = position.to(tl.int64) * half + pairs % half
    cos = tl.load(cos_ptr + angle, mask=pairs < d // 2, other=1.0).to(tl.float32)
    sin = tl.load(sin_ptr + angle, mask=pairs < d // 2, other=0.0).to(tl.float32)
    y = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (BLOCK,))
    tl.store(out_ptr + row.to(tl.int64) * d + features, y, mask=inside)


@triton.jit(do_not_specialize=("tokens", *SIZES))
def _gradients(
    x_ptr, weight_ptr, cos_ptr, sin_ptr, grad_ptr, of_x_ptr, partial_ptr, tokens, room, eps, d,
    half, t, h, w, top, rows, height, left, columns, width,
    BLOCK: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """One program: every PROGRAMS-th token. What fills the windows up to `room` has no part."""
    window_tokens = t * height * width
    features, pairs = tl.arange(0, BLOCK), tl.arange(0, BLOCK // 2)
    inside = features < d
    weight = tl.load(weight_ptr + features, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for row in range(tl.program_id(0), tokens, PROGRAMS):
        position, sample = place(row, t, h, w, top, rows, height, left, columns, width)
        at = tl.cast(sample, tl.int64) * t * h * w + position
        source = tl.cast(row // window_tokens, tl.int64) * room + row % window_tokens
        grad = tl.load(grad_ptr + source * d + features, mask=inside, other=0.0)
        even, odd = tl.split(tl.reshape(grad.to(tl.float32), (BLOCK // 2, 2)))
        angle = tl.cast(position, tl.int64) * half + pairs % half
        cos = tl.load(cos_ptr + angle, mask=pairs < d // 2, other=1.0).to(tl.float32)
        sin = tl.load(sin_ptr + angle, mask=pairs < d // 2, other=0.0).to(tl.float32)
        grad = tl.reshape(tl.join(even * cos + odd * sin, odd * cos - even * sin), (BLOCK,))
        x = tl.load(x_ptr + at * d + features, mask=inside, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(x * x, axis=0) / d + eps)
        unit = x * scale
        total += grad * unit
        grad *= weight
        of_x = scale * (grad - unit * (tl.sum(grad * unit, axis=0) / d))
        tl.store(of_x_ptr + at * d + features, of_x, mask=inside)
    at = partial_ptr + tl.program_id(0) * d + features
    tl.store(at, tl.load(at, mask=inside, other=0.0) + total, mask=inside)


@torch.library.custom_op("ultragen::rotary_norm", mutates_args=())
def rotate(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, groups: list[int], tile: int
) -> list[Tensor]:
    """Tokens b t h w d → windows, (b windows) n d for each group; see `rotary_norm`."""
    x, (_, t, h, w, d) = x.contiguous(), x.shape
    found = []
    with torch.cuda.device_of(x):  # Triton takes the current device, wherever the tensors are
        for rectangle in unflatten(groups):
            out = x.new_empty(window_shape(x, rectangle, tile))
            _normalise_and_rotate[(out.numel() // d,)](
                x, weight, cos, sin, out, out.shape[1], eps, d, cos.shape[-1], t, h, w, *rectangle,
                triton.next_power_of_2(d),
            )  # fmt: skip
            found.append(out)
    return found


@torch.library.custom_op("ultragen::rotary_norm_gradients", mutates_args=())
def gradients(
    grads: list[Tensor],
    x: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    groups: list[int],
) -> tuple[Tensor, Tensor]:
    """The gradients of the tokens, and of the weight in float32, from those of the windows, which
    may be filled up."""
    x, (_, t, h, w, d) = x.contiguous(), x.shape
    of_x = torch.empty_like(x)
    partial = x.new_zeros((PROGRAMS, d), dtype=torch.float32)
    with torch.cuda.device_of(x):
        for grad, rectangle in zip(grads, unflatten(groups), strict=True):
            windows, room, _ = grad.shape
            tokens = windows * t * rectangle[2] * rectangle[5]
            _gradients[(PROGRAMS,)](
                x, weight, cos, sin, grad.contiguous(), of_x, partial, tokens, room, eps, d,
                cos.shape[-1], t, h, w, *rectangle, triton.next_power_of_2(d), PROGRAMS,
            )  # fmt: skip
    return of_x, partial.sum(0)


@rotate.register_fake
def _(x, weight, cos, sin, eps, groups, tile):
    return [x.new_empty(window_shape(x, rectangle, tile)) for rectangle in unflatten(groups)]


@gradients.register_fake
def _(grads, x, weight, cos, sin, eps, groups):
    return x.new_empty(x.shape), x.new_empty(x.shape[-1:], dtype=torch.float32)


def _remember(ctx, inputs, output) -> None:
    x, weight, cos, sin, ctx.eps, ctx.groups, _ = inputs
    ctx.save_for_backward(x, weight, cos, sin)


def _differentiate(ctx, grads):
    # Read once: within a checkpointed region a saved tensor can be had a single time.
    x, weight, cos, sin = ctx.saved_tensors
    of_x, of_weight = gradients(grads, x, weight, cos, sin, ctx.eps, ctx.groups)
    return of_x, of_weight.to(weight.dtype), None, None, None, None, None


rotate.register_autograd(_differentiate, setup_context=_remember)


def rotary_norm(
    x: Tensor,
    weight: Tensor,
    rotary: tuple[Tensor, Tensor],
    eps: float,
    rectangles: Sequence[tuple[int, ...]],
    tile: int = 1,
) -> list[Tensor]:
    """RMS norm over all features, rotation of pairs of neighbouring features, cut into windows.

    An operator of its own, so that torch.compile takes it as it is.

    Args:
        x: b t h w d.
        weight: d; may be of another precision than `x`.
        rotary: cos and sin, t h w × half the head size each.
        eps: Added to the mean square, so that nothing is divided by zero.
        rectangles: The groups of equal windows: first row, windows and their rows, and the same
            of the columns. Together they cover the grid once.
        tile: The first token of a window, repeated behind its last one, makes their number a
            multiple of it; without gradients.

    Returns:
        A tensor for each group, (b windows) t h w d in the precision of `x`; with tiles
        (b windows) n d.

    Raises:
        ValueError: if gradients of repeated tokens would be needed.
    """
    if tile > 1 and torch.is_grad_enabled():
        raise ValueError("Tiles have no gradients: compute within torch.no_grad().")
    groups = [number for r in rectangles for number in r]
    found = rotate(x, weight, *rotary, eps, groups, tile)
    return [shaped(out, r, x.shape[1], tile) for out, r in zip(found, rectangles, strict=True)]


def try_on(device: torch.device) -> None:
    """Runs the kernels on next to nothing; raises where they do not run."""
    x = torch.ones(1, 1, 1, 1, 2, device=device, requires_grad=True)
    angles = torch.ones(1, 1, 1, 1, device=device)
    with torch.enable_grad():
        (windows,) = rotary_norm(x, x.new_ones(2), (angles, angles), 1e-6, [(0, 1, 1, 0, 1, 1)])
        windows.sum().backward()
