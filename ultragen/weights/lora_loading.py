"""LoRAs in a pipeline: loaded from any tool's file, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import WanLoraLoaderMixin
from torch import Tensor, nn

from ..model.adapters import (
    Strengths,
    adapter_strengths,
    others_stay,
    set_adapter_strengths,
    strengths_by_layer,
    swapped,
)
from ..model.dora import weigh_whole_doras
from ..model.fp8 import is_in_float8
from ..model.transformer import UltraGenTransformer3DModel
from ..presets import check_lora_strength
from .lora_differences import ParameterDifferences
from .lora_files import LoraFile, read_lora
from .lora_keys import sort_by_layer, told_width
from .lora_layers import Lora, build_lora, state_dict
from .read import read_weights

_CAST = (torch.float8_e4m3fn, torch.float8_e5m2)
_OPTIONS = {
    *("subfolder", "revision", "token", "cache_dir", "local_files_only", "force_download"),
    "use_safetensors",  # of diffusers; here the file itself tells
}


def fit_lora(file: LoraFile, transformer: nn.Module) -> Lora:
    """What a LoRA's file adds to which part of a model.

    Raises:
        ValueError: if a key finds no layer, or a tensor does not fit; with what the file looks
            like.
    """
    layers = sort_by_layer(file.weights, transformer, file.where)
    try:
        return build_lora(layers, transformer, file.scales(layers))
    except ValueError as error:
        raise ValueError(f"{file.where} does not fit this model: {error}") from error


def check_fits(path: Path, transformer: Any) -> None:
    """Checks by names and by the model's width whether a LoRA is for a model; reads no values.

    Raises:
        OSError: if the file is missing, incomplete or damaged.
        ValueError: if it is for another model, with what it looks like.
    """
    weights = read_weights(path, "meta")
    sort_by_layer(weights, transformer, str(path))
    config = transformer.config
    found, own = told_width(weights), config.num_attention_heads * config.attention_head_dim
    if found not in (None, own):
        raise ValueError(f"{path} is for a model with {found} features, and this one has {own}.")


class LoraLoading(DiffusionPipeline, WanLoraLoaderMixin):
    """What diffusers offers for LoRAs, with all namings and methods that can be read exactly."""

    _unfused: Strengths | None = None
    """The strengths that adapters had before they were merged; None while none is."""

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = True,
        weight_name: str | None = None,
        **options: Any,
    ) -> None:
        """Loads a LoRA, LoHa, LoKr or DoRA of Wan, or a difference of two models, in the naming of
        diffusers, ComfyUI, DiffSynth, peft, or musubi and kohya: all of it, or nothing.

        Args:
            pretrained_model_name_or_path_or_dict: A file; a folder that holds one; a repository on
                the Hub, `owner/name` or `owner/name/FILE`, either with `@revision`; or the tensors
                by name, which stay as they are.
            adapter_name: What `set_adapters` and others call it; None counts them.
            hotswap: Whether it takes the place of the adapter of this name, at its strength.
            low_cpu_mem_usage: Whether new layers are made without memory first.
            weight_name: Which file of a folder or a repository.
            options: `subfolder`, `revision`, `token`, `cache_dir`, `local_files_only`,
                `force_download`.

        Raises:
            OSError: if the file can't be had, is incomplete or damaged.
            ValueError: if a key fits no layer, a tensor is of another size or not finite, or the
                method is another one; with what the file looks like. Nothing is loaded then.
        """
        if unknown := sorted(set(options) - _OPTIONS):
            raise TypeError(f"load_lora_weights has no {', '.join(unknown)}.")
        options.pop("use_safetensors", None)
        source, transformer = pretrained_model_name_or_path_or_dict, self.transformer
        name = _free_name(transformer) if adapter_name is None else _check_name(adapter_name)
        lora = fit_lora(read_lora(source, weight_name, **options), transformer)
        _check_can_carry(transformer, lora)
        # UltraGen's own transformer sees to it itself.
        dense = not isinstance(transformer, UltraGenTransformer3DModel)
        with swapped(transformer, name) if hotswap and dense else nullcontext():
            transformer.load_lora_adapter(
                state_dict(lora, transformer),
                prefix=None,
                hotswap=hotswap,
                adapter_name=name,
                low_cpu_mem_usage=low_cpu_mem_usage,
                _pipeline=self,
            )
        weigh_whole_doras(transformer)
        ParameterDifferences.set(transformer, name, lora.differences)

    def set_adapters(self, adapter_names: list[str] | str, adapter_weights: Any = None) -> None:
        """Activates these adapters and no others, each with its strength, as in diffusers.

        Args:
            adapter_names: One, or several.
            adapter_weights: The strength of all; one for each; or, for all or for each, those of
                parts, `{"transformer": {"blocks.1": 0.5}}`.

        Raises:
            ValueError: if a strength is no number, or outside `LORA_STRENGTHS`.
        """
        _check_strengths(adapter_weights)
        super().set_adapters(adapter_names, _by_layer(adapter_weights, self.transformer))

    def fuse_lora(
        self,
        components: list[str] = ["transformer"],  # noqa: B006 - diffusers' own default
        lora_scale: float = 1.0,
        **options: Any,
    ) -> None:
        """Merges adapters into the weights, as in diffusers.

        Raises:
            ValueError: if the strength is no number, or outside `LORA_STRENGTHS`, or if the weights
                are in FP8.
        """
        _check_strengths(lora_scale)
        if is_in_float8(self.transformer):
            raise ValueError(
                "The weights are in FP8, into which nothing is merged: merge LoRAs before "
                "enable_fp8, or leave them beside the weights."
            )
        strengths = adapter_strengths(self.transformer)
        super().fuse_lora(components, lora_scale, **options)
        # Of those that were merged before, what they had then.
        self._unfused = strengths | (self._unfused or {})

    def unfuse_lora(
        self,
        components: list[str] = ["transformer"],  # noqa: B006 - diffusers' own default
        **options: Any,
    ) -> None:
        """Takes merged adapters out of the weights again, to act beside them with the strengths
        that they had before.

        diffusers (0.42.1, `_fuse_lora_apply`) leaves them with the strength at which they were
        merged, and multiplies it by the next `lora_scale`.
        """
        super().unfuse_lora(components, **options)
        before, now = self._unfused or {}, adapter_strengths(self.transformer)
        set_adapter_strengths(self.transformer, {key: before.get(key, now[key]) for key in now})
        self._unfused = None

    def unload_lora_weights(self) -> None:
        """Takes all adapters off; what is merged into the weights stays in them."""
        ParameterDifferences.remove(self.transformer, keep_merged=True)
        super().unload_lora_weights()
        self._unfused = None

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Takes these adapters off, as in diffusers; which others act stays as it is."""
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name in names:
            ParameterDifferences.set(self.transformer, name, {})
        with others_stay(self.transformer, names):
            super().delete_adapters(names)


