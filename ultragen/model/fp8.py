"""The large linear layers in FP8 (Micikevicius et al., 2022, arXiv 2209.05433; e4m3).

Weights are in FP8 with a scale for each output feature. A layer's input goes into FP8 with a scale
for each token, taken from its largest value, by the pass that computes it where that is ours: the
norms before the layers, and GELU. Queries, keys and values share one such input.

In FP8 are what every token of the full grid passes through: the projections of the self-attention,
the query and output projections of the attention to the text, and the feed-forward network. The
rest stays as it is: keys and values of a few hundred text tokens, embeddings, gates and the head
are a small part of the work. So does the compressed branches' work, whose tokens are few and whose
low-rank updates go into the weights first, see `ops.linear.updated_linear`.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import Tensor, nn

from ..ops.dispatch import FLOAT8, why_not
from ..ops.float8 import E4M3, Float8, Tokens, all_take_float8
from ..ops.float8_linear import feed_forward, for_layers, product, quantise
from ..ops.float8_product import MULTIPLE, OLDEST
from ..ops.layer_checks import is_bare, is_unhooked
from .full_attention import FullAttnProcessor

LAYERS = (
    r"blocks\.\d+\."
    r"(attn1\.(to_q|to_k|to_v|to_out\.0)|attn2\.(to_q|to_out\.0)|ffn\.net\.(0\.proj|2))"
)
"""Names of the layers that are put into FP8."""


class Float8Linear(nn.Linear):
    """A linear layer with its weight in FP8; without gradients.

    The weight and its scales are kept as bytes, which a cast of the model leaves as they are. It is
    saved as the plain layer that it stands for.

    Attributes:
        weight: e4m3, out d, as uint8.
        scale: What to multiply each output feature by, out 1 in float32, as uint8.
    """

    scale: Tensor
    takes_float8 = True

    @classmethod
    def take_over(cls, layer: nn.Linear) -> None:
        """Puts a layer's weight into FP8."""
        found = quantise(layer.weight.detach())
        layer.weight = nn.Parameter(found.values.view(torch.uint8), requires_grad=False)
        layer.register_buffer("scale", found.scale.view(torch.uint8), persistent=False)
        layer.__class__ = cls

    @property
    def quantised(self) -> Float8:
        """The weight, out d."""
        return Float8(self.weight.view(E4M3), self.scale.view(torch.float32), self.compute_dtype)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The precision of what it gives. peft asks for it, to give it to a LoRA."""
        return self.bias.dtype

    def dense_weight(self) -> Tensor:
        """The weight out of FP8, out d."""
        return self.quantised.dequantise()

    def forward(self, input: Tokens) -> Tensor:
        """… d → … out."""
        tokens = quantise(input) if isinstance(input, Tensor) else input
        return product(tokens.rows(), self.quantised, self.bias).unflatten(0, tokens.shape[:-1])

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.dense_weight()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        if f"{prefix}weight" in state_dict:
            errors: list[str] = others[-1]
            errors.append(f"{prefix}weight is in FP8: load weights first, then enable FP8.")
        else:  # a LoRA's tensors, for example, for other layers
            super()._load_from_state_dict(state_dict, prefix, *others)


class Float8FeedForward(FeedForward):
    """Wan's feed-forward network with both layers in FP8: the pass that computes the activation
    puts it into FP8."""

    @property
    def takes_float8(self) -> bool:
        """Whether both layers are in FP8 and nothing else is done to the network's parts."""
        first, _, second = self.net
        return is_unhooked(first) and all_take_float8((first.proj, second))

    def forward(self, hidden_states: Tokens, *args: Any, **kwargs: Any) -> Tensor:
        """b n d → b n d."""
        if not self.takes_float8:
            return super().forward(hidden_states, *args, **kwargs)
        first, second = self.net[0].proj, self.net[2]
        return feed_forward(
            hidden_states, first.quantised, first.bias, second.quantised, second.bias
        )


