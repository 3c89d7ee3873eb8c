"""Linear layers in FP8: which ones, their arithmetic beside one that is written out, what else a
pipeline does with them, and what is refused."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tiny
import torch
from diffusers import TaylorSeerCacheConfig, WanTransformer3DModel
from fakes import fake_models
from paths import ROOT
from peft import LoraConfig
from tiny import inputs, tiny_pipeline, tiny_ultragen, tiny_wan
from torch import Tensor, nn
from torch.nn import functional as F

from ultragen.cli import console, entry
from ultragen.hardware import Hardware
from ultragen.model import fp8
from ultragen.model.attention import LowRankUpdate
from ultragen.model.fp8 import (
    Float8Attention,
    Float8FeedForward,
    Float8Linear,
    check_machine,
    quantize,
)
from ultragen.ops import float8_linear, float8_product
from ultragen.ops.dispatch import NotMeant, use
from ultragen.ops.float8 import Float8
from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import WAN
from ultragen.runs import loading

SIZE = {"attention_head_dim": 16, "ffn_dim": 64, "num_layers": 3}  # multiples of 16
GRID = (2, 6, 9)
RUN = {
    "prompt": "a calm lake",
    "height": 96,
    "width": 128,
    "num_frames": 5,
    "windows": 2,
    "num_inference_steps": 3,
    "output_type": "latent",
}
PROMPT = ("--prompt", "a calm lake under snowy mountains")


@pytest.fixture
def model():
    """A full layer, an odd and an even one."""
    return tiny_ultragen(full_attention_layers=(0,), **SIZE)


@pytest.fixture(scope="module")
def built() -> UltraGenPipeline:
    return tiny_pipeline()


@pytest.fixture
def pipe(built: UltraGenPipeline) -> UltraGenPipeline:
    return copy.deepcopy(built)


@pytest.fixture
def any_machine(monkeypatch) -> None:
    """A CPU may do what takes longer there."""
    monkeypatch.setattr("ultragen.pipeline.check_machine", lambda device: None)


@torch.no_grad()
def output(model: nn.Module, **changes: object) -> Tensor:
    return model(**inputs(GRID), return_dict=False, **changes)[0]


def latents_of(pipe: UltraGenPipeline, **changes) -> Tensor:
    return pipe(**{**RUN, "generator": torch.Generator().manual_seed(0), **changes}).frames


def distance(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def layer(rows: int = 32, columns: int = 48) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(columns, rows)


def as_float8(linear: nn.Linear) -> Float8Linear:
    """The layer in FP8, as a transformer's."""
    quantize(nn.ModuleDict({"it": linear}), "it")
    return linear


