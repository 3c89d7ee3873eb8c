"""LoRAs of every tool: what is loaded acts as the same weights merged by hand."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from lora_files import (
    ATTENTION,
    EVERYTHING,
    LAYOUTS,
    RANK,
    draw,
    draw_factors,
    in_blocks,
    merged,
    ours,
    products,
    save,
)
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from tiny import inputs, tiny_ultragen, tiny_wan
from torch import Tensor, nn

from ultragen.model.adapters import adapter_strengths
from ultragen.pipeline import UltraGenPipeline
from ultragen.weights.lora_loading import LoraLoading

INPUTS = inputs((2, 4, 6))
SOME = ("diffusers", "ComfyUI", "DiffSynth", "musubi")


class Pipe(LoraLoading):
    """As much of a pipeline as a LoRA needs."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.register_modules(transformer=transformer)


@pytest.fixture
def pipe() -> Pipe:
    return Pipe(tiny_ultragen())


def output(transformer: nn.Module, **options) -> Tensor:
    with torch.no_grad():
        return transformer(**INPUTS, **options, return_dict=False)[0]


def check_merged(pipe: Pipe, changes: Mapping[str, Tensor], plain: nn.Module | None = None) -> None:
    """What the pipeline's transformer gives is what weights with these changes give."""
    plain = plain or tiny_ultragen()
    base, expected, found = map(output, (plain, merged(plain, changes), pipe.transformer))
    change = (expected - base).abs().max()
    assert change > 1e-2
    assert (found - expected).abs().max() <= 1e-4 * change


# Namings


@pytest.mark.parametrize(
    ("layout", "alpha"),
    [*((layout, 5.0) for layout in LAYOUTS), *((layout, None) for layout in SOME)],
)
def test_every_naming_acts_as_merged_weights(layout, alpha, pipe, tmp_path):
    factors = draw_factors(pipe.transformer, EVERYTHING)
    path = save(LAYOUTS[layout](factors, alpha), tmp_path / "style.safetensors")
    pipe.load_lora_weights(path)
    check_merged(pipe, products(factors, 1.0 if alpha is None else alpha / RANK))


@pytest.mark.parametrize(
    "layers",
    [
        in_blocks(*ATTENTION),
        in_blocks("self_attn.q", "self_attn.k", blocks=(1,)),
        ("blocks.1.cross_attn.v",),
        in_blocks("ffn.2"),
        ("head.head",),
        ("patch_embedding",),
    ],
    ids=["attention", "one block", "one layer", "feed-forward", "head", "patches"],
)
@pytest.mark.parametrize("layout", ["musubi", "ComfyUI"])
def test_a_part_of_the_layers_is_enough(layout, layers, pipe, tmp_path):
    factors = draw_factors(pipe.transformer, layers)
    pipe.load_lora_weights(save(LAYOUTS[layout](factors, 2.0), tmp_path / "part.safetensors"))
    check_merged(pipe, products(factors, 2 / RANK))


def test_a_dense_model_takes_the_same_files(tmp_path):
    dense = tiny_wan()
    pipe, factors = Pipe(tiny_wan()), draw_factors(dense, EVERYTHING)
    pipe.load_lora_weights(save(LAYOUTS["musubi"](factors, 1.0), tmp_path / "a.safetensors"))
    check_merged(pipe, products(factors, 1 / RANK), dense)


def test_ranks_and_alphas_may_differ_by_layer(pipe):
    one = draw_factors(pipe.transformer, ("blocks.0.self_attn.q",), rank=2)
    other = draw_factors(pipe.transformer, ("blocks.1.self_attn.q", "blocks.1.ffn.0"), rank=5)
    write = LAYOUTS["musubi"]
    pipe.load_lora_weights(write(one, 3) | write(other, 1))  # α as a whole number, too
    check_merged(pipe, products(one, 3 / 2) | products(other, 1 / 5))


@pytest.mark.parametrize("beside", ["adapter_config.json", "the file"])
@pytest.mark.parametrize("rslora", [False, True])
def test_alpha_counts_where_it_stands_beside_the_tensors(beside, rslora, pipe, tmp_path):
    factors = draw_factors(pipe.transformer, in_blocks("self_attn.q", "ffn.0"))
    settings = {
        "r": RANK,
        "lora_alpha": 6,
        "alpha_pattern": {"ffn.net.0.proj": 12},
        "use_rslora": rslora,
    }
    weights = LAYOUTS["peft of diffusers"](factors, None)
    if beside == "the file":
        told = {f"transformer.{key}": value for key, value in settings.items()}
        save(weights, tmp_path / "pytorch_lora_weights.safetensors", lora_adapter_metadata=told)
    else:
        save(weights, tmp_path / "adapter_model.safetensors")
        (tmp_path / beside).write_text(json.dumps(settings))
    pipe.load_lora_weights(tmp_path)
    rank = RANK**0.5 if rslora else RANK
    changes = products(factors, 6 / rank)
    changes |= {name: 2 * value for name, value in changes.items() if ".ffn." in name}
    check_merged(pipe, changes)


