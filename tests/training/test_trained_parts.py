"""What is trained of a transformer: all, the new parts, or an adapter."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel
from tiny import inputs, tiny_ultragen

from ultragen.training.trained_parts import choose_trained
from ultragen.training.wan_options import LoraOptions

SMALL = LoraOptions(2)


def trained_names(trained: str, lora: LoraOptions = SMALL) -> tuple:
    model = tiny_ultragen(full_attention_layers=(0,))
    choose_trained(model, trained, lora, torch.bfloat16)
    return model, {name for name, p in model.named_parameters() if p.requires_grad}


def test_everything_can_be_trained():
    model, names = trained_names("all")
    assert names == {name for name, _ in model.named_parameters()}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_new_parts_are_those_that_wan_lacks():
    model, names = trained_names("new")
    dense = {name for name, _ in WanTransformer3DModel(**plain(model)).named_parameters()}
    assert names == {name for name, _ in model.named_parameters()} - dense
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16


def plain(model) -> dict:
    known = WanTransformer3DModel.__init__.__wrapped__.__code__.co_varnames
    return {key: value for key, value in model.config.items() if key in known}


def test_trained_weights_are_not_rounded_on_the_way():
    before = tiny_ultragen(full_attention_layers=(0,)).state_dict()
    for trained in ("all", "new"):
        model, names = trained_names(trained)
        after = dict(model.named_parameters())
        assert all(torch.equal(after[name], before[name]) for name in names)


def test_an_adapter_leaves_the_branches_own_updates_alone():
    """They are called `lora_A` and `lora_B` too."""
    model, names = trained_names("lora")
    layers = {name.split(".lora_")[0] for name in names}
    kinds = {layer.split(".", 2)[2] for layer in layers}
    assert kinds == {
        f"attn{i}.{part}" for i in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")
    } | {"ffn.net.0.proj", "ffn.net.2"}
    assert not any(".branches." in name for name in names)
    branches = [module for name, module in model.named_modules() if ".branches." in name]
    assert branches and not any(hasattr(module, "base_layer") for module in branches)


def test_targets_are_ends_of_names():
    _, names = trained_names("lora", LoraOptions(2, targets=("attn1.to_q", "net.2")))
    kinds = {name.split(".lora_")[0].split(".", 2)[2] for name in names}
    assert kinds == {"attn1.to_q", "ffn.net.2"}


@pytest.mark.parametrize("target", ["lora_A", "to_w", "o_q", "gate.embedding.0", ""])
def test_a_target_that_is_none_is_refused_with_those_that_are(target):
    with pytest.raises(ValueError, match=r"No linear layer is called.*attn1\.to_q.*ffn\.net\.2"):
        trained_names("lora", LoraOptions(2, targets=("to_q", target)))


def test_only_what_is_trained_gets_gradients():
    for trained in ("new", "lora"):
        model, names = trained_names(trained)
        model.float()
        model(**inputs((2, 4, 4)), return_dict=False)[0].square().mean().backward()
        moved = {name for name, p in model.named_parameters() if p.grad is not None}
        assert moved == names