def rounded(x: Tensor) -> Tensor:
    """Every row to FP8 and back: the largest value becomes 448, FP8's largest."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 448
    return (x / scale).to(torch.float8_e4m3fn).float() * scale


# Layers


@pytest.mark.parametrize("dense", [False, True])
def test_the_layers_that_see_every_token_are_in_fp8(dense, model):
    if dense:
        model = tiny_wan(**SIZE)
    plain = dict(model.named_parameters())
    kept = copy.deepcopy({n: p for n, p in plain.items() if not re.fullmatch(fp8.LAYERS, n[:-7])})
    names = quantize(model)
    expected = {
        f"blocks.{i}.{name}"
        for i in range(3)
        for name in (
            *("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
            *("attn2.to_q", "attn2.to_out.0", "ffn.net.0.proj", "ffn.net.2"),
        )
    }
    assert set(names) == expected and len(names) == len(expected)
    for name, module in model.named_modules():
        assert (type(module) is Float8Linear) == (name in expected), name
        if name in expected:
            assert module.quantised.values.dtype == torch.float8_e4m3fn
            assert module.quantised.scale.shape == (module.out_features, 1)
            assert module.weight.element_size() == 1 and not module.weight.requires_grad
    for block in model.blocks:
        assert (type(block.ffn), type(block.attn2)) == (Float8FeedForward, Float8Attention)
    found = dict(model.named_parameters())
    assert set(found) == set(plain)
    assert all(torch.equal(found[name], value) for name, value in kept.items())


def test_some_layers_only(model):
    names = quantize(model, r"blocks\.1\.ffn\.net\.2")
    assert names == ["blocks.1.ffn.net.2"]
    assert isinstance(model.blocks[1].ffn, Float8FeedForward)
    assert not isinstance(model.blocks[0].ffn, Float8FeedForward)
    assert output(model).isfinite().all()


def test_twice_is_once(model):
    names = quantize(model)
    expected = output(model)
    assert quantize(model) == names
    assert torch.equal(output(model), expected)


# Numbers


def test_the_arithmetic_of_a_layer():
    linear, x = layer(), torch.randn(2, 3, 5, 48)
    expected = F.linear(rounded(x), rounded(linear.weight), linear.bias)
    with torch.no_grad():
        found = as_float8(linear)(x)
    assert found.shape == (2, 3, 5, 32)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_rows_of_zeros_stay_zeros():
    linear, x = layer(), torch.randn(7, 48)
    linear.weight.data[3], x[4] = 0, 0
    with torch.no_grad():
        found = as_float8(linear)(x)
    assert found.isfinite().all()
    assert torch.equal(found[4], linear.bias)
    assert torch.equal(found[:, 3], linear.bias[3].expand(7))


def test_the_arithmetic_of_a_feed_forward_network(model):
    x, net = torch.randn(1, 9, 32), model.blocks[0].ffn.net
    with torch.no_grad():
        hidden = F.linear(rounded(x), rounded(net[0].proj.weight), net[0].proj.bias)
        hidden = F.gelu(hidden, approximate="tanh")
        expected = F.linear(rounded(hidden), rounded(net[2].weight), net[2].bias)
        quantize(model)
        torch.testing.assert_close(model.blocks[0].ffn(x), expected, rtol=1e-4, atol=1e-4)


def test_a_low_rank_update_goes_into_the_weight_out_of_fp8():
    linear, update, x = layer(32, 32), LowRankUpdate(32, 4), torch.randn(1, 6, 32)
    nn.init.normal_(update.lora_B.weight)
    with torch.no_grad():
        expected = F.linear(x, rounded(linear.weight), linear.bias)
        expected = expected + update.lora_B(update.lora_A(x))
        found = update.project(x, as_float8(linear))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dense", [False, True])
def test_the_output_is_near_the_plain_one(dense, dtype, model):
    model = tiny_wan(**SIZE) if dense else model
    expected = output(model)
    given = {name: x.to(dtype) for name, x in inputs(GRID).items() if name != "timestep"}
    quantize(model.to(dtype))
    with torch.no_grad():
        found = model(**given, timestep=inputs(GRID)["timestep"], return_dict=False)[0]
    assert found.dtype == dtype
    assert 1e-3 < distance(found.float(), expected) < 0.1


@pytest.mark.parametrize("ending", ["ffn.net.2", "to_q"])
def test_layers_that_torchao_quantised_are_called_as_they_are(ending, model):
    """As diffusers' `TorchAoConfig` leaves them."""
    pytest.importorskip("torchao")
    from fp8_linears import torchao_weight

    expected = output(model)
    for name, module in model.named_modules():
        if name.endswith(ending) and isinstance(module, nn.Linear):
            module.weight = nn.Parameter(torchao_weight(module.weight.detach()), False)
    assert 1e-4 < distance(output(model), expected) < 0.1


