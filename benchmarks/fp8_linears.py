"""Linear layers in FP8 beside bfloat16 and beside torchao's, in one run on one GPU.

    python benchmarks/fp8_linears.py --json fp8_linears.json
    python benchmarks/fp8_linears.py --only passes --case 2176x3840x81 --layout t3 --repeats 2
    python benchmarks/fp8_linears.py --tiny

At 1088 × 1920 × 81 in Wan's widths, with random numbers: single layers, with the pass that puts
their input into FP8 (alone, after a norm or after GELU, as the model has it) and without; torchao's
dynamic quantisation, compiled; whole feed-forward networks, in pieces of several sizes; one block
of each kind; and forward passes in the layouts `auto` (the paper's) and `released`, in turn, with
their peak memory and the error of the output. Each row is printed and saved as soon as it is there;
what fails becomes a row that says why. `--tiny` runs toys on any machine.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.normalization import FP32LayerNorm
from torch import Tensor, nn
from torch.nn import functional as F

from ultragen.benchmark.bench import free_memory, once
from ultragen.benchmark.cases import CASES, VARIANTS, WIDTHS, Family, arguments
from ultragen.benchmark.machine import card_name
from ultragen.files import first_line
from ultragen.model.fp8 import LAYERS, check_machine, quantize
from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.ops import float8_linear
from ultragen.ops.dispatch import prepare
from ultragen.ops.float8_linear import feed_forward, product, quantise, quantise_gelu
from ultragen.ops.modulation import modulated_norm
from ultragen.weights.released import cast_weights

Row = dict[str, Any]
Ways = dict[str, Callable[[], Any]]
TOKENS, DIM, HIDDEN = 171_360, 1536, 8960
LAYOUTS = ("auto", "released")
WAN = ("forward", "wan")
PIECES = (4096, 16_384, 32_768, TOKENS)
DTYPE = torch.bfloat16
CHECKED = 256  # tokens that are compared with float32


class Reader(nn.Module):
    """Something that is given tokens in FP8."""

    takes_float8 = True


def failure(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def torchao_weight(weight: Tensor) -> Tensor:
    """A weight in FP8 whose inputs go into FP8 too: torchao's
    `Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())`, on a CPU as well, which
    `quantize_` refuses."""
    from torchao.quantization import Float8MMConfig, Float8Tensor, PerRow
    from torchao.quantization.quantize_.common import KernelPreference
    from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs

    shared = {
        "granularity": PerRow(),
        "hp_value_lb": 1e-12,
        "kernel_preference": KernelPreference.TORCH,
    }
    return Float8Tensor.from_hp(
        weight,
        mm_config=Float8MMConfig(use_fast_accum=True),
        act_quant_kwargs=QuantizeTensorToFloat8Kwargs(**shared),
        **shared,
    )


@torch.no_grad()
def measured(ways: Ways, repeats: int, device: str, **about: Any) -> Iterator[Row]:
    """Medians in seconds of several ways in turn, after two calls of each; what fails says why."""
    running = {}
    for name, call in ways.items():
        try:
            call()
            call()
            running[name] = call
        except Exception as error:  # whatever it is, the others are measured
            yield {**about, "way": name, "failed": failure(error)}
    took: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(repeats):
        for name, call in running.items():
            took[name].append(once(call, device))
    for name, seconds in took.items():
        yield {**about, "way": name, "seconds": median(seconds), "of": sorted(seconds)}


def random(*sizes: int, device: str, strength: float = 1.0) -> Tensor:
    return torch.randn(sizes, device=device, dtype=DTYPE) * strength


@cache
def compiled(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    return torch.compile(function) if device == "cuda" else function


# Layers


@torch.no_grad()
def single_layer(shape: tuple[int, int, int], repeats: int, device: str) -> Iterator[Row]:
    """One layer with its input's quantisation, and without; errors against float32."""
    n, d, out = shape
    torch.manual_seed(0)
    x, weight, bias = (random(*s, device=device) for s in ((n, d), (out, d), (out,)))
    rows, features = quantise(x), quantise(weight)
    ways: Ways = {
        "bf16": lambda: F.linear(x, weight, bias),
        "fp8, product alone": lambda: product(rows, features, bias),
        "fp8, quantisation alone": lambda: quantise(x),
        "fp8": lambda: product(quantise(x), features, bias),
    }
    try:
        theirs, run = torchao_weight(weight), compiled(linear, device)
        ways["torchao"] = lambda: run(x, theirs, bias)
    except (ImportError, AttributeError) as error:
        yield {"layer": shape, "way": "torchao", "failed": first_line(error)}
    wanted = F.linear(x[:CHECKED].float(), weight.float(), bias.float())
    for row in measured(ways, repeats, device, layer=shape):
        if "seconds" in row and row["way"] != "fp8, quantisation alone":
            row["tflops"] = 2 * n * d * out / row["seconds"] / 1e12
            row["error"] = relative(ways[row["way"]]()[:CHECKED], wanted)
        yield row


