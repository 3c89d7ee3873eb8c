"""Every number of Wan2.1-T2V-1.3B and of the UltraGen weights that were released for it, once.

Sources: the `config.json` files of `Wan-AI/Wan2.1-T2V-1.3B-Diffusers` and the authors' released
code; the layout of the weights is that of `ultragen_1080p.ckpt`.
"""

from __future__ import annotations

from typing import Any

HEAD_DIM = 128
"""Features of an attention head, in all Wan models."""

TRANSFORMER: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 12,
    "attention_head_dim": HEAD_DIM,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 8960,
    "num_layers": 30,
}
WIDTH = TRANSFORMER["num_attention_heads"] * HEAD_DIM
"""Features of a token."""

TEXT_ENCODER: dict[str, Any] = {  # umT5-XXL
    "vocab_size": 256384,
    "d_model": TRANSFORMER["text_dim"],
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
TEXT_TOKENS = 512

VAE: dict[str, Any] = {}  # diffusers' defaults are Wan2.1's
PIXELS_PER_LATENT = 8
"""Rows, and columns, of pixels that one latent covers."""

FULL_ATTENTION_LAYERS = (0, 1, 2, 27, 28, 29)
"""Layers that keep full attention in the released weights."""
LORA_RANK = 64

RELEASED: dict[str, Any] = {
    "attention_head_dim": HEAD_DIM,
    "branches": ("hierarchical", "global"),
    "crossing": "grow",
    # The authors resample features to the nearest multiple of the window count, with torchvision's
    # `Resize`, which at their pinned version does not filter.
    "uneven": "resize",
    # The global branch's keys were trained through W_Q.
    "global_keys_from": "query",
    # Everything ran in bfloat16; the gates and the time embedding saw the rounded timestep.
    "timestep_dtype": "bfloat16",
    # 68 × 120 tokens in 4 × 4 windows.
    "window_size": (17.0, 30.0),
}
"""What the released weights were trained with and no name or shape of theirs tells."""

T3: dict[str, Any] = {
    # By layer, in turn, of a grid of 21 × 136 × 240 tokens: 81 frames of 2176 × 3840.
    "t3_windows": ((21, 1, 1), (1, 17, 30), (1, 8, 40), (3, 17, 8), (7, 8, 6)),
    # As in the released code of UltraGen, which is the same trainer.
    "timestep_dtype": "bfloat16",
}
"""What T3-Video's weights for Wan2.1-T2V-1.3B were trained with, whose names and shapes are dense
Wan's (arXiv 2512.13492, zhangzjn/T3-Video at 6bfaf71)."""

PARAMETERS = {
    "text_encoder": 5_680_910_336,
    "transformer": 1_696_002_112,
    "base_transformer": 1_418_996_800,
    "vae": 126_892_531,
}
"""Parameters of each part; `transformer` is UltraGen's in the released layout."""