def _check_strengths(weights: Any) -> None:
    """Strengths as diffusers takes them: one, one for each adapter, or by block."""
    if isinstance(weights, list | tuple):
        for weight in weights:
            _check_strengths(weight)
    elif isinstance(weights, Mapping):
        for weight in weights.values():
            _check_strengths(weight)
    elif weights is not None:
        check_lora_strength("strength", weights)


def _by_layer(weights: Any, transformer: nn.Module) -> Any:
    """Strengths as diffusers takes them, those of a transformer's parts as those of its layers."""
    if isinstance(weights, list | tuple):
        return [_by_layer(weight, transformer) for weight in weights]
    parts = weights.get("transformer") if isinstance(weights, Mapping) else None
    if not isinstance(parts, Mapping):
        return weights
    return {**weights, "transformer": strengths_by_layer(parts, transformer)}


def _check_can_carry(transformer: nn.Module, lora: Lora) -> None:
    """Checks that a model's weights are in a state in which a LoRA can be put beside them."""
    if not lora.updates:
        raise ValueError(
            "This LoRA changes norms or tables alone, or nothing, and no layer that could carry "
            "its strength: merge it with the tool that made it."
        )
    if any(getattr(module, "fused_projections", False) for module in transformer.modules()):
        raise ValueError(
            "The transformer's projections are fused, and a LoRA of the single ones would do "
            "nothing: call transformer.unfuse_qkv_projections() first."
        )
    parameters = dict(transformer.named_parameters())
    # peft gives a LoRA the type of its layer, and nothing multiplies in float8.
    if cast := next((name for name, p in parameters.items() if p.dtype in _CAST), None):
        raise ValueError(
            f"The transformer's {cast} is kept in float8 (enable_layerwise_casting), and a LoRA "
            "that is loaded now would be too: load the LoRA first, then cast."
        )
    if is_in_float8(transformer) and any(x.magnitude is not None for x in lora.updates.values()):
        raise ValueError(
            "This LoRA is a DoRA, which reads the weights, and they are in FP8: load and merge it "
            "before enable_fp8."
        )
    if lora.differences and any(p.is_meta for p in parameters.values()):
        raise ValueError(
            "This LoRA changes norms or tables, and the weights are offloaded one by one: load it "
            "before enable_sequential_cpu_offload()."
        )


def _check_name(name: str) -> str:
    if not name or "." in name:  # it becomes a part of names
        raise ValueError(f"An adapter can't be called {name!r}: leave out the dots.")
    return name


def _free_name(transformer: Any) -> str:
    """`default_0`, or the first such name that no adapter has."""
    taken = getattr(transformer, "peft_config", {})
    return next(name for i in range(len(taken) + 1) if (name := f"default_{i}") not in taken)