@pytest.mark.parametrize("writer", ["diffusers", "diffusers, whole pipeline", "peft"])
def test_what_the_libraries_themselves_write_is_read(writer, pipe, tmp_path):
    """With α in the settings that they write beside the tensors."""
    config = LoraConfig(r=RANK, lora_alpha=5, target_modules=["to_q", "net.2"], lora_bias=True)
    trained = tiny_ultragen()
    if writer == "peft":
        adapted = get_peft_model(trained, config)
    else:
        trained.add_adapter(config)
    for number, (key, parameter) in enumerate(trained.named_parameters()):
        if ".default." in key:
            parameter.data = draw(*parameter.shape, number=number) / 4
    expected = output(trained)
    if writer == "peft":
        adapted.save_pretrained(tmp_path)
    elif writer == "diffusers":
        trained.save_lora_adapter(tmp_path)
    else:
        Pipe.save_lora_weights(
            tmp_path,
            get_peft_model_state_dict(trained),
            transformer_lora_adapter_metadata=trained.peft_config["default"].to_dict(),
        )
    pipe.load_lora_weights(tmp_path)
    change = (expected - output(tiny_ultragen())).abs().max()
    assert change > 1e-2
    assert (output(pipe.transformer) - expected).abs().max() <= 1e-4 * change


def test_a_file_of_half_precision_is_scaled_exactly(pipe, tmp_path):
    factors = draw_factors(pipe.transformer, EVERYTHING)
    factors = {name: (a.bfloat16(), b.bfloat16()) for name, (a, b) in factors.items()}
    pipe.load_lora_weights(save(LAYOUTS["musubi"](factors, 2.0), tmp_path / "half.safetensors"))
    wide = {name: (a.float(), b.float()) for name, (a, b) in factors.items()}
    check_merged(pipe, products(wide, 2 / RANK))


@pytest.mark.parametrize("layout", SOME)
def test_the_callers_tensors_stay_as_they_are(layout, pipe):
    """diffusers multiplies α into them, so that a second pipeline gets half of the LoRA."""
    factors = draw_factors(pipe.transformer, EVERYTHING)
    weights = LAYOUTS[layout](factors, 1.5)
    before = {key: value.clone() for key, value in weights.items()}
    pipe.load_lora_weights(weights)
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            parameter.mul_(2)
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[key], before[key]) for key in before)
    second = Pipe(tiny_ultragen())
    second.load_lora_weights(weights)
    check_merged(second, products(factors, 1.5 / RANK))


# Differences


def test_differences_and_partial_biases_are_applied(pipe, tmp_path):
    """What ComfyUI's tools extract from distilled models."""
    factors = draw_factors(pipe.transformer, in_blocks("self_attn.q", "self_attn.v", "ffn.0"))
    changes = products(factors, 1.0)
    weights = LAYOUTS["ComfyUI, up and down"](factors, None)
    differences = {
        "blocks.0.self_attn.q.diff_b": "blocks.0.attn1.to_q.bias",  # with factors
        "blocks.1.cross_attn.o.diff_b": "blocks.1.attn2.to_out.0.bias",  # without
        "blocks.1.self_attn.k.diff": "blocks.1.attn1.to_k.weight",
        "blocks.0.self_attn.v.diff": "blocks.0.attn1.to_v.weight",  # beside factors
        "head.head.diff": "proj_out.weight",
        "head.head.diff_b": "proj_out.bias",
        "patch_embedding.diff": "patch_embedding.weight",
        "patch_embedding.diff_b": "patch_embedding.bias",
        "time_embedding.0.diff_b": "condition_embedder.time_embedder.linear_1.bias",
        "blocks.0.self_attn.norm_q.diff": "blocks.0.attn1.norm_q.weight",
        "blocks.1.cross_attn.norm_k.diff": "blocks.1.attn2.norm_k.weight",
        "blocks.0.norm3.diff": "blocks.0.norm2.weight",
        "blocks.0.norm3.diff_b": "blocks.0.norm2.bias",
        "blocks.0.diff_m": "blocks.0.scale_shift_table",
        "blocks.1.modulation.diff": "blocks.1.scale_shift_table",
        "head.diff_m": "scale_shift_table",
    }
    for number, (key, name) in enumerate(differences.items()):
        shape = pipe.transformer.get_parameter(name).shape
        weights[f"diffusion_model.{key}"] = value = 0.2 * draw(*shape, number=number)
        changes[name] = changes.get(name, 0) + value
    pipe.load_lora_weights(save(weights, tmp_path / "distilled.safetensors"))
    assert not any(p.is_meta for p in pipe.transformer.parameters())
    check_merged(pipe, changes)
    pipe.set_adapters("default_0", 0.5)
    check_merged(pipe, {name: 0.5 * value for name, value in changes.items()})
    pipe.set_adapters("default_0", 0.25)
    found = output(pipe.transformer, attention_kwargs={"scale": 2.0})
    half = merged(tiny_ultragen(), {name: 0.5 * value for name, value in changes.items()})
    torch.testing.assert_close(found, output(half), rtol=1e-4, atol=1e-4)
    pipe.unload_lora_weights()
    plain = tiny_ultragen().state_dict()
    found = pipe.transformer.state_dict()
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[key], plain[key]) for key in plain)  # without any forward pass


