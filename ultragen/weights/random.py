"""The 1.3B model's parts with random weights: what they cost does not depend on the values."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from ..model import wan_1_3b
from ..model.transformer import UltraGenTransformer3DModel

# Values drawn before they repeat: drawing billions one by one takes minutes. The odd number lets
# the rows of a matrix, whose length is a power of two, begin at ever other places.
BLOCK = 2**22 - 1


@dataclass(frozen=True)
class Sizes:
    """Widths and depths.

    Attributes:
        transformer: Settings of both transformers.
        full: Layers of UltraGen that keep full attention.
        lora_rank: Rank of the updates of UltraGen's compressed branches.
        text: Settings of the text encoder.
        vae: Settings of the autoencoder.
    """

    transformer: dict[str, Any]
    full: tuple[int, ...]
    lora_rank: int
    text: dict[str, Any]
    vae: dict[str, Any]

    @property
    def released(self) -> dict[str, Any]:
        """Settings of UltraGen's transformer in the released layout."""
        own = {"full_attention_layers": self.full, "lora_rank": self.lora_rank}
        return {**wan_1_3b.RELEASED, **self.transformer, **own}


TRUE = Sizes(
    wan_1_3b.TRANSFORMER,
    wan_1_3b.FULL_ATTENTION_LAYERS,
    wan_1_3b.LORA_RANK,
    wan_1_3b.TEXT_ENCODER,
    wan_1_3b.VAE,
)
SIZES = {
    "true": TRUE,
    # The text encoder is three quarters of all weights, and reads a prompt once.
    "short-text": replace(TRUE, text={**wan_1_3b.TEXT_ENCODER, "num_layers": 1, "vocab_size": 128}),
    "tiny": Sizes(
        {
            **wan_1_3b.TRANSFORMER,
            "num_attention_heads": 1,
            "text_dim": 16,
            "ffn_dim": 32,
            "num_layers": 3,
        },
        (0,),
        2,
        {"vocab_size": 128, "d_model": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2},
        {"base_dim": 3, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    ),
}


def builders(size: Sizes) -> dict[str, Callable[[], nn.Module]]:
    """What makes each part of a pipeline, without weights worth keeping."""
    return {
        "text_encoder": lambda: UMT5EncoderModel(UMT5Config(**size.text)),
        "base_transformer": lambda: WanTransformer3DModel(**size.transformer),
        "vae": lambda: AutoencoderKLWan(**size.vae),
        "transformer": lambda: UltraGenTransformer3DModel(**size.released),
    }


def make_tokenizer() -> T5Tokenizer:
    """A tokenizer of the true kind, whose pieces are single characters."""
    characters = string.ascii_letters + string.digits + string.punctuation
    special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    pieces = [(character, -2.0) for character in "▁" + characters]
    return T5Tokenizer(vocab=special + pieces, extra_ids=0, model_max_length=512)


class Noise:
    """Normal values, drawn once and repeated.

    Args:
        seed: The same seed gives the same values on every device.
        device: Where they are needed.
    """

    def __init__(self, seed: int, device: str = "cpu") -> None:
        drawn = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed))
        self.block, self.place = drawn.to(device, torch.bfloat16), 0

    def fill(self, tensor: Tensor, std: float) -> None:
        """Fills a tensor with the values that come next, scaled."""
        flat, done = tensor.view(-1), 0
        while done < len(flat):
            values = self.block[self.place : self.place + len(flat) - done]
            torch.mul(values, std, out=flat[done : done + len(values)])
            done += len(values)
            self.place = (self.place + len(values)) % len(self.block)

    def weigh(self, build: Callable[[], nn.Module]) -> Any:
        """A model in bfloat16 whose signals keep their strength from layer to layer."""
        with init_empty_weights():
            model = build()
        buffers = list(model.named_buffers())  # are computed, not drawn
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        device = self.block.device
        model = model.to_empty(device=device)
        for name, buffer in buffers:
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, buffer.to(device))
        if isinstance(model, UMT5EncoderModel):
            model.set_input_embeddings(model.shared)
        for name, parameter in model.named_parameters():
            if "norm" in name and not name.endswith("bias"):
                parameter.data.fill_(1.0)
            else:
                fan_in = max(parameter[0].numel(), 1)
                self.fill(parameter.data, 0.02 if parameter.ndim == 1 else fan_in**-0.5)
        return model.eval()
