"""How a pipeline is loaded: a saved one, and the published 1.3B files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch

from ..model.adapters import check_unadapted
from .folders import read_index
from .headers import check_pipeline
from .lora_loading import LoraLoading
from .model_card import write_model_card
from .wan import load_wan

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


class PipelineLoading(LoraLoading):
    """Loading as in diffusers, but nothing that is incomplete."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Loads a saved pipeline as diffusers does, which alone would fill gaps in a folder's
        weights with noise and go on. For the published files see `from_wan`.

        Args:
            pretrained_model_name_or_path: A folder, or a repository on the Hub.
            options: What diffusers' `DiffusionPipeline.from_pretrained` takes.

        Raises:
            OSError: if a file of a folder is missing, truncated or corrupt.
            ValueError: listing the weights that are missing, unexpected or misshapen there; or if
                it is Wan's own folder.
        """
        folder = Path(pretrained_model_name_or_path)
        saved = (folder / "model_index.json").is_file()
        asked = {name: options[name] for name in HUB_OPTIONS if name in options}
        index = read_index(folder) if saved else cls.load_config(folder.as_posix(), **asked)
        if index.get("_class_name") == "WanPipeline" and "scheduler" not in options:
            raise ValueError(
                "This is the base model with its own scheduler, which UltraGen's weights are not "
                "sampled with: load it by UltraGenPipeline.from_wan, or pass `scheduler=`."
            )
        if saved:
            check_pipeline(folder, options)
        return super().from_pretrained(pretrained_model_name_or_path, **options)

    @classmethod
    def from_wan(
        cls,
        base: str | Path | None = None,
        ultragen: str | Path | None = None,
        dtype: torch.dtype = torch.bfloat16,
        local_files_only: bool = False,
        text_encoder: str | Path | None = None,
        layout: str | None = None,
    ) -> Self:
        """The 1.3B pipeline of Wan's parts and the released UltraGen weights, or T3-Video's, on the
        CPU.

        Args:
            base: Wan2.1-T2V-1.3B in diffusers' layout: a folder, or a repository on the Hub as
                `owner/name` or `owner/name@revision`. None reads the environment variable
                ULTRAGEN_WAN, and without it is `presets.WAN_SOURCE`.
            ultragen: The authors' file, or a folder with it or with a converted transformer, or a
                repository. None reads ULTRAGEN_WEIGHTS, and without it is
                `presets.ULTRAGEN_SOURCE`. Of T3-Video the same, see `presets.T3_SOURCE`.
            dtype: Type of the weights of all parts.
            local_files_only: Take only what is on this machine, as with HF_HUB_OFFLINE=1.
            text_encoder: A file of umT5-XXL's encoder, in FP8 as ComfyUI has it or in GGUF, in
                place of the base model's. It stays quantised, and each layer's matrix is made when
                the layer runs. None reads ULTRAGEN_TEXT_ENCODER, and without it takes the base
                model's own.
            layout: `t3` for T3-Video's weights in a file whose name does not say so. None reads
                ULTRAGEN_LAYOUT.

        Raises:
            OSError: if a file can't be had, is incomplete or damaged.
            ValueError: if a file is of another model, or the two don't fit each other.
        """
        return cls(**load_wan(base, ultragen, dtype, local_files_only, text_encoder, layout))

    def save_pretrained(self, save_directory: str | Path, *arguments: Any, **options: Any) -> None:
        """Saves the pipeline as diffusers does, with a page that says how it is loaded.

        Raises:
            ValueError: if LoRA adapters are loaded, or merged and not taken off; nothing is
                written then.
        """
        for name in ("transformer", "base_transformer"):
            if (part := getattr(self, name, None)) is not None:
                check_unadapted(part, f"The pipeline's {name}")
        super().save_pretrained(save_directory, *arguments, **options)
        write_model_card(Path(save_directory))
