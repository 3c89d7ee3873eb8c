"""The authors' released model, told step by step on its original names: plain, and in float64.

The mathematics of single steps is `reference`'s, which shares nothing with `ultragen`; what is the
released model's own is written here, in the order in which its forward pass does it. Grids are
t h w d, without a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from reference import (
    attend,
    below,
    linear,
    resample,
    rms_norm,
    silu,
    strided_convolution,
    volume_convolution,
)
from torch import Tensor

HEAD_DIM = 128
EPS = 1e-6


@dataclass(frozen=True)
class Sizes:
    """Widths and depth of a state dictionary of the released layout."""

    dim: int = 256
    ffn: int = 96
    text: int = 16
    freq: int = 256
    rank: int = 4
    channels: int = 4
    layers: int = 5
    full: tuple[int, ...] = (0, 4)


TRUE = Sizes(1536, 8960, 4096, 256, 64, 16, 30, (0, 1, 2, 27, 28, 29))


def released_shapes(size: Sizes = Sizes()) -> dict[str, tuple[int, ...]]:
    """Every key of the released layout with its shape."""
    d = size.dim
    linears = {
        "text_embedding.0": (d, size.text),
        "text_embedding.2": (d, d),
        "time_embedding.0": (d, size.freq),
        "time_embedding.2": (d, d),
        "time_projection.1": (6 * d, d),
        "head.head": (4 * size.channels, d),
        "patch_embedding": (d, size.channels, 1, 2, 2),
    }
    alone: dict[str, tuple[int, ...]] = {"head.modulation": (1, 2, d)}
    for i in range(size.layers):
        block = f"blocks.{i}"
        linears |= {f"{block}.ffn.0": (size.ffn, d), f"{block}.ffn.2": (d, size.ffn)}
        alone |= {
            f"{block}.modulation": (1, 6, d),
            f"{block}.norm3.weight": (d,),
            f"{block}.norm3.bias": (d,),
        }
        for attention in (f"{block}.self_attn", f"{block}.cross_attn"):
            linears |= {f"{attention}.{part}": (d, d) for part in "qkvo"}
            alone |= {f"{attention}.norm_{part}.weight": (d,) for part in "qk"}
        if i not in size.full:
            linears |= branch_shapes(f"{block}.self_attn", size)
    both = {f"{name}.weight": shape for name, shape in linears.items()}
    return alone | both | {f"{name}.bias": shape[:1] for name, shape in linears.items()}


def branch_shapes(name: str, size: Sizes) -> dict[str, tuple[int, ...]]:
    """The parts that a hierarchical layer has more than a full one; each has a bias too."""
    d = size.dim
    updates = [f"{part}_lora_{branch}" for part in "qkv" for branch in (1, 2)]
    shapes: dict[str, tuple[int, ...]] = {
        "downsample_conv": (d, 1, 4, 4),
        "upsample_conv": (d, 1, 3, 3, 3),
        "downsample_conv_hierachcal": (d, 1, 2, 2),
        "upsample_conv_hierachcal": (d, 1, 3, 3, 3),
        **{f"{update}.lora_A": (size.rank, d) for update in updates},
        **{f"{update}.lora_B": (d, size.rank) for update in updates},
    }
    for gate in ("", "2"):
        shapes |= {
            f"alpha_time_embedding{gate}.0": (d, size.freq),
            f"alpha_time_embedding{gate}.2": (d, d),
            f"alpha_time_projection{gate}.1": (d, d),
        }
    return {f"{name}.{part}": shape for part, shape in shapes.items()}


def released_weights(
    size: Sizes = Sizes(),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Random weights of the released layout, of the strength that trained ones have."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, shape in released_shapes(size).items():
        noise = torch.randn(shape, generator=generator)
        if key.endswith("weight") and "norm" not in key:
            value = noise / noise[0].numel() ** 0.5
        else:
            value = 0.2 * noise + ("norm" in key and key.endswith("weight"))
        weights[key] = value.to(dtype)
    return weights


def released_forward(
    weights: dict[str, Tensor], latents: Tensor, timestep: Tensor, text: Tensor, windows: int = 4
) -> Tensor:
    """Velocity of a batch.

    Args:
        weights: With original names.
        latents: b c t h w.
        timestep: In 0..1000, b.
        text: Embeddings, b n d.
        windows: K of the local branch in even layers.
    """
    weights = {key: value.double() for key, value in weights.items()}
    clips = zip(latents.double(), timestep.double(), text.double(), strict=True)
    return torch.stack([clip_forward(weights, *clip, windows) for clip in clips])


def clip_forward(
    weights: dict[str, Tensor], latents: Tensor, time: Tensor, text: Tensor, windows: int
) -> Tensor:
    patches = rearrange(latents, "c t (h p) (w q) -> t h w (c p q)", p=2, q=2)
    x = patches @ weights["patch_embedding.weight"].flatten(1).T + weights["patch_embedding.bias"]
    sinusoid = embed_time(time, weights["time_embedding.0.weight"].shape[1])
    temb = linear(weights, "time_embedding.2", silu(linear(weights, "time_embedding.0", sinusoid)))
    modulation = linear(weights, "time_projection.1", silu(temb)).unflatten(0, (6, -1))
    text = linear(weights, "text_embedding.2", gelu(linear(weights, "text_embedding.0", text)))

    for i in range(1 + max(int(key.split(".")[1]) for key in weights if key.startswith("blocks"))):
        block = below(weights, f"blocks.{i}.")
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = block["modulation"][0] + modulation
        attention = below(block, "self_attn.")
        h = layer_norm(x) * (1 + scale) + shift
        if "downsample_conv.weight" in attention:
            h = hierarchical_layer(attention, h, sinusoid, i, windows)
        else:
            h = full_layer(attention, h)
        x = x + gate * h
        h = layer_norm(x) * block["norm3.weight"] + block["norm3.bias"]
        x = x + cross_attention(below(block, "cross_attn."), h, text)
        h = layer_norm(x) * (1 + ffn_scale) + ffn_shift
        x = x + ffn_gate * linear(block, "ffn.2", gelu(linear(block, "ffn.0", h)))

    shift, scale = weights["head.modulation"][0] + temb
    out = linear(weights, "head.head", layer_norm(x) * (1 + scale) + shift)
    return rearrange(out, "t h w (p q c) -> c t (h p) (w q)", p=2, q=2)


def embed_time(time: Tensor, width: int) -> Tensor:
    """Of the time that bfloat16 makes of it: cosines, then sines."""
    frequencies = 10000.0 ** -(torch.arange(width // 2).double() / (width // 2))
    angle = time.bfloat16().double() * frequencies
    return torch.cat([angle.cos(), angle.sin()])


def full_layer(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Wan's attention over all tokens, with positions that start at the clip's corner."""
    query = rms_norm(linear(weights, "q", x), weights["norm_q.weight"], EPS)
    key = rms_norm(linear(weights, "k", x), weights["norm_k.weight"], EPS)
    return linear(weights, "o", attend(query, key, linear(weights, "v", x), heads(x)))