@pytest.mark.parametrize("strength", [0, 0.5])
def test_a_layers_output_at_the_ratios_of_the_true_widths(strength):
    """Each layer beside the plain one, given the same: a full, an odd and an even one, with hidden
    features six times as many as features, and weights as they are made or further away."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 6, "attention_head_dim": 16, "ffn_dim": 560, "num_layers": 3}
    config = {**tiny.WAN, **tiny.ULTRAGEN, **sizes, "full_attention_layers": (0,)}
    plain = tiny.UltraGenTransformer3DModel(**config).eval()
    tiny.randomise(plain, strength=strength)
    model, errors = copy.deepcopy(plain), []
    quantize(model)
    for block, other in zip(plain.blocks, model.blocks, strict=True):
        block.register_forward_hook(lambda _, x, y, o=other: errors.append(distance(o(*x), y)))
    output(plain)
    assert len(errors) == 3 and all(1e-3 < error < 0.03 for error in errors), errors


def test_queries_keys_and_values_are_made_of_one_input_in_fp8(model):
    """In all layers, and in the branches that add no updates to the projections."""
    ablated = tiny_ultragen(lora_rank=0, **SIZE)
    t3 = tiny_ultragen(t3_windows=((1, 2, 3),), **SIZE)
    for one, calls in ((model, 1), (ablated, 3), (t3, 1)):
        quantize(one)
        for block in one.blocks:
            given: list[list[object]] = []
            for name in ("to_q", "to_k", "to_v"):
                given.append(seen := [])
                watch(block.attn1.get_submodule(name), seen)
            output(one, windows="auto")
            full = one is model and block is model.blocks[0]
            assert all(len(seen) == (1 if full else calls) for seen in given)
            for query, key, value in zip(*given, strict=True):
                assert query is key is value and isinstance(query, Float8)


def watch(module: nn.Module, seen: list[object]) -> None:
    """Collects what a module is given, by a hook that may be passed over."""

    def look(_: nn.Module, args: tuple[object, ...]) -> None:
        seen.append(args[0])

    look.passive = True
    module.register_forward_pre_hook(look)


def test_norms_come_out_in_fp8_for_those_who_take_it(model):
    """The compression of UltraGen's layers reads its tokens as they are."""
    quantize(model)
    seen: dict[str, list[object]] = {}
    for name in ("0.attn1", "1.attn1", "1.attn2", "1.ffn"):
        watch(model.get_submodule(f"blocks.{name}"), seen.setdefault(name, []))
    output(model)
    forms = {name: [type(x) for x in found] for name, found in seen.items()}
    assert forms == {
        "0.attn1": [Float8],
        "1.attn1": [Tensor],
        "1.attn2": [Float8],
        "1.ffn": [Float8],
    }


def test_processors_of_others_are_given_tokens_as_they_are(model):
    class Other(type(model.blocks[0].attn1.processor)):
        def __call__(self, attn, hidden_states, *args, **kwargs):
            assert isinstance(hidden_states, Tensor)
            return super().__call__(attn, hidden_states, *args, **kwargs)

    quantize(model)
    with use("plain"):
        expected = output(model)
        model.blocks[0].attn1.set_processor(Other())
        assert torch.equal(output(model), expected)


def test_fused_projections_are_refused(model):
    quantize(model)
    with pytest.raises(ValueError, match="leave them unfused"):
        model.fuse_qkv_projections()


def test_a_feed_forward_network_in_pieces(model, monkeypatch):
    quantize(model)
    expected = output(model)
    monkeypatch.setattr(float8_linear, "PIECE", 64)
    monkeypatch.setattr(float8_linear, "ROWS", 16)
    assert [here.stop for here in float8_linear.pieces(108)] == [64, 128]
    torch.testing.assert_close(output(model), expected, rtol=1e-4, atol=1e-4)


def test_a_block_compiles(model):
    """Traced only: a CPU's compiler takes half a minute."""
    quantize(model)
    x, block = torch.randn(1, 12, 32), model.blocks[0]
    with torch.no_grad():
        for part in (block.ffn, block.attn2.to_q):
            traced = torch.compile(part, backend="aot_eager", fullgraph=True)
            torch.testing.assert_close(traced(x), part(x), rtol=1e-4, atol=1e-4)


# Weights