@torch.no_grad()
def norm(tokens: int, dim: int, repeats: int, device: str) -> Iterator[Row]:
    """The norm before a layer: in bfloat16, that and its quantisation, both in one pass."""
    torch.manual_seed(0)
    x = random(1, tokens, dim, device=device)
    layer, reader = FP32LayerNorm(dim, 1e-6, False), Reader()
    scale, shift = torch.randn(2, 1, 1, dim, device=device)
    ways: Ways = {
        "bf16": lambda: modulated_norm(layer, x, scale, shift),
        "bf16, then into fp8": lambda: quantise(modulated_norm(layer, x, scale, shift)),
        "into fp8": lambda: modulated_norm(layer, x, scale, shift, reader),
    }
    yield from measured(ways, repeats, device, norm=(tokens, dim))


@torch.no_grad()
def network(shape: tuple[int, int, int], repeats: int, device: str) -> Iterator[Row]:
    """A feed-forward network, its input in FP8 from the norm before it."""
    tokens, dim, hidden = shape
    torch.manual_seed(0)
    x = random(tokens, dim, device=device)
    first, second = (random(*s, device=device) for s in ((hidden, dim), (dim, hidden)))
    biases = random(hidden, device=device), random(dim, device=device)
    rows = quantise(x)
    weights = quantise(first), biases[0], quantise(second), biases[1]

    def plain(x: Tensor) -> Tensor:
        if device != "cuda":
            return two_layers(x, first, biases[0], second, biases[1])
        inner = torch._addmm_activation(biases[0], x, first.t(), use_gelu=True)
        return F.linear(inner, second, biases[1])

    def in_pieces(piece: int) -> Tensor:
        with pieces_of(piece):
            return feed_forward(rows, *weights)

    inner = random(min(tokens, PIECES[1]), hidden, device=device)
    ways: Ways = {
        "bf16": lambda: plain(x),
        f"fp8, GELU of {len(inner)} tokens alone": lambda: quantise_gelu(inner),
    }
    for piece in PIECES:
        ways[f"fp8, pieces of {piece}"] = lambda p=piece: in_pieces(p)
    try:
        theirs = torchao_weight(first), biases[0], torchao_weight(second), biases[1]
        run = compiled(two_layers, device)
        ways["torchao"] = lambda: run(x, *theirs)
    except (ImportError, AttributeError) as error:
        yield {"network": shape, "way": "torchao", "failed": first_line(error)}
    given = (first, biases[0], second, biases[1])
    wanted = two_layers(x[:CHECKED].float(), *(each.float() for each in given))
    for row in measured(ways, repeats, device, network=shape):
        if "seconds" in row and "alone" not in row["way"]:
            row["error"] = relative(ways[row["way"]]()[:CHECKED], wanted)
        yield row


@contextmanager
def pieces_of(piece: int) -> Iterator[None]:
    before, float8_linear.PIECE = float8_linear.PIECE, piece
    try:
        yield
    finally:
        float8_linear.PIECE = before


# Models


@torch.no_grad()
def passes(layout: str, repeats: int, device: str, name: str) -> Iterator[Row]:
    """Blocks and forward passes of one layout in a case of `benchmark`, in bfloat16, in FP8, and
    with torchao's layers."""
    case = CASES[name]
    models: dict[str, nn.Module] = {}
    weights: dict[str, int] = {}
    for name, change in (("bf16", lambda model: None), ("fp8", quantize), ("torchao", by_torchao)):
        before = allocated(device)
        try:
            model = deepcopy(models["bf16"]) if models else build(layout, case.family, device)
            change(model)
            models[name] = model
        except Exception as error:
            yield {"layout": layout, "way": name, "failed": failure(error)}
        weights[name] = allocated(device) - before
    torch.manual_seed(0)
    (variant,) = (v for v in VARIANTS[case.family] if v.name == layout)
    given = arguments(case, variant, device, DTYPE)
    kinds = models["bf16"].layer_kinds
    firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    inputs, expected = record(models["bf16"], firsts, given)
    for number, args in inputs.items():
        kind = kinds[number]
        blocks = {name: model.blocks[number] for name, model in models.items()}
        ways: Ways = {name: lambda b=block, a=args: b(*a) for name, block in blocks.items()}
        wanted = blocks["bf16"](*args)
        for row in measured(ways, repeats, device, layout=layout, block=str(kind)):
            if "seconds" in row:
                row["error"] = relative(ways[row["way"]](), wanted)
            yield row
        del wanted, ways, blocks
    del inputs, args
    free_memory()
    ways = {name: lambda m=model: m(**given)[0] for name, model in models.items()}
    found = [*measured(ways, repeats, device, layout=layout, case=case.name)]
    for row in found:
        if "seconds" in row:
            name = row["way"]
            reset_peak(device)
            row["error"] = relative(ways[name](), expected)
            others = sum(size for other, size in weights.items() if other != name)
            row["weights"], row["peak"] = weights[name], peak(device) - others
        yield row