def hierarchical_layer(
    weights: dict[str, Tensor], x: Tensor, sinusoid: Tensor, index: int, windows: int
) -> Tensor:
    """Gate 2 weighs local against hierarchical, gate 1 the two against global."""
    gate_1, gate_2 = (time_gate(weights, sinusoid, suffix) for suffix in ("", "2"))
    fused = gate_2 * local_branch(weights, x, windows + index % 2)
    fused = fused + (1 - gate_2) * hierarchical_branch(weights, x, windows // 2 + index % 2)
    fused = gate_1 * fused + (1 - gate_1) * global_branch(weights, x)
    return linear(weights, "o", fused)


def time_gate(weights: dict[str, Tensor], sinusoid: Tensor, suffix: str) -> Tensor:
    x = linear(weights, f"alpha_time_embedding{suffix}.0", sinusoid)
    x = linear(weights, f"alpha_time_embedding{suffix}.2", silu(x))
    return 1 / (1 + (-linear(weights, f"alpha_time_projection{suffix}.1", silu(x))).exp())


def local_branch(weights: dict[str, Tensor], x: Tensor, parts: int) -> Tensor:
    """The base weights, without an update, at full resolution or what the windows make of it."""
    height, width = x.shape[1:3]
    x = resample(x, nearest(height, parts), nearest(width, parts))
    query = rms_norm(linear(weights, "q", x), weights["norm_q.weight"], EPS)
    key = rms_norm(linear(weights, "k", x), weights["norm_k.weight"], EPS)
    return resample(windowed(query, key, linear(weights, "v", x), parts), height, width)


def hierarchical_branch(weights: dict[str, Tensor], x: Tensor, parts: int) -> Tensor:
    """Compressed 2 × 2, then windows; from there straight back to the full grid."""
    low = strided_convolution(x, *convolution(weights, "downsample_conv_hierachcal"), 2)
    low = resample(low, nearest(low.shape[1], parts), nearest(low.shape[2], parts))
    query = linear(weights, "q", low) + update(weights, "q_lora_2", low)
    key = linear(weights, "k", low) + update(weights, "k_lora_2", low)
    value = linear(weights, "v", low) + update(weights, "v_lora_2", low)
    query = rms_norm(query, weights["norm_q.weight"], EPS)
    key = rms_norm(key, weights["norm_k.weight"], EPS)
    out = decompress(windowed(query, key, value, parts), x, 2)
    return volume_convolution(out, *convolution(weights, "upsample_conv_hierachcal"))


def global_branch(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Compressed 4 × 4, one window; the keys come from the query projection."""
    low = strided_convolution(x, *convolution(weights, "downsample_conv"), 4)
    query = linear(weights, "q", low) + update(weights, "q_lora_1", low)
    key = linear(weights, "q", low) + update(weights, "k_lora_1", low)
    value = linear(weights, "v", low) + update(weights, "v_lora_1", low)
    query = rms_norm(query, weights["norm_q.weight"], EPS)
    key = rms_norm(key, weights["norm_k.weight"], EPS)
    out = decompress(attend(query, key, value, heads(x)), x, 4)
    return volume_convolution(out, *convolution(weights, "upsample_conv"))


def decompress(low: Tensor, full: Tensor, factor: int) -> Tensor:
    """To the grid's own size. Where the factor does not divide it, the authors lose rows; there,
    and only there, we add rows before and cut them off after (as `strided_convolution` does)."""
    height, width = full.shape[1:3]
    return resample(low, height + -height % factor, width + -width % factor)[:, :height, :width]


def convolution(weights: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def update(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Both factors with a bias, and no scale."""
    return linear(weights, f"{name}.lora_B", linear(weights, f"{name}.lora_A", x))


def nearest(length: int, parts: int) -> int:
    """The nearest multiple; of two equally near, the smaller."""
    below = length // parts * parts
    return below if length - below <= below + parts - length else below + parts


def windowed(query: Tensor, key: Tensor, value: Tensor, parts: int) -> Tensor:
    """parts × parts windows of equal size; positions start at the corner of each."""
    cut = "t (r h) (c w) d -> (r c) t h w d"
    tubes = (rearrange(x, cut, r=parts, c=parts) for x in (query, key, value))
    out = [attend(*tube, heads(value)) for tube in zip(*tubes, strict=True)]
    return rearrange(torch.stack(out), "(r c) t h w d -> t (r h) (c w) d", r=parts, c=parts)


def cross_attention(weights: dict[str, Tensor], x: Tensor, text: Tensor) -> Tensor:
    """Of every token to the text, without positions."""
    query = rms_norm(linear(weights, "q", x), weights["norm_q.weight"], EPS)
    key = rms_norm(linear(weights, "k", text), weights["norm_k.weight"], EPS)
    query = rearrange(query, "t h w (n d) -> n (t h w) d", d=HEAD_DIM)
    key, value = (
        rearrange(y, "s (n d) -> n s d", d=HEAD_DIM) for y in (key, linear(weights, "v", text))
    )
    out = (query @ key.transpose(1, 2) / HEAD_DIM**0.5).softmax(-1) @ value
    out = rearrange(out, "n (t h w) d -> t h w (n d)", t=x.shape[0], h=x.shape[1])
    return linear(weights, "o", out)


def heads(x: Tensor) -> int:
    return x.shape[-1] // HEAD_DIM


def layer_norm(x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / ((x * x).mean(-1, keepdim=True) + EPS).sqrt()


def gelu(x: Tensor) -> Tensor:
    """With the hyperbolic tangent."""
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