def norm_lora(model: nn.Module, number: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    factors = draw_factors(model, ("blocks.0.self_attn.q",))
    value = 0.3 * draw(24, number=number)
    weights = LAYOUTS["ComfyUI"](factors, None) | {"diffusion_model.blocks.0.norm3.diff": value}
    return weights, products(factors, 1.0) | {"blocks.0.norm2.weight": value}


def test_differences_of_several_adapters_add_up(pipe):
    (first, one), (second, other) = (norm_lora(pipe.transformer, number) for number in (1, 2))
    pipe.load_lora_weights(first, "one")
    pipe.load_lora_weights(second, "other")
    pipe.set_adapters(["one", "other"], [1.0, 2.0])
    check_merged(pipe, {name: one[name] + 2 * other[name] for name in one})
    pipe.delete_adapters("other")
    pipe.set_adapters("one")
    check_merged(pipe, one)
    pipe.disable_lora()
    torch.testing.assert_close(output(pipe.transformer), output(tiny_ultragen()))


@pytest.mark.parametrize("where", ["blocks.1", "blocks.1."])
def test_the_strength_of_a_block_is_of_no_other_block(where):
    """diffusers 0.42.1 takes blocks 10 and 11 for block 1 too, and ends in an IndexError at a layer
    outside the blocks (`set_weights_and_activate_adapters` in `utils/peft_utils.py`)."""
    pipe = Pipe(tiny_ultragen(num_layers=12))
    layers = (*in_blocks("self_attn.q", blocks=tuple(range(12))), "text_embedding.0")
    pipe.load_lora_weights(LAYOUTS["ComfyUI"](draw_factors(pipe.transformer, layers), None), "one")
    pipe.set_adapters("one", {"transformer": {where: 0.5}})
    found = adapter_strengths(pipe.transformer)
    assert {name: x for (name, _), x in found.items() if x != 1} == {"blocks.1.attn1.to_q": 0.5}
    assert len(found) == 13
    pipe.set_adapters(["one"], [{"transformer": {"blocks.1": 1.0, "attn1": 0.0}}])
    found = adapter_strengths(pipe.transformer)
    assert sum(found.values()) == 2  # of block 1, which is named first, and of the text's layer
    pipe.set_adapters("one", {"transformer": {"blocks.1.attn": 0.5}})
    assert adapter_strengths(pipe.transformer)["blocks.1.attn1.to_q", "one"] == 0.5
    with pytest.raises(ValueError, match=r"No layer with a LoRA has 'blocks.99'.*blocks\.0"):
        pipe.set_adapters("one", {"transformer": {"blocks.99": 0.5}})


def test_differences_stay_when_they_are_merged(pipe):
    weights, changes = norm_lora(pipe.transformer)
    pipe.load_lora_weights(weights)
    pipe.fuse_lora(lora_scale=0.5)
    pipe.unload_lora_weights()
    check_merged(pipe, {name: 0.5 * value for name, value in changes.items()})


def test_taken_out_of_the_weights_an_adapter_acts_as_before(pipe):
    """diffusers 0.42.1 leaves it at the `lora_scale` at which it was merged, here 0.5, and merges
    it with 0.25 the next time (`_fuse_lora_apply` in `loaders/peft.py`)."""
    pipe.load_lora_weights(norm_lora(pipe.transformer)[0], "one")
    pipe.set_adapters("one", 0.8)
    beside, merged_once = output(pipe.transformer), []
    for _ in range(2):
        pipe.fuse_lora(lora_scale=0.5)
        merged_once.append(output(pipe.transformer))
        pipe.unfuse_lora()
        torch.testing.assert_close(output(pipe.transformer), beside)
    torch.testing.assert_close(*merged_once)
    half = output(pipe.transformer, attention_kwargs={"scale": 0.5})
    torch.testing.assert_close(half, merged_once[0])


def test_adapters_that_are_merged_one_after_the_other_act_as_before(pipe):
    pipe.load_lora_weights(norm_lora(pipe.transformer)[0], "one")
    alone = output(pipe.transformer)
    pipe.fuse_lora(lora_scale=0.5, adapter_names=["one"])
    pipe.load_lora_weights(norm_lora(pipe.transformer, 2)[0], "other")
    pipe.fuse_lora(lora_scale=0.25, adapter_names=["other"])
    pipe.unfuse_lora()
    assert set(adapter_strengths(pipe.transformer).values()) == {1.0}
    pipe.set_adapters("one")
    torch.testing.assert_close(output(pipe.transformer), alone)


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_a_scale_of_one_pass_is_gone_after_it(scale, pipe):
    """After a scale of 0, diffusers 0.42.1 gives all adapters the strength 1
    (`unscale_lora_layers` in `utils/peft_utils.py`)."""
    for number, name in enumerate(("one", "other")):
        pipe.load_lora_weights(norm_lora(pipe.transformer, number)[0], name)
    pipe.set_adapters(["one", "other"], [0.3, 0.8])
    expected = output(pipe.transformer)
    assert not torch.equal(output(pipe.transformer, attention_kwargs={"scale": scale}), expected)
    assert torch.equal(output(pipe.transformer), expected)


def test_fused_projections_and_a_lora_refuse_each_other(pipe):
    """diffusers 0.42.1 computes without the LoRA, in either order (`WanAttention.fuse_projections`
    in `transformer_wan.py`; pull request 14047 is to refuse it)."""
    factors = draw_factors(pipe.transformer, ("blocks.0.cross_attn.k",))
    weights = LAYOUTS["ComfyUI"](factors, None)
    plain = output(pipe.transformer)
    pipe.transformer.fuse_qkv_projections()
    torch.testing.assert_close(output(pipe.transformer), plain)
    with pytest.raises(ValueError, match=r"unfuse_qkv_projections\(\) first"):
        pipe.load_lora_weights(weights)
    pipe.transformer.unfuse_qkv_projections()
    pipe.load_lora_weights(weights)
    expected = output(pipe.transformer)
    assert (expected - plain).abs().max() > 1e-2
    with pytest.raises(ValueError, match=r"fuse_lora\(\) and pipe.unload_lora_weights\(\)"):
        pipe.transformer.fuse_qkv_projections()
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.transformer.fuse_qkv_projections()
    torch.testing.assert_close(output(pipe.transformer), expected)


def test_differences_of_a_swapped_adapter_go(pipe):
    first, _ = norm_lora(pipe.transformer, 1)
    second, changes = norm_lora(pipe.transformer, 2)
    pipe.load_lora_weights(first, "one")
    output(pipe.transformer)
    pipe.load_lora_weights(second, "one", hotswap=True)
    check_merged(pipe, changes)


@pytest.mark.parametrize(
    ("way", "alpha"),
    [("UltraGen", None), ("UltraGen", 8.0), ("Wan", None), ("Wan", 8.0), ("transformer", None),
     ("transformer", 8.0)],
)  # fmt: skip
def test_a_swapped_adapter_keeps_its_strength(way, alpha):
    """peft 0.21.2 gives it 1, and the alpha of the one before it at the next `set_adapters`."""
    pipe = Pipe(tiny_wan() if way == "Wan" else tiny_ultragen())
    plain = copy.deepcopy(pipe.transformer)
    first = draw_factors(pipe.transformer, in_blocks("self_attn.q"))
    second = {layer: (down, -up) for layer, (down, up) in first.items()}
    pipe.load_lora_weights(LORA(first, None), "style")
    pipe.set_adapters("style", 0.5)
    if way == "transformer":
        weights = LAYOUTS["diffusers"](second, None)
        alphas = {f"transformer.{ours(layer)}.alpha": alpha for layer in second if alpha}
        pipe.transformer.load_lora_adapter(
            weights, adapter_name="style", hotswap=True, network_alphas=alphas or None
        )
    else:
        pipe.load_lora_weights(LORA(second, alpha), "style", hotswap=True)
    scale = 1.0 if alpha is None else alpha / RANK
    changes = products(second, scale)
    check_merged(pipe, {name: 0.5 * change for name, change in changes.items()}, plain)
    pipe.set_adapters("style", 2.0)
    check_merged(pipe, {name: 2 * change for name, change in changes.items()}, plain)


@pytest.mark.parametrize("strength", [0.5, 0.0])
def test_layers_that_a_swapped_adapter_lacks_change_nothing(pipe, strength):
    """peft leaves their strengths alone: they must not weigh twice, nor on what follows."""
    layers = in_blocks("self_attn.q")
    first, (second, changes) = draw_factors(pipe.transformer, layers), norm_lora(pipe.transformer)
    pipe.load_lora_weights(LORA(first, None), "style")
    pipe.set_adapters("style", strength)
    before = adapter_strengths(pipe.transformer)
    for _ in range(2):
        pipe.load_lora_weights(second, "style", hotswap=True)
        assert adapter_strengths(pipe.transformer) == before
    pipe.set_adapters("style", 1.0)
    assert set(adapter_strengths(pipe.transformer).values()) == {1.0}
    check_merged(pipe, changes)
    pipe.load_lora_weights(LORA(first, None), "style", hotswap=True)
    check_merged(pipe, products(first, 1.0))


def test_a_strength_that_is_compiled_in_stays_the_same_tensor(pipe):
    """As peft's `prepare_model_for_compiled_hotswap` makes them."""
    factors = draw_factors(pipe.transformer, in_blocks("self_attn.q"))
    pipe.load_lora_weights(LORA(factors, None), "style")
    layer = pipe.transformer.blocks[0].attn1.to_q
    layer.scaling["style"] = strength = torch.tensor(0.5)
    pipe.load_lora_weights(LORA(factors, None), "style", hotswap=True)
    assert layer.scaling["style"] is strength and strength == 0.5


@pytest.mark.parametrize("way", ["UltraGen", "Wan", "transformer"])
def test_deleting_an_adapter_switches_on_no_other(way):
    """As peft 0.21.2 does, layer by layer."""
    pipe = Pipe(tiny_wan() if way == "Wan" else tiny_ultragen())
    plain = copy.deepcopy(pipe.transformer)
    factors = {
        name: draw_factors(pipe.transformer, in_blocks(f"self_attn.{layer}"))
        for name, layer in (("a", "q"), ("b", "q"), ("c", "v"))
    }
    for name, each in factors.items():
        pipe.load_lora_weights(LORA(each, None), name)
    owner = pipe.transformer if way == "transformer" else pipe
    pipe.set_adapters("a")
    owner.delete_adapters("a")
    assert pipe.get_active_adapters() == []
    torch.testing.assert_close(output(pipe.transformer), output(plain))
    pipe.set_adapters("c", 0.5)
    check_merged(pipe, {k: 0.5 * v for k, v in products(factors["c"], 1.0).items()}, plain)
    owner.delete_adapters(["b"])
    assert pipe.get_active_adapters() == ["c"]
    check_merged(pipe, {k: 0.5 * v for k, v in products(factors["c"], 1.0).items()}, plain)
    pipe.load_lora_weights(LORA(factors["a"], None), "a")
    pipe.set_adapters("c")
    pipe.transformer.requires_grad_(False)
    owner.delete_adapters("a")
    assert not any(parameter.requires_grad for parameter in pipe.transformer.parameters())
    owner.delete_adapters("c")
    torch.testing.assert_close(output(pipe.transformer), output(plain))


def test_differences_of_zeros_cost_nothing(pipe):
    weights, _ = norm_lora(pipe.transformer)
    weights["diffusion_model.blocks.0.norm3.diff"].zero_()
    pipe.load_lora_weights(weights)
    assert not pipe.transformer._forward_pre_hooks


# Methods


def test_a_loha_is_applied(pipe, tmp_path):
    weights, changes = {}, {}
    for number, layer in enumerate(in_blocks("self_attn.q", "ffn.0", "ffn.2")):
        out, features = pipe.transformer.get_submodule(ours(layer)).weight.shape
        a1, a2 = draw(out, 2, number=number), draw(out, 2, number=number + 1)
        b1, b2 = draw(2, features, number=number + 2), draw(2, features, number=number + 3)
        for name, value in (("w1_a", a1), ("w1_b", b1), ("w2_a", a2), ("w2_b", b2)):
            weights[f"lycoris_{layer.replace('.', '_')}.hada_{name}"] = 0.5 * value
        weights[f"lycoris_{layer.replace('.', '_')}.alpha"] = torch.tensor(1.0)
        changes[f"{ours(layer)}.weight"] = (a1 @ b1) * (a2 @ b2) * 0.5**4 / 2
    pipe.load_lora_weights(save(weights, tmp_path / "loha.safetensors"))
    check_merged(pipe, changes)


@pytest.mark.parametrize("whole", ["both", "first", "none"])
def test_a_lokr_is_applied(whole, pipe, tmp_path):
    weights, changes = {}, {}
    for number, layer in enumerate(in_blocks("self_attn.q", "ffn.0", "ffn.2")):
        out, features = pipe.transformer.get_submodule(ours(layer)).weight.shape
        sizes = ((4, 2), (out // 4, features // 2))
        parts = []
        for n, (rows, columns) in enumerate(sizes, 1):
            key = f"lycoris_{layer.replace('.', '_')}.lokr_w{n}"
            if whole == "both" or (whole == "first" and n == 1):
                weights[key] = draw(rows, columns, number=number + n) / 2
                parts.append(weights[key])
            else:
                weights[f"{key}_a"] = draw(rows, 2, number=number + n) / 2
                weights[f"{key}_b"] = draw(2, columns, number=number + n + 9) / 2
                parts.append(weights[f"{key}_a"] @ weights[f"{key}_b"])
        weights[f"lycoris_{layer.replace('.', '_')}.alpha"] = torch.tensor(3.0)
        # As LyCORIS has it: α counts where something is cut into factors of a rank.
        scale = 1.0 if whole == "both" else 3.0 / 2
        changes[f"{ours(layer)}.weight"] = torch.kron(*parts) * scale
    pipe.load_lora_weights(save(weights, tmp_path / "lokr.safetensors"))
    check_merged(pipe, changes)


@pytest.mark.parametrize("naming", ["dora_scale", "peft"])
def test_a_dora_is_applied(naming, pipe, tmp_path):
    layers = in_blocks("self_attn.q", "ffn.0")
    factors = draw_factors(pipe.transformer, layers)
    weights, changes = LAYOUTS["ComfyUI"](factors, 2.0), {}
    for number, layer in enumerate(layers):
        a, b = factors[layer]
        weight = pipe.transformer.get_submodule(ours(layer)).weight.detach()
        magnitude = draw(len(weight), 1, number=number).abs() + 0.5
        key, value = f"diffusion_model.{layer}.dora_scale", magnitude
        if naming == "peft":
            key, value = f"diffusion_model.{layer}.lora_magnitude_vector", magnitude[:, 0]
        weights[key] = value
        moved = weight + b @ a * 2 / RANK
        new = magnitude * moved / moved.norm(dim=1, keepdim=True)
        changes[f"{ours(layer)}.weight"] = new - weight
    pipe.load_lora_weights(save(weights, tmp_path / "dora.safetensors"))
    check_merged(pipe, changes)


def test_the_strength_of_a_dora_weighs_all_of_it(pipe):
    """As in ComfyUI; in peft (0.21.2) rows have their new lengths at any strength, also at 0."""
    layer = "blocks.0.self_attn.q"
    factors = draw_factors(pipe.transformer, (layer,))
    a, b = factors[layer]
    weight = pipe.transformer.get_submodule(ours(layer)).weight.detach()
    magnitude = draw(len(weight), 1).abs() + 0.5
    weights = LAYOUTS["ComfyUI"](factors, 2.0) | {f"diffusion_model.{layer}.dora_scale": magnitude}
    moved = weight + b @ a * 2 / RANK
    change = magnitude * moved / moved.norm(dim=1, keepdim=True) - weight
    plain = output(tiny_ultragen())
    pipe.load_lora_weights(weights, "dora")
    for strength in (0.5, -2.0, 1.0):
        pipe.set_adapters("dora", strength)
        check_merged(pipe, {f"{ours(layer)}.weight": strength * change})
        pipe.fuse_lora()
        check_merged(pipe, {f"{ours(layer)}.weight": strength * change})
        pipe.unfuse_lora()
        check_merged(pipe, {f"{ours(layer)}.weight": strength * change})
        pipe.disable_lora()
        torch.testing.assert_close(output(pipe.transformer), plain)
        pipe.enable_lora()
    pipe.set_adapters("dora", 0.0)
    torch.testing.assert_close(output(pipe.transformer), plain)


@pytest.mark.parametrize("safe", [True, False])
def test_two_doras_of_a_layer_are_merged_and_taken_out_again(safe, pipe):
    layer = "blocks.0.self_attn.q"
    rows = len(pipe.transformer.get_submodule(ours(layer)).weight)
    plain = output(pipe.transformer)
    for number, name in enumerate(("one", "two")):
        weights = LAYOUTS["ComfyUI"](draw_factors(pipe.transformer, (layer,)), 2.0)
        magnitude = draw(rows, 1, number=number).abs() + 0.5
        pipe.load_lora_weights(weights | {f"diffusion_model.{layer}.dora_scale": magnitude}, name)
    pipe.set_adapters(["one", "two"], [0.5, -0.4])
    together = output(pipe.transformer)
    assert (together - plain).abs().max() > 1e-2
    pipe.fuse_lora(safe_fusing=safe)
    torch.testing.assert_close(output(pipe.transformer), together)
    pipe.unfuse_lora()
    torch.testing.assert_close(output(pipe.transformer), together)
    pipe.disable_lora()
    torch.testing.assert_close(output(pipe.transformer), plain)


def test_loras_of_different_methods_go_together(pipe):
    factors = draw_factors(pipe.transformer, ("blocks.0.self_attn.q",))
    w1, w2 = draw(4, 4) / 4, draw(6, 6) / 4
    key = "lycoris_blocks_0_self_attn_q.lokr_w"
    pipe.load_lora_weights(LAYOUTS["musubi"](factors, None), "lora")
    pipe.load_lora_weights({f"{key}1": w1, f"{key}2": w2}, "lokr")
    pipe.set_adapters(["lora", "lokr"], [1.0, -0.5])
    [(name, change)] = products(factors, 1.0).items()
    check_merged(pipe, {name: change - 0.5 * torch.kron(w1, w2)})


# Refusals


LORA = LAYOUTS["ComfyUI"]


def refused(pipe: Pipe, weights, says: str, kind: type[Exception] = ValueError) -> str:
    before = {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
    with pytest.raises(kind, match=says) as error:
        pipe.load_lora_weights(weights)
    after = pipe.transformer.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert not getattr(pipe.transformer, "peft_config", None)
    message = str(error.value)
    assert "\n" not in message
    return message


def named(*keys: str, width: int = 24, rank: int = 2) -> dict[str, Tensor]:
    return {
        f"{key}.lora_{side}.weight": torch.ones(shape)
        for key in keys
        for side, shape in (("down", (rank, width)), ("up", (width, rank)))
    }


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (named("lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn1_to_q"),
         "2 of 2 keys fit no layer .* like Stable Diffusion XL"),
        (named("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"),
         r"like Stable Diffusion\."),
        (named("lora_te2_text_model_encoder_layers_0_mlp_fc1"), "like Stable Diffusion XL"),
        (named("lora_unet_double_blocks_0_img_attn_qkv"), "like Flux or HunyuanVideo"),
        (named("transformer.transformer_blocks.0.attn.to_q"), "another transformer of diffusers"),
        (named("diffusion_model.blocks.0.self_attn.q", "diffusion_model.blocks.39.self_attn.q",
               width=5120), r"2 of 4 keys .*blocks\.39.* like Wan 14B"),
        (named("diffusion_model.blocks.0.self_attn.q", width=5120),
         r"5120 × 5120, and the layer 24 × 24: .* \(Wan 14B\)"),
        (named("lora_unet_blocks_0_self_attn_o", width=3072), r"\(Wan 2\.2 5B\)"),
        (named("diffusion_model.blocks.0.cross_attn.k", "diffusion_model.blocks.0.cross_attn.k_img",
               width=5120), r"like image-to-video Wan \(Wan 14B\)"),
        (named("transformer.blocks.0.attn2.to_k", "transformer.blocks.0.attn2.add_k_proj"),
         r"like image-to-video Wan\."),
        (named("vace_blocks.0.self_attn.q"), "like VACE"),
        (named("lora_unet_vace_blocks_0_self_attn_q"), "like VACE"),
        (named("diffusion_model.blocks.0.self_attn.q",
               "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"),
         "two models in one file: this one, and Stable Diffusion"),
        (named("diffusion_model.blocks.0.self_attn.q", "blocks.0.self_attn.q"),
         "holds the down of blocks.0.attn1.to_q twice"),
        (named("blocks.0.self_attn.z", "blocks.0.self_attn.q"),
         r"2 of 4 keys fit no layer .*blocks\.0\.self_attn\.z"),
        ({"blocks.0.self_attn.q.weight": torch.ones(24, 24)}, "perhaps a whole model"),
        ({"blocks.0.self_attn.q_lora_1.lora_A.weight": torch.ones(2, 24)}, "UltraGen's own"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_as_what_it_looks_like(weights, says, pipe):
    refused(pipe, weights, says)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"blocks.0.ffn.0.a1.weight": torch.ones(2, 24)}, "holds GLoRA, .* take a LoRA"),
        ({"lora_unet_blocks_0_self_attn_q.oft_blocks": torch.ones(2, 4, 4)}, "holds OFT"),
        ({"lycoris_blocks_0_ffn_0.on_input": torch.ones(1)}, r"\(IA\)³"),
        ({"lycoris_blocks_0_ffn_0.lokr_t2": torch.ones(1)}, "three factors"),
        (named("blocks.0.ffn.0") | {"blocks.0.ffn.0.lora_A.weight": torch.ones(2, 24)}, "twice"),
        ({"blocks.0.ffn.0.lora_A.weight": torch.ones(2, 24)}, "no up factor: the file is incomp"),
        ({"blocks.0.ffn.0.hada_w1_a": torch.ones(2, 24)}, "has no hada_w1_b, hada_w2_a"),
        ({"blocks.0.ffn.0.lokr_w1": torch.ones(2, 2)}, "has no lokr_w2_a"),
        ({"blocks.0.ffn.0.alpha": torch.tensor(1.0)}, "has alpha alone"),
        ({"blocks.0.norm3.diff": torch.ones(23)}, "weight difference of blocks.0.norm2 is 23"),
        ({"blocks.0.norm3.diff": torch.ones(24)}, "norms or tables alone"),
        ({"blocks.0.norm3.lora_A.weight": torch.ones(1, 24)}, "no place for a down"),
        ({"blocks.0.self_attn.q.diff": torch.ones(48, 48)}, "48 × 48, .* another width"),
        ({"blocks.0.self_attn.q.diff_b": torch.full((24,), torch.nan)}, "not finite"),
        (named("blocks.0.self_attn.q") | {"blocks.0.self_attn.q.dora_scale": torch.ones(1, 24)},
         "length for each of the 24 rows"),
        (named("blocks.0.self_attn.q", "blocks.0.self_attn.k")
         | {"blocks.0.self_attn.q.dora_scale": torch.ones(24, 1)}, "in some layers only"),
        ({}, "holds no state dictionary"),
    ],
)  # fmt: skip
def test_what_is_no_sum_or_incomplete_is_refused(weights, says, pipe):
    refused(pipe, weights, says)


def test_a_lora_for_other_branches_widths_names_both(pipe):
    says = refused(pipe, named("blocks.0.self_attn.q", width=36), "36 × 36, and the layer 24 × 24")
    assert "another width" in says


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "several", "none", "missing"])
def test_damaged_files(damage, pipe, tmp_path):
    path = save(named("blocks.0.self_attn.q"), tmp_path / "style.safetensors")
    content = path.read_bytes()
    says, given = {
        "empty": ("is empty", path),
        "cut": ("incomplete or damaged", path),
        "text": ("web page or a message", path),
        "several": (r"several LoRAs \(other.safetensors, style.safetensors\): name one", tmp_path),
        "none": ("holds no LoRA: it has no files", tmp_path / "folder"),
        "missing": ("There is no LoRA", tmp_path / "other.safetensors"),
    }[damage]
    if damage == "several":
        (tmp_path / "other.safetensors").write_bytes(content)
    (tmp_path / "folder").mkdir()
    cut = {"empty": b"", "cut": content[:-10], "text": b"<html>no</html>" * 9}
    path.write_bytes(cut.get(damage, content))
    refused(pipe, given, says, ValueError if damage == "several" else OSError)