def test_another_precision_leaves_the_weights_as_exact_as_they_are(model):
    quantize(model)
    layer = model.blocks[1].attn1.to_q
    weight = layer.dense_weight()
    assert layer.to(torch.bfloat16).dense_weight().dtype == torch.bfloat16
    assert torch.equal(layer.to(torch.float32).dense_weight(), weight)


def test_it_is_saved_as_the_plain_layer_that_it_stands_for():
    linear, x = layer(), torch.randn(3, 48)
    expected = rounded(linear.weight)
    as_float8(linear)
    plain = nn.Linear(48, 32)
    plain.load_state_dict(linear.state_dict())
    torch.testing.assert_close(plain.weight, expected)
    with torch.no_grad():
        assert distance(linear(x), plain(x)) < 0.1
    with pytest.raises(RuntimeError, match="load weights first, then enable FP8"):
        linear.load_state_dict(plain.state_dict())


# Pipelines


def test_a_pipeline(pipe, any_machine):
    base, expected = pipe.base_pipeline(), latents_of(pipe)
    base.transformer = base.transformer.to(torch.bfloat16)
    pipe.transformer.to(torch.bfloat16)
    pipe.enable_fp8()
    found = latents_of(pipe)
    assert 1e-3 < distance(found, expected) < 0.2
    pipe.enable_fp8()
    assert torch.equal(latents_of(pipe), found)
    assert not any(isinstance(module, Float8Linear) for module in base.transformer.modules())
    base.enable_fp8()
    assert isinstance(base.transformer, WanTransformer3DModel)
    assert latents_of(base, windows=None).isfinite().all()


def test_guidance_on_a_second_device(pipe):
    quantize(pipe.transformer)
    expected = latents_of(pipe)
    pipe.enable_parallel_guidance("cpu")
    assert torch.equal(latents_of(pipe), expected)


def test_a_cache_of_whole_networks(pipe):
    """It replaces the feed-forward network's call, which FP8 replaces too."""
    config = TaylorSeerCacheConfig(1, cache_identifiers=[r"blocks\.\d+\.(attn[12]|ffn)"])
    quantize(pipe.transformer)
    with use("plain"):
        expected = latents_of(pipe)
        pipe.transformer.enable_cache(config)
        assert torch.equal(latents_of(pipe), expected)
        pipe.transformer.disable_cache()
        assert torch.equal(latents_of(pipe), expected)


def test_hooks_inside_a_feed_forward_network_are_called(model):
    quantize(model)
    seen: list[int] = []
    with use("plain"):
        expected = output(model)
        model.blocks[0].ffn.net[0].register_forward_hook(lambda *_: seen.append(1))
        assert torch.equal(output(model), expected)
    assert seen == [1]


def test_a_lora_after_fp8_stays_beside_the_weights(pipe):
    targets = ["to_q", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
    quantize(pipe.transformer)
    expected = latents_of(pipe)
    pipe.transformer.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False)
    )
    adapted = latents_of(pipe)
    assert distance(adapted, expected) > 0.05
    assert torch.equal(latents_of(pipe), adapted)
    with pytest.raises(ValueError, match="merge LoRAs before enable_fp8"):
        pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert torch.equal(latents_of(pipe), expected)


def test_a_lora_is_given_the_precision_of_the_layer(model):
    quantize(model.to(torch.bfloat16))
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    assert {p.dtype for n, p in model.named_parameters() if ".lora_A.default" in n} == {
        torch.bfloat16
    }


def test_a_dora_after_fp8_is_refused(pipe):
    quantize(pipe.transformer)
    name, d = "transformer.blocks.0.attn1.to_q", pipe.transformer.blocks[0].attn1.to_q.in_features
    dora = {
        f"{name}.lora_A.weight": torch.ones(2, d),
        f"{name}.lora_B.weight": torch.ones(d, 2),
        f"{name}.lora_magnitude_vector": torch.ones(d),
    }
    with pytest.raises(ValueError, match="DoRA, which reads the weights, and they are in FP8"):
        pipe.load_lora_weights(dora)
    del dora[f"{name}.lora_magnitude_vector"]
    pipe.load_lora_weights(dora)
    assert latents_of(pipe).isfinite().all()


