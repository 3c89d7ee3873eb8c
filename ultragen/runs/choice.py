"""Which model runs: what was asked for, or what this machine can run, and why."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten

from ..estimates.coefficients import coefficients
from ..estimates.cost import Job, estimate
from ..estimates.memory import WAN_PARAMETERS, Memory
from ..hardware import AUTO_MEMORY, Hardware, find_hardware, gib
from ..model import wan_1_3b
from ..model.windows import auto_windows
from ..presets import (
    EMBEDDED,
    EMBEDDED_MODEL,
    RESOLUTIONS,
    T3_4K,
    TEXT_ENCODER_VARIABLE,
    ULTRAGEN_SOURCE,
    WAN,
    WAN_SOURCE,
    ModelPreset,
)
from ..weights.distilled import read_distilled
from ..weights.folders import first_weights, read_index, weight_bytes
from ..weights.hub import base_source, find_local, named, text_encoder_file
from ..weights.layouts import asked_layout, layout_of, weights_source
from .loras import asked_for, on_this_machine

SMALL_WEIGHTS = 2 * 10**9  # bytes of what a CPU can run in bearable time
FP8_SHARE = 60  # percent of the text encoder's bytes that ComfyUI's file in FP8 has
REASON = 500  # characters that a page shows of what is wrong with files
NEEDS_GPU = (
    "The 1.3B model needs its weights and a CUDA GPU with 24 GB or more that computes bfloat16; "
    "ULTRAGEN_MODEL=wan downloads what is missing."
)
NEEDS_NOTHING = "The embedded model needs no GPU and no download: ULTRAGEN_MODEL=embedded."


@dataclass(frozen=True)
class Choice:
    """A model, and why it is that one.

    Attributes:
        name: `embedded`, `wan` or the folder of another one.
        preset: Settings that suit it.
        why: A sentence for people.
        other: What the other model needs.
    """

    name: str
    preset: ModelPreset
    why: str
    other: str

    @property
    def folder(self) -> Path:
        """Where the pipeline lies, for all but `wan`."""
        return EMBEDDED_MODEL if self.name == "embedded" else Path(self.name)


def choose(name: str | Path | None = None, loras: Sequence[str] | None = None) -> Choice:
    """Settles which model runs, and which LoRAs may be asked for; downloads nothing.

    Args:
        name: `auto`, `embedded`, `wan` or a folder; None reads the environment variable
            ULTRAGEN_MODEL, and without it is `auto`. `auto` takes the 1.3B model where its weights
            and a GPU that can hold it are here, and never starts a download.
        loras: `FILE_OR_REPOSITORY[:STRENGTH]` each; None takes those of this machine.

    Raises:
        ValueError: if the name is unknown, or if this machine can't run the model; or if a LoRA's
            strength can't be used.
        OSError: if a folder is no model.
    """
    choice = _choose(str(os.environ.get("ULTRAGEN_MODEL") or "auto" if name is None else name))
    there = on_this_machine() if loras is None else asked_for(loras)
    if there:
        choice = replace(choice, preset=replace(choice.preset, loras=there))
    return with_own_settings(choice)


def with_own_settings(choice: Choice) -> Choice:
    """The choice with the settings that its weights bring, as far as they are on this machine:
    distilled ones have their steps, and guidance in them. A base model that is not distilled keeps
    what the preset has."""
    weights = _local()[1] if choice.name == "wan" else choice.folder
    distilled = read_distilled(weights) if weights else None
    if distilled is None:
        return choice
    steps, preset = distilled.steps, choice.preset
    ladder = dict.fromkeys((size, frames, steps) for size, frames, _ in preset.ladder)
    if not distilled.with_base and preset.base_num_inference_steps is None:  # of the first reading
        preset = replace(
            preset,
            base_num_inference_steps=preset.num_inference_steps,
            base_guidance_scale=preset.guidance_scale,
        )
    preset = replace(
        preset,
        num_inference_steps=steps,
        guidance_scale=1.0,
        ladder=tuple(ladder),
        shift=distilled.shift or preset.shift,
    )
    return replace(choice, preset=preset)


def weights_are_here(choice: Choice) -> bool:
    """Whether the weights are on this machine, so that it is known what settings they bring."""
    return choice.name != "wan" or _local()[1] is not None


def with_fetched_weights(choice: Choice) -> Choice:
    """What `with_own_settings` gives, of weights that are downloaded where they are not here yet.

    Raises:
        OSError: as `locate_wan`.
        ValueError: likewise.
    """
    if not weights_are_here(choice):
        from ..weights.wan import locate_wan  # takes seconds, and most often all is here

        locate_wan(text_encoder=text_encoder_file())
    return with_own_settings(choice)


def _choose(asked: str) -> Choice:
    if asked == "auto":
        return _choose_for_machine()
    if asked == "embedded":
        return Choice(asked, EMBEDDED, "It was asked for, and needs no download.", NEEDS_GPU)
    if asked == "wan":
        return _choose_wan()
    return _choose_folder(Path(asked).expanduser())


def _choose_wan() -> Choice:
    base, ultragen = _local()
    on_space = bool(os.environ.get("SPACE_ID"))
    if not _small(base, ultragen):
        hardware = find_hardware()
        # A duplicated Space has the variables of the original and a CPU, and has to come up.
        if on_space and (reason := why_not(hardware)):
            return _embedded(reason)
        check_can_run(hardware)
    # Authors may replace what a Space fetches when it is built. What lacks of the base model is no
    # reason: the download completes it.
    if on_space and (reason := _wrong(base, ultragen, completed=True)):
        return _embedded(reason)
    why = "It was asked for by ULTRAGEN_MODEL=wan."
    return Choice("wan", _preset(ultragen), why, NEEDS_NOTHING)


def _preset(ultragen: Path | None) -> ModelPreset:
    """The settings that suit the 1.3B weights; what they are called tells it before they are
    here."""
    given = ultragen or named(None, weights_source())
    return WAN if layout_of(given, asked_layout()) is None else T3_4K


def _embedded(reason: str) -> Choice:
    why = f"It is shipped with the code and needs no download. {reason}"
    return Choice("embedded", EMBEDDED, why, NEEDS_GPU)


def _choose_for_machine() -> Choice:
    if reason := _incomplete():
        return _embedded(reason)
    hardware = find_hardware()
    if not _small(*_local()) and (reason := why_not(hardware) or _tight(hardware)):
        return _embedded(reason)
    why = f"Its weights are here, and {hardware.name} can run it."
    return Choice("wan", _preset(_local()[1]), why, NEEDS_NOTHING)


def _tight(hardware: Hardware) -> str:
    """Why a GPU that can run the 1.3B model is not asked to unless someone wants it."""
    if hardware.memory >= AUTO_MEMORY:
        return ""
    return (
        f"{hardware.name} has only {gib(hardware.memory)} free for the 1.3B model: "
        "ULTRAGEN_MODEL=wan tries it."
    )


def _local() -> list[Path | None]:
    """The base model and the released weights, as far as they are on this machine."""
    sources = base_source(text_encoder_file()), weights_source()
    return [find_local(None, source) for source in sources]


def _incomplete() -> str:
    """What of the 1.3B model is missing on this machine, or wrong; empty if nothing is."""
    try:
        found = _local()
    except OSError as error:  # of a text encoder that is named and not there
        return str(error)
    absent = [
        source.name + (f" ({place})" if (place := os.environ.get(source.variable)) else "")
        for source, path in zip((WAN_SOURCE, weights_source()), found, strict=True)
        if path is None
    ]
    if absent:
        return f"Not on this machine: {' and '.join(absent)}."
    base, ultragen = found
    return _wrong(base, ultragen)


def _wrong(base: Path | None, ultragen: Path | None, completed: bool = False) -> str:
    """Why files that are here are not the 1.3B model's, or not whole; empty if nothing is wrong, or
    if files of the base model are missing that will be there. Of weights names and shapes are read.
    """
    if base is None and ultragen is None:
        return ""
    from ..weights.wan import check_wan  # takes seconds, and often nothing is here

    try:
        check_wan(None, ultragen)
        try:
            check_wan(base, ultragen, text_encoder_file())
        except FileNotFoundError:
            if not completed:
                raise
    except (OSError, ValueError) as error:
        return shorten(str(error), REASON, placeholder=" …")  # it may list a model's keys
    return ""


def _small(*paths: Path | None) -> bool:
    """Whether weights are so few that any machine runs them."""
    sizes = [weight_bytes(path) for path in paths if path is not None]
    return len(sizes) == len(paths) and sum(sizes) < SMALL_WEIGHTS


def check_can_run(hardware: Hardware) -> None:
    """Checks that a machine can run the 1.3B model, before anything is downloaded or read.

    Raises:
        ValueError: if it can't, with the reason and the way out.
    """
    if reason := why_not(hardware):
        raise ValueError(
            f"{reason} Take a GPU with 24 GB or more (Ampere or newer), or the embedded model, "
            "ULTRAGEN_MODEL=embedded."
        )


def why_not(hardware: Hardware) -> str:
    """Why a machine can't run the 1.3B model; empty if it can."""
    if hardware.device == "cpu":
        return (
            "The 1.3B model needs a CUDA GPU: on a CPU, denoising one clip would take about "
            f"{cpu_days():.0f} days."
        )
    width = hardware.bytes_per_value
    weights = WAN_PARAMETERS.scaled(width)
    if text_encoder := text_encoder_file():  # stays as it is in the file
        weights = replace(weights, text_encoder=text_encoder.stat().st_size)
    memory = Memory(hardware.memory, weights, width)
    if memory.smallest <= memory.free:
        return ""
    smaller = replace(weights, text_encoder=FP8_SHARE * weights.text_encoder // 100)
    fits = not text_encoder and replace(memory, weights=smaller).smallest <= memory.free
    way_out = f" It fits with umT5 in FP8 or GGUF, see {TEXT_ENCODER_VARIABLE}." if fits else ""
    wide = "" if hardware.bfloat16 else ", which computes no bfloat16 and so would need float32"
    return (
        f"The 1.3B model does not fit {hardware.name}{wide}: it takes {gib(memory.smallest)} of "
        f"memory at least, and {gib(memory.free)} are free.{way_out}"
    )


def cpu_days() -> float:
    """Days in which a CPU would denoise the 1.3B model's own clip."""
    size = RESOLUTIONS[WAN.resolution]
    grid = (size.height // WAN.pixels_per_token, size.width // WAN.pixels_per_token)
    job = Job(
        height=size.height,
        width=size.width,
        base_height=WAN.base_height,
        base_width=WAN.base_width,
        num_frames=WAN.num_frames,
        windows=auto_windows(*grid, wan_1_3b.RELEASED["window_size"]),
        steps=WAN.num_inference_steps,
        passes=2,
        upscaler="lanczos",
        base_native="off",
        pixels_per_token=WAN.pixels_per_token,
        full_share=len(wan_1_3b.FULL_ATTENTION_LAYERS) / wan_1_3b.TRANSFORMER["num_layers"],
    )
    return estimate(job, coefficients("wan", "cpu"))["denoise"] / 86_400


def _choose_folder(path: Path) -> Choice:
    if path.is_file():
        raise ValueError(
            f"{path} is a file: for the released UltraGen weights set "
            f"{ULTRAGEN_SOURCE.variable}={path} and ULTRAGEN_MODEL=wan."
        )
    if not path.is_dir():
        raise ValueError(
            f"There is no model '{path}': choose auto, embedded, wan, or an existing folder."
        )
    if not (path / "model_index.json").is_file() and (weights := first_weights(path)):
        raise ValueError(
            f"{path} holds weights ({weights}), but no pipeline, which has a model_index.json: for "
            f"UltraGen weights set {ULTRAGEN_SOURCE.variable}={path} and ULTRAGEN_MODEL=wan."
        )
    index = read_index(path)
    if index.get("_class_name") == "WanPipeline":
        raise ValueError(
            f"{path} is the base model alone: set {WAN_SOURCE.variable}={path} and "
            "ULTRAGEN_MODEL=wan."
        )
    wan = "AutoencoderKLWan" in (index.get("vae") or ())
    if wan and not _small(path):
        check_can_run(find_hardware())
    why = f"It was chosen by ULTRAGEN_MODEL={path}."
    if not wan:
        return Choice(str(path), EMBEDDED, why, NEEDS_GPU)
    preset = WAN if layout_of(path) is None else T3_4K
    return Choice(str(path), preset, why, NEEDS_NOTHING)