def test_one_of_several_files_is_named(pipe, tmp_path):
    for name in ("one", "other"):
        save(named("blocks.0.self_attn.q"), tmp_path / f"{name}.safetensors")
    pipe.load_lora_weights(tmp_path, weight_name="one.safetensors")
    with pytest.raises(FileNotFoundError, match=r"has no two\.safetensors: it holds one"):
        pipe.load_lora_weights(tmp_path, weight_name="two.safetensors")


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), 1e9, -11, "1", True])
def test_strengths_that_mean_nothing_are_refused(strength, pipe):
    pipe.load_lora_weights(named("blocks.0.self_attn.q"), "style")
    for set_strength in (
        lambda: pipe.set_adapters("style", strength),
        lambda: pipe.set_adapters(["style"], [strength]),
        lambda: pipe.fuse_lora(lora_scale=strength),
    ):
        with pytest.raises(ValueError, match="from -10 to 10, not"):
            set_strength()


def test_an_adapters_name_has_no_dots(pipe):
    with pytest.raises(ValueError, match="leave out the dots"):
        pipe.load_lora_weights(named("blocks.0.self_attn.q"), "v1.0")


def test_options_that_are_misspelt_are_named(pipe):
    with pytest.raises(TypeError, match="has no adaptor_name"):
        pipe.load_lora_weights(named("blocks.0.self_attn.q"), adaptor_name="style")
    pipe.load_lora_weights(named("blocks.0.self_attn.q"), use_safetensors=True)  # diffusers' own