def test_a_lora_before_fp8_is_merged_first(pipe):
    pipe.transformer.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False)
    )
    adapted = latents_of(pipe)
    with pytest.raises(ValueError, match=r"fuse_lora\(\) and pipe.unload_lora_weights"):
        quantize(pipe.transformer)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    quantize(pipe.transformer)
    assert 1e-3 < distance(latents_of(pipe), adapted) < 0.2


# What is refused


def test_a_cpu_is_refused(pipe):
    with pytest.raises(ValueError, match=r"CUDA GPU .* 8\.9 .* on 'cpu'.*leave FP8 off"):
        pipe.enable_fp8()


def test_training_is_refused(model):
    quantize(model)
    with pytest.raises(ValueError, match="no gradients: train in bfloat16"):
        model(**inputs(GRID))
    with pytest.raises(ValueError, match="no gradients"):
        model.blocks[0].ffn(torch.randn(1, 4, 32, requires_grad=True))


@pytest.fixture
def card(monkeypatch):
    """Settles what the GPU is, on which all forms run."""

    def settle(capability: tuple[int, int]) -> torch.device:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(fp8, "why_not", lambda name, device: None)
        return torch.device("cuda")

    return settle


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (12, 0)])
def test_a_card_that_does_it(card, capability):
    check_machine(card(capability))


def test_an_old_card_is_refused(card):
    with pytest.raises(ValueError, match=r"needs compute capability 8\.9, and Card has 8\.6"):
        check_machine(card((8, 6)))


def test_a_card_on_which_a_form_does_not_run_is_refused(card, monkeypatch):
    device = card((12, 0))
    failing = {"float8_product": "CUBLAS_STATUS_NOT_SUPPORTED\nmore"}
    monkeypatch.setattr(fp8, "why_not", lambda name, device: failing.get(name))
    with pytest.raises(ValueError, match=r"not work on Card .*: CUBLAS_STATUS_NOT_SUPPORTED\."):
        check_machine(device)


def test_the_product_is_tried(card, monkeypatch):
    """torch has it on a CPU, too."""
    card((9, 0))
    device = torch.device("cpu")
    float8_product.try_on(device)
    product = float8_product.product
    monkeypatch.setattr(float8_product, "product", lambda x, *others: product(x, *others) + x.scale)
    with pytest.raises(RuntimeError, match="numbers are wrong"):
        float8_product.try_on(device)
    card((8, 6))
    with pytest.raises(NotMeant, match=r"8\.9"):
        float8_product.try_on(device)


def test_the_product_is_the_plain_one(monkeypatch):
    """Through the library's own kernel, which a CPU has, too; both into a part of a tensor."""
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(s, dtype=torch.bfloat16) for s in ((5, 32), (48, 32), (48,)))
    rows, features = float8_linear.quantise(x), float8_linear.quantise(weight)
    outs = torch.zeros(2, 9, 48, dtype=torch.bfloat16)
    float8_linear.product(rows, features, bias, outs[0, 2:7])
    monkeypatch.setattr(float8_linear, "fused_runs", lambda name, device: name == "float8_product")
    float8_linear.product(rows, features, bias, outs[1, 2:7])
    torch.testing.assert_close(*outs, rtol=0.01, atol=0.01)
    assert outs[:, 2:7].all() and not outs[:, :2].any() and not outs[:, 7:].any()


def test_torchao_is_not_needed(monkeypatch, model):
    monkeypatch.setitem(sys.modules, "torchao", None)
    quantize(model)
    assert output(model).isfinite().all()


def test_float32_is_refused(pipe, any_machine):
    with pytest.raises(ValueError, match=r"bfloat16, and the transformer is in torch\.float32"):
        pipe.enable_fp8()


