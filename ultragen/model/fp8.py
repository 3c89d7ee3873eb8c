"""The large linear layers in FP8 (Micikevicius et al., 2022, arXiv 2209.05433; e4m3).

Weights are in FP8 with a scale for each output feature. A layer's input goes into FP8 with a scale
for each token, taken from its largest value. Tensors and arithmetic are torchao's, which is only
imported here, and only when it is asked for.

In FP8 are what every token of the full grid passes through: the projections of the self-attention,
the query and output projections of the attention to the text, and the feed-forward network. The
rest stays as it is: keys and values of a few hundred text tokens, embeddings, gates and the head
are a small part of the work. So does the compressed branches' work, whose tokens are few and whose
low-rank updates go into the weights first, see `ops.linear.updated_linear`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from torch import Tensor, nn
from torch.nn import functional as F

from ..files import first_line
from ..ops.dispatch import fused_runs
from ..ops.layer_checks import is_bare, is_unhooked

LAYERS = (
    r"blocks\.\d+\."
    r"(attn1\.(to_q|to_k|to_v|to_out\.0)|attn2\.(to_q|to_out\.0)|ffn\.net\.(0\.proj|2))"
)
"""Names of the layers that are put into FP8."""

OLDEST = (8, 9)  # compute capability: Ada
MULTIPLE = 16  # of the features of a layer, which the product in FP8 needs
# torchao divides by the largest value of a row, and a row of zeros becomes NaN
# (github.com/pytorch/ao/issues/4713).
SMALLEST = 1e-12


class Float8Linear(nn.Linear):
    """A linear layer with its weight in FP8."""

    def forward(self, input: Tensor) -> Tensor:
        """… n d → … n out."""
        rows = input.flatten(0, -2)  # of one rank, which is compiled once
        out = in_few_passes(linear, input.device)(rows, self.weight, self.bias)
        return out.unflatten(0, input.shape[:-1])

    def dense_weight(self) -> Tensor:
        """The weight out of FP8, out d."""
        return self.weight.dequantize()


class Float8FeedForward(FeedForward):
    """Wan's feed-forward network with both layers in FP8: the pass that computes the activation
    puts it into FP8."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """b n d → b n d."""
        first, _, second = self.net
        parts = (first, first.proj, second)
        quantised = isinstance(first.proj, Float8Linear) and isinstance(second, Float8Linear)
        if not quantised or not all(map(is_unhooked, parts)):
            return super().forward(hidden_states, *args, **kwargs)
        out = in_few_passes(feed_forward, hidden_states.device)(
            hidden_states.flatten(0, -2),
            first.proj.weight,
            first.proj.bias,
            second.weight,
            second.bias,
        )
        return out.unflatten(0, hidden_states.shape[:-1])


def linear(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Rows n d, weight out d → n out; torchao's weights put the rows into FP8."""
    return F.linear(rows, weight, bias)


def feed_forward(
    rows: Tensor, weight: Tensor, bias: Tensor, weight_out: Tensor, bias_out: Tensor
) -> Tensor:
    """Two layers with GELU (tanh) between them, n d → n d."""
    return linear(F.gelu(linear(rows, weight, bias), approximate="tanh"), weight_out, bias_out)


def in_few_passes(function: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """The function, compiled where kernels run. Otherwise putting a tensor into FP8 moves it
    through memory about ten times, in part as float32, which may take longer than FP8 saves."""
    return compiled(function) if fused_runs("triton_modulation", device) else function


@cache
def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function)


def check_machine(device: torch.device) -> None:
    """Checks that a device computes in FP8.

    Raises:
        ImportError: if torchao can't be imported.
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
    if reason := why_not(device):
        raise ValueError(
            f"FP8 with a scale for each row does not work on {name} with torch "
            f"{torch.__version__}: {reason}. {others}"
        )


def why_not(device: torch.device) -> str:
    """Why a device does not compute in FP8; empty if it does. Tried, because not every release of
    torch has the product with row-wise scales for every card."""
    sizes = torch.arange(1, MULTIPLE + 1, dtype=torch.bfloat16, device=device)
    rows, weight = sizes.diag(), to_float8(sizes.diag())
    try:
        found = linear(rows, weight, sizes)
    except (RuntimeError, AssertionError) as error:
        return first_line(error).rstrip(".")
    right = torch.allclose(found, (sizes**2).diag() + sizes, rtol=0.05)
    return "" if right else "the numbers are wrong"


def quantize(transformer: nn.Module, layers: str = LAYERS) -> list[str]:
    """Puts large linear layers of a transformer into FP8, in place; they can't be trained, saved or
    put back after that.

    Args:
        transformer: UltraGen's or Wan's, without LoRA adapters.
        layers: A regular expression of the layers' whole names.

    Returns:
        The layers that are in FP8 now.

    Raises:
        ImportError: if torchao can't be imported.
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
        weight = to_float8(layer.weight.detach())
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.__class__ = Float8Linear
    for network in [module for module in transformer.modules() if type(module) is FeedForward]:
        if any(isinstance(part, Float8Linear) for part in network.modules()):
            network.__class__ = Float8FeedForward
    return list(found)


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


def to_float8(weight: Tensor) -> Tensor:
    """A weight in FP8 whose inputs go into FP8 too: torchao's
    `Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())`.

    `quantize_` would do that, but makes NaN of rows of zeros in a weight, and refuses a CPU, which
    can do the arithmetic.
    """
    try:
        from torchao.quantization import Float8MMConfig, Float8Tensor, PerRow
        from torchao.quantization.quantize_.common import KernelPreference
        from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs
    except (ImportError, AttributeError) as error:  # torchao of another torch: either
        raise ImportError(
            f"FP8 needs torchao, and it can't be imported ({error}): pip install 'torchao>=0.18', "
            "with torch 2.11 or newer, or leave FP8 off."
        ) from error
    shared = {
        "granularity": PerRow(),
        "hp_value_lb": SMALLEST,
        "kernel_preference": KernelPreference.TORCH,
    }
    return Float8Tensor.from_hp(
        weight,
        mm_config=Float8MMConfig(use_fast_accum=True),
        act_quant_kwargs=QuantizeTensorToFloat8Kwargs(**shared),
        **shared,
    )


def dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