def test_a_lora_goes_before_layerwise_casting(pipe):
    pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    with pytest.raises(ValueError, match="load the LoRA first, then cast"):
        pipe.load_lora_weights(named("blocks.0.self_attn.q"))


def test_differences_go_before_weights_are_offloaded_one_by_one(pipe):
    weights, _ = norm_lora(pipe.transformer)
    pipe.transformer.to("meta")
    with pytest.raises(ValueError, match=r"before enable_sequential_cpu_offload\(\)"):
        pipe.load_lora_weights(weights)


# Adapters and the branches' own updates


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, "pipeline") for name in ("lora", "a", "global", "lora_A", "weight")),
        ("lora", "transformer"),
    ],
)
def test_no_adapters_name_touches_the_branches(name, way, pipe):
    before = {k: v.clone() for k, v in pipe.transformer.state_dict().items() if ".branches." in k}
    assert any(value.abs().max() > 0 for key, value in before.items() if "lora_q.lora_B" in key)
    first = named("blocks.0.self_attn.q", "blocks.1.self_attn.q")
    pipe.load_lora_weights(first, f"{name}2")  # a name that holds the other
    pipe.load_lora_weights(first, name)
    other = pipe.transformer.blocks[0].attn1.to_q.lora_B[f"{name}2"].weight.clone()
    factors = draw_factors(pipe.transformer, ("blocks.0.self_attn.q",))
    changes = products(factors, 1.0)  # now: of tensors with a larger rank, peft swaps the contents
    if way == "pipeline":
        pipe.load_lora_weights(LORA(factors, None), name, hotswap=True)
    else:
        weights = LAYOUTS["diffusers"](factors, None)
        pipe.transformer.load_lora_adapter(weights, adapter_name=name, hotswap=True)
    after = pipe.transformer.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert torch.equal(pipe.transformer.blocks[0].attn1.to_q.lora_B[f"{name}2"].weight, other)
    pipe.set_adapters(name)
    check_merged(pipe, changes)
    pipe.unload_lora_weights()
    assert torch.equal(output(pipe.transformer), output(tiny_ultragen()))