def test_layers_with_other_things_done_to_them_are_refused(model):
    handle = model.blocks[2].attn1.to_k.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"1 layers .* blocks\.2\.attn1\.to_k"):
        quantize(model)
    handle.remove()
    assert not any(isinstance(module, Float8Linear) for module in model.modules())
    assert quantize(model)


def test_widths_that_fp8_does_not_take_are_refused():
    model = tiny_ultragen()
    with pytest.raises(ValueError, match=r"multiples of 16 .* blocks\.0\.attn1\.to_q has \(24, 24"):
        quantize(model)


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(ValueError, match="no layers"):
        quantize(nn.Sequential(nn.Linear(16, 16)))


# Command line


def ultragen(*words: object) -> int:
    return console.run(
        lambda: entry.app(
            [str(word) for word in words], prog_name="ultragen", standalone_mode=False
        )
    )


@pytest.mark.parametrize("command", ["generate", "compare"])
def test_a_command(command, tmp_path, monkeypatch):
    made = fake_models()
    monkeypatch.setattr(loading, "load_models", lambda name=None: made)
    monkeypatch.setattr(loading, "check_fp8", lambda name=None: None)
    out = tmp_path / ("clip.mp4" if command == "generate" else "run")
    short = ("--frames", 5, "--steps", 1, "--out", out)
    assert ultragen(command, *PROMPT, *short) == 0
    sidecar = out.with_suffix(".json") if command == "generate" else out / "metadata.json"
    assert json.loads(sidecar.read_text())["machine"]["fp8"] is False
    assert not made.native.fp8
    assert ultragen(command, *PROMPT, *short, "--fp8", "--overwrite") == 0
    metadata = json.loads(sidecar.read_text())
    assert metadata["machine"]["fp8"] is True
    assert made.native.fp8 and made.base.fp8


def refused(capsys, *words: object) -> str:
    """What a command says that ends before anything is loaded."""
    assert ultragen("generate", *PROMPT, "--fp8", *words) != 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_commands_that_are_refused(card, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load_models", None)
    out = ("--out", tmp_path / "clip.mp4")
    assert "leave out --fp8" in refused(capsys, "--model", "embedded", *out)
    monkeypatch.setattr(loading, "choose", lambda name: SimpleNamespace(preset=WAN))
    assert "FP8 needs a CUDA GPU" in refused(capsys, *out)
    monkeypatch.setattr(loading, "find_hardware", lambda: Hardware("cuda", "Card"))
    card((8, 6))
    assert "Card has 8.6" in refused(capsys, *out)


# Benchmark


@pytest.mark.slow
def test_the_benchmark_as_a_toy(tmp_path):
    root, file, table = ROOT, tmp_path / "fp8.json", tmp_path / "fp8.md"
    small = "--height 288 --width 512 --frames 1 --steps 1 --prompts 1 --repeats 1"
    written = ("--json", file, "--markdown", table)
    ended = subprocess.run(
        [
            *(sys.executable, root / "benchmarks" / "fp8.py", "--tiny", "--variant", "released"),
            *(*small.split(), *written),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(file.read_text())
    assert [row["precision"] for row in found["speed"]] == ["plain", "FP8"]
    assert 0 == found["speed"][0]["error"] < found["speed"][1]["error"] < 0.1
    layers = {row["name"]: row["layers"] for row in found["drift"]}
    assert layers["FP8"] == sum(n for name, n in layers.items() if name != "FP8") == 80
    assert all(0 < row["error"][0] < 0.2 and row["psnr"][0] > 25 for row in found["drift"])
    assert table.read_text().count("| FP8") == 5


# On a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FP8 is fast on a GPU only")
def test_on_a_gpu(pipe):
    try:
        check_machine(torch.device("cuda"))
    except ValueError as error:
        pytest.skip(str(error))
    pipe.to("cuda", torch.bfloat16)
    expected = latents_of(pipe)
    pipe.enable_fp8()
    assert 1e-3 < distance(latents_of(pipe), expected) < 0.2