def build(layout: str, family: Family, device: str) -> nn.Module:
    """A model with random weights; a toy has widths that FP8 takes."""
    tiny = {"attention_head_dim": 16, "ffn_dim": 64} if family == "tiny" else {}
    config = {**WIDTHS[family], **tiny}
    (variant,) = (v for v in VARIANTS[family] if v.name == layout)
    torch.manual_seed(0)
    with torch.device(device):
        model = UltraGenTransformer3DModel(**{**config, **variant.config})
    return cast_weights(model, DTYPE).eval()


class TorchaoLinear(nn.Linear):
    """A linear layer in torchao's FP8, as `--fp8` once had it."""

    def forward(self, input: Tensor) -> Tensor:
        """… d → … out."""
        run = compiled(linear, input.device.type)
        return run(input.flatten(0, -2), self.weight, self.bias).unflatten(0, input.shape[:-1])

    def dense_weight(self) -> Tensor:
        """The weight out of FP8, out d."""
        return self.weight.dequantize()


class TorchaoFeedForward(FeedForward):
    """The network of two such layers, compiled as one."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """b n d → b n d."""
        first, second = self.net[0].proj, self.net[2]
        given = first.weight, first.bias, second.weight, second.bias
        run = compiled(two_layers, hidden_states.device.type)
        return run(hidden_states.flatten(0, -2), *given).unflatten(0, hidden_states.shape[:-1])


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight, bias)


def two_layers(
    x: Tensor, weight: Tensor, bias: Tensor, weight_out: Tensor, bias_out: Tensor
) -> Tensor:
    return linear(F.gelu(linear(x, weight, bias), approximate="tanh"), weight_out, bias_out)


def by_torchao(model: nn.Module) -> None:
    """The same layers as `quantize`, in torchao's FP8."""
    for name, module in model.named_modules():
        if re.fullmatch(LAYERS, name):
            module.weight = nn.Parameter(torchao_weight(module.weight.detach()), False)
            module.__class__ = TorchaoLinear
        elif type(module) is FeedForward and name.endswith("ffn"):
            module.__class__ = TorchaoFeedForward


def record(
    model: nn.Module, numbers: list[int], given: dict[str, Any]
) -> tuple[dict[int, tuple[Any, ...]], Tensor]:
    """What some blocks are given, and the model's output."""
    seen: dict[int, tuple[Any, ...]] = {}
    handles = [
        model.blocks[number].register_forward_pre_hook(
            lambda _, args, number=number: seen.update({number: args})
        )
        for number in numbers
    ]
    output = model(**given)[0]
    for handle in handles:
        handle.remove()
    return seen, output


def allocated(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else 0


def reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def measure(options: argparse.Namespace, device: str) -> Iterator[Row]:
    """Everything, the layers first."""
    tokens, dim, hidden = (300, 64, 96) if options.tiny else (TOKENS, DIM, HIDDEN)
    parts: list[Callable[[], Iterator[Row]]] = [
        *(
            lambda s=shape: single_layer(s, options.repeats, device)
            for shape in ((tokens, dim, dim), (tokens, dim, hidden), (tokens, hidden, dim))
        ),
        lambda: norm(tokens, dim, options.repeats, device),
        lambda: network((tokens, dim, hidden), options.repeats, device),
    ]
    case = "tiny" if options.tiny else options.case
    models = [
        lambda w=layout: passes(w, min(options.repeats, 3), device, case)
        for layout in options.layout or LAYOUTS
    ]
    chosen = {"layers": parts, "passes": models}.get(options.only, [*parts, *models])
    for part in chosen:
        try:
            yield from part()
        except Exception as error:
            yield {"failed": failure(error)}
        free_memory()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", choices=("layers", "passes"))
    parser.add_argument(
        "--case",
        choices=[case.name for case in CASES.values() if (case.kind, case.family) == WAN],
        default="1088x1920x81",
        help="Of the forward passes.",
    )
    parser.add_argument(
        "--layout",
        action="append",
        choices=[variant.name for variant in VARIANTS["wan"] if variant.windows],
        help="Of the forward passes, may be repeated.",
    )
    parser.add_argument("--repeats", type=int, default=5, help="Of which the median counts.")
    parser.add_argument("--tiny", action="store_true", help="Toys, on any machine.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        parser.error("this needs a GPU: choose --tiny to try it elsewhere.")
    heading = f"{card_name(device)}, torch {torch.__version__}"
    print(heading, flush=True)
    if device == "cuda":
        prepare(torch.device(device))
        try:
            check_machine(torch.device(device))
        except ValueError as error:  # what does run is measured all the same
            print(error, flush=True)
    rows: list[Row] = []
    for row in measure(options, device):
        rows.append(row)
        print(json.dumps(row), flush=True)
        if options.json:
            text = json.dumps({"heading": heading, "rows": rows}, indent=1) + "\n"
            options.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
