"""Loading what a comparison runs: both models and the upscaler, with errors that name the file."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cost import COEFFICIENTS, Estimator
from .presets import EMBEDDED, EMBEDDED_MODEL, ModelPreset

WAN_NOTICE = (
    "The 1.3B model can't be loaded by this version yet: choose 'embedded', or the folder of a "
    "model in UltraGen's own layout."
)


@dataclass
class Models:
    """Everything that one comparison needs, loaded once and shared.

    Attributes:
        native: The UltraGen pipeline.
        base: The dense base model's pipeline, which shares all other components with it.
        preset: Settings that suit the model.
        source: Folder that the weights came from.
        fingerprint: Hash of all weight and configuration files.
        device: Kind of device, `cpu` or `cuda`.
        estimator: Seconds that runs take here.
    """

    native: Any
    base: Any
    preset: ModelPreset
    source: Path
    fingerprint: str
    device: str = "cpu"
    estimator: Estimator = field(default_factory=lambda: Estimator(COEFFICIENTS["cpu"]))
    _upscalers: dict[str, Any] = field(default_factory=dict)

    def upscaler(self, name: str) -> Any:
        """The upscaler of this name, loaded at its first use."""
        if name not in self._upscalers:
            from .upscale import load_upscaler

            upscaler = load_upscaler(name, self.source)
            if self.device != "cpu":
                upscaler = upscaler.to(self.device, compute_dtype(self.native))
            self._upscalers[name] = upscaler
        return self._upscalers[name]

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of the prompt that the model's tokenizer does not know."""
        return self.native.unknown_words(prompt)


def compute_dtype(pipe: Any) -> Any:
    """The floating-point type that a pipeline's transformer computes in."""
    return next(pipe.transformer.parameters()).dtype


def load_models(name: str | Path | None = None) -> Models:
    """Loads the models of a comparison onto the accelerator, or the CPU where there is none.

    Args:
        name: `auto`, `embedded`, or a folder in diffusers' layout; None reads the environment
            variable ULTRAGEN_MODEL, and without it is `auto`.

    Raises:
        ValueError: for an unknown name.
        OSError: for a missing, truncated or corrupt file, naming it.
    """
    folder = model_folder(os.environ.get("ULTRAGEN_MODEL", "auto") if name is None else name)
    check_model_files(folder)
    import diffusers
    import torch
    import transformers

    from .pipeline import UltraGenPipeline

    for library in (diffusers, transformers):  # a second of loading needs no bars
        library.utils.logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    try:
        native = UltraGenPipeline.from_pretrained(folder, dtype=dtype).to(device)
        base = native.base_pipeline().to(device)
    except Exception as error:  # loaders raise many kinds, most of which don't name the model
        raise OSError(f"The model in {folder} can't be loaded: {error}") from error
    for pipe in (native, base):
        pipe.set_progress_bar_config(disable=True)
    estimator = Estimator(COEFFICIENTS[device])
    if device == "cpu":  # a GPU's coefficients are its own; finished runs correct them
        estimator.calibrate()
    return Models(native, base, EMBEDDED, folder, fingerprint(folder), device, estimator)


def model_folder(name: str | Path) -> Path:
    """The folder that a model's name stands for.

    Raises:
        ValueError: for an unknown name.
    """
    if str(name) in ("auto", "embedded"):
        return EMBEDDED_MODEL
    if str(name) == "wan":
        raise ValueError(WAN_NOTICE)
    if Path(name).is_dir():
        return Path(name)
    raise ValueError(f"There is no model '{name}': choose auto, embedded, or an existing folder.")


_WAY_OUT = " Restore it with git, or download the model again."


def check_model_files(folder: Path) -> None:
    """Checks that every file the model's indexes name is there and whole.

    Raises:
        OSError: naming the first file that is missing, truncated or corrupt.
    """
    index = _read_json(folder / "model_index.json")
    for component, kind in index.items():
        if not isinstance(kind, list) or kind[0] is None:
            continue
        if not (folder / component).is_dir():
            raise FileNotFoundError(f"The model's part {folder / component} is missing.{_WAY_OUT}")
    for path in sorted(folder.rglob("*.json")):
        content = _read_json(path)
        for shard in sorted(set(content.get("weight_map", {}).values())):
            if not (path.parent / shard).is_file():
                raise FileNotFoundError(
                    f"The weights file {path.parent / shard} is missing.{_WAY_OUT}"
                )
    for path in sorted(folder.rglob("*.safetensors")):
        _check_safetensors(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"The model's file {path} is missing.{_WAY_OUT}") from error
    except ValueError as error:
        raise OSError(f"The model's file {path} is corrupt: {error}.{_WAY_OUT}") from error
    return content if isinstance(content, dict) else {}


def _check_safetensors(path: Path) -> None:
    """Compares the length of a file with its header, which tells where each tensor ends."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start.startswith(b"version "):
            raise OSError(f"The weights file {path} is only a pointer: run 'git lfs pull'.")
        try:
            if len(start) < 8 or length > size:
                raise ValueError("no header")
            header = json.loads(file.read(length))
            end = max(
                (entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"),
                default=0,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OSError(f"The weights file {path} is corrupt.{_WAY_OUT}") from error
    if size != 8 + length + end:
        raise OSError(
            f"The weights file {path} is truncated: {size:,} of {8 + length + end:,} bytes."
            f"{_WAY_OUT}"
        )


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of a model's weight and configuration files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".json", ".txt"):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