def test_released_keys_come_from_the_queries(tmp_path):
    """There `to_k` does nothing in the global branch and `to_q` acts twice, as merging would."""
    config = {"branches": ("global",), "global_keys_from": "query", "gate_init": 0.5}
    plain = tiny_ultragen(**config)
    pipe, factors = Pipe(tiny_ultragen(**config)), draw_factors(plain, in_blocks("self_attn.q"))
    pipe.load_lora_weights(LORA(factors, None))
    check_merged(pipe, products(factors, 1.0), plain)
    keys = Pipe(tiny_ultragen(**config))
    keys.load_lora_weights(LORA(draw_factors(plain, in_blocks("self_attn.k")), None))
    with torch.no_grad():
        for model in (plain, keys.transformer):
            for block in model.blocks:  # the global branch alone
                block.attn1.branches["global"].gate.projection[-1].bias.fill_(-1e3)
                block.attn1.branches["global"].gate.projection[-1].weight.zero_()
    torch.testing.assert_close(output(keys.transformer), output(plain))


# What can't be done with adapters


@pytest.mark.parametrize("state", ["loaded", "merged", "deleted"])
def test_a_pipeline_with_adapters_is_not_saved(state, changeable, tmp_path):
    changeable.load_lora_weights(named("blocks.0.self_attn.q", width=64), "style")
    if state == "merged":
        changeable.fuse_lora()
    elif state == "deleted":
        changeable.delete_adapters("style")
    folder = tmp_path / "saved"
    for saved in (changeable, changeable.transformer):
        with pytest.raises(ValueError, match=r"take them off .* pipe\.unload_lora_weights\(\)"):
            saved.save_pretrained(folder)
        assert not folder.exists()
    changeable.unload_lora_weights()
    changeable.save_pretrained(folder)
    found = UltraGenPipeline.from_pretrained(folder).transformer.state_dict()
    expected = changeable.transformer.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_single_files_are_refused_with_what_loads_them(tmp_path):
    for options in ({}, {"low_cpu_mem_usage": False}):
        with pytest.raises(ValueError, match=r"from_wan\(ultragen=FILE\)"):
            type(tiny_ultragen()).from_single_file(tmp_path / "file.safetensors", **options)


def test_a_pytorch_file_is_read_without_running_code(pipe, tmp_path):
    factors = draw_factors(pipe.transformer, EVERYTHING)
    torch.save(LORA(factors, None), tmp_path / "style.pt")
    pipe.load_lora_weights(tmp_path / "style.pt")
    check_merged(pipe, products(factors, 1.0))
    torch.save({"lora": FlowMatchEulerDiscreteScheduler()}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="could run code"):
        pipe.load_lora_weights(tmp_path / "code.pt")


def test_a_file_without_tensors(pipe, tmp_path):
    save_file({}, tmp_path / "none.safetensors")
    refused(pipe, tmp_path / "none.safetensors", "holds no state dictionary")