class Float8Attention(WanAttention):
    """Wan's attention whose queries are made in FP8: in self-attention of one input with keys and
    values."""

    @property
    def takes_float8(self) -> bool:
        """Whether its processor does nothing with its input but give it to layers in FP8."""
        known = type(self.processor) in (WanAttnProcessor, FullAttnProcessor)
        return known and not self.fused_projections and all_take_float8(self.readers)

    @property
    def readers(self) -> tuple[nn.Module, ...]:
        """The layers that are given its input."""
        return (self.to_q,) if self.is_cross_attention else (self.to_q, self.to_k, self.to_v)

    def fuse_projections(self) -> None:
        """Refused: it would take the bytes for the weights.

        Raises:
            ValueError: always.
        """
        raise ValueError("Projections in FP8 share one input already: leave them unfused.")

    def forward(self, hidden_states: Tokens, *args: Any, **kwargs: Any) -> Tensor:
        """b n d → b n d."""
        if isinstance(hidden_states, Tensor) and self.takes_float8:
            hidden_states = for_layers(hidden_states, *self.readers)
        return super().forward(hidden_states, *args, **kwargs)


READERS: dict[type[nn.Module], type[nn.Module]] = {
    FeedForward: Float8FeedForward,
    WanAttention: Float8Attention,
}
"""Modules that hand what they are given to such layers, and what becomes of them."""


def check_machine(device: torch.device) -> None:
    """Checks that a device computes in FP8.

    Raises:
        ValueError: if the device can't, with what can.
    """
    others = "Take an Ada, Hopper or Blackwell GPU, or leave FP8 off."
    if device.type != "cuda":
        raise ValueError(
            f"FP8 needs a CUDA GPU of compute capability {dotted(OLDEST)} or newer, and the model "
            f"is on {device.type!r}: bring it to the GPU first, or leave FP8 off."
        )
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        raise ValueError(
            f"FP8 needs compute capability {dotted(OLDEST)}, and {name} has {dotted(capability)}. "
            f"{others}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # slower code does not run in its place: it is refused
        reasons = [reason for form in FLOAT8 if (reason := why_not(form, device))]
    if reasons:
        line, *_ = reasons[0].splitlines()
        raise ValueError(
            f"FP8 with a scale for each row does not work on {name} with torch "
            f"{torch.__version__}: {line.rstrip('.')}. {others}"
        )


def quantize(transformer: nn.Module, layers: str = LAYERS) -> list[str]:
    """Puts large linear layers of a transformer into FP8, in place; they can't be trained or put
    back after that, and are saved as what is left of them.

    Args:
        transformer: UltraGen's or Wan's, without LoRA adapters.
        layers: A regular expression of the layers' whole names.

    Returns:
        The layers that are in FP8 now.

    Raises:
        ValueError: if there are no such layers, or one can't be put into FP8; nothing is changed.
    """
    if getattr(transformer, "peft_config", None):
        raise ValueError(
            "LoRA adapters are loaded, and would be left out of FP8: merge them first, with "
            "pipe.fuse_lora() and pipe.unload_lora_weights()."
        )
    found = {
        name: module
        for name, module in transformer.named_modules()
        if re.fullmatch(layers, name) and isinstance(module, nn.Linear)
    }
    new = {name: layer for name, layer in found.items() if not isinstance(layer, Float8Linear)}
    check_layers(found, new)
    for layer in new.values():
        Float8Linear.take_over(layer)
    for module in transformer.modules():
        if type(module) in READERS and is_in_float8(module):
            module.__class__ = READERS[type(module)]
    return list(found)


def is_in_float8(transformer: nn.Module) -> bool:
    """Whether layers of a transformer were put into FP8."""
    return any(isinstance(module, Float8Linear) for module in transformer.modules())


def check_layers(found: dict[str, nn.Linear], new: dict[str, nn.Linear]) -> None:
    """Checks that layers can be put into FP8; errors as in `quantize`."""
    if not found:
        raise ValueError("The transformer has no layers that FP8 is for: leave FP8 off.")
    if wrong := [name for name, layer in new.items() if not is_bare(layer) or layer.weight.is_meta]:
        raise ValueError(
            f"{len(wrong)} layers are offloaded, hooked or quantised in another way, the first is "
            f"{wrong[0]}: take that off before FP8, for example with pipe.remove_all_hooks()."
        )
    sizes = {name: tuple(layer.weight.shape) for name, layer in new.items()}
    if odd := {name: size for name, size in sizes.items() if any(x % MULTIPLE for x in size)}:
        raise ValueError(
            f"FP8 needs layers with multiples of {MULTIPLE} features, and {next(iter(odd))} has "
            f"{next(iter(odd.values()))}: leave FP8 off."
        )


def dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
