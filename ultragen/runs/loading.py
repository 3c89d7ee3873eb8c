"""Loading what a comparison runs: both models and the upscaler, with errors that name the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..estimates.coefficients import COEFFICIENTS, ZERO_GPU, coefficients
from ..estimates.estimator import Estimator
from ..estimates.memory import Memory, Placement, values_per_token, weights_of
from ..hardware import Hardware, find_hardware, has_amx, is_out_of_memory
from ..presets import EMBEDDED, EMBEDDED_MODEL, ModelPreset
from ..weights.fingerprint import fingerprint
from ..weights.hub import origin, text_encoder_file
from .choice import Choice, choose, with_own_settings
from .loras import find_files, find_fitting
from .request import Request

if TYPE_CHECKING:  # torch is imported when models are loaded
    from ..sampling.latent_colours import LatentColours
    from .fitted_colours import FittedColours


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
        choice: Why it is this model; None for one that was put together by hand.
        memory: What the GPU holds, of a model that may be too large for it; else None.
        placement: Whether all parts stay on the GPU or come to it in turn.
        origins: What the weights are called where they came from, with the commit if it is known.
        guidance_device: Where guidance's second pass runs, if not with the first.
        processes: How many compute each of the native model's clips together.
        fp8: Whether large linear layers compute in FP8.
        used_loras: Strength by name of the LoRAs that both models have now.
        lora_hashes: SHA-256 by name of their files, as they were when they were loaded.
        left_out: Why LoRAs of this machine are not offered, by name.
        colours: What previews are made with, from the model's folder; None where it has none.
        fitted: What makes them then, once there is a preview to show.
    """

    native: Any
    base: Any
    preset: ModelPreset
    source: Path
    fingerprint: str
    device: str = "cpu"
    estimator: Estimator = field(default_factory=lambda: Estimator(COEFFICIENTS["embedded"]["cpu"]))
    _upscalers: dict[str, Any] = field(default_factory=dict)
    choice: Choice | None = None
    memory: Memory | None = None
    placement: Placement = "whole"
    origins: tuple[str, ...] = ()
    guidance_device: str | None = None
    processes: int = 1
    fp8: bool = False
    used_loras: dict[str, float] = field(default_factory=dict)
    lora_hashes: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    colours: LatentColours | None = None
    fitted: FittedColours | None = None

    @property
    def dtype(self) -> str:
        """Type that the models compute in."""
        return str(getattr(self.native, "dtype", "float32")).removeprefix("torch.")

    @property
    def edition(self) -> int:
        """The edition of the procedural world that the native model belongs to."""
        return self.native.edition

    def upscaler(self, name: str) -> Any:
        """The upscaler of this name, loaded at its first use."""
        if name not in self._upscalers:
            from .upscale import load_upscaler

            own = (self.source / "upscaler").is_dir() or self.preset.name == "embedded"
            # The published models have no upscaler of their own.
            upscaler = load_upscaler(name, self.source if own else EMBEDDED_MODEL)
            upscaler = upscaler.to(self.device, self.native.transformer.dtype)
            self._upscalers[name] = upscaler
        return self._upscalers[name]

    def enable_parallel_guidance(self, device: str) -> None:
        """Lets both models run guidance's second pass on a second device.

        Raises:
            ValueError: if there is no such device, or the models don't fit the first one whole.
        """
        if self.placement == "in turn":
            raise ValueError(
                f"Guidance can't run on {device}: the models are too large for the first GPU and "
                "come to it in turn. Leave out --guidance-device."
            )
        for pipe in (self.native, self.base):
            pipe.enable_parallel_guidance(device)
        self.guidance_device = device

    def enable_context_parallel(self, processes: int) -> None:
        """Lets the native model compute each clip together with other processes.

        Args:
            processes: How many they are.

        Raises:
            ValueError: if it can't, with what can.
        """
        self.native.enable_context_parallel()
        self.processes = processes

    def enable_fp8(self) -> None:
        """Lets both models compute their large linear layers in FP8.

        Raises:
            ValueError: if the GPU can't compute in FP8, or there is none.
        """
        for pipe in (self.native, self.base):
            pipe.enable_fp8()
        self.fp8 = True

    def place_again(self) -> None:
        """Brings parts to where they compute after layers came or went."""
        if self.placement == "in turn":  # what diffusers offloads again has hooks of its own
            take_turns(self.native, self.base, self.device)

    def preview_colours(self, check: Callable[[], None] = lambda: None) -> LatentColours | None:
        """What previews are made with; for a model without a map of its own, the first call fits
        one to its autoencoder, see `FittedColours.find`."""
        if self.colours is None and self.fitted is not None:
            return self.fitted.find(check)
        return self.colours

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of the prompt that the model's tokenizer does not know."""
        return self.native.unknown_words(prompt) if self.preset.vocabulary == "words" else []

    def unread(self, prompt: str) -> str:
        """What stands at a prompt's end beyond the tokens that the model reads."""
        return self.native.unread(prompt)

    def check_memory(self, request: Request) -> None:
        """Checks that a validated request's clip fits into the GPU's memory.

        Raises:
            ValueError: if it does not, with smaller ones that do.
        """
        if self.memory is not None:
            self.memory.check(self.placement, request.size.name, request.frames, request.aspect)


def load_models(name: str | Path | None = None, loras: Sequence[str] | None = None) -> Models:
    """Loads the models of a comparison onto the accelerator, or the CPU where there is none.

    Args:
        name: As in `choose`: `auto`, `embedded`, `wan`, or a folder in diffusers' layout.
        loras: As in `choose`; of those of this machine, what does not fit the model is left out.

    Raises:
        ValueError: for an unknown name, or a model that this machine can't run; or if a LoRA that
            was named does not fit it.
        OSError: for a file that can't be had, or is truncated or corrupt, naming it.
        RuntimeError: if the GPU's memory runs out on the way.
    """
    choice = choose(name, loras)
    import diffusers
    import transformers

    for library in (diffusers, transformers):  # a second of loading needs no bars
        library.utils.logging.disable_progress_bar()
    there, missing = find_files(choice.preset.loras, loras is not None)  # before minutes of loading
    hardware = find_hardware()
    native, sources = _load(choice, hardware)
    choice = with_own_settings(choice)  # of weights that were downloaded by now
    fitting, unfit = find_fitting(there, native.transformer, loras is not None)
    if fitting != choice.preset.loras:
        choice = replace(choice, preset=replace(choice.preset, loras=fitting))
    base = native.base_pipeline()
    for pipe in (native, base):
        pipe.set_progress_bar_config(disable=True)
    memory, placement = _place(native, base, choice, hardware)
    colours, fitted = _colours(sources[0], native)
    known = coefficients(choice.preset.name, hardware.device, hardware.dtype, has_amx())
    estimator = Estimator(known)
    _fit_to_machine(estimator, hardware)
    return Models(
        native,
        base,
        choice.preset,
        sources[0],
        fingerprint(*sources),
        hardware.device,
        estimator,
        choice=choice,
        memory=memory,
        placement=placement,
        origins=tuple(origin(path) for path in sources),
        left_out=missing | unfit,
        colours=colours,
        fitted=fitted,
    )


def _colours(source: Path, native: Any) -> tuple[LatentColours | None, FittedColours | None]:
    from ..sampling.latent_colours import LatentColours
    from .fitted_colours import FittedColours

    colours = LatentColours.load(source, native.transformer.config.out_channels)
    return colours, None if colours else FittedColours(native, source)


def _fit_to_machine(estimator: Estimator, hardware: Hardware) -> None:
    if hardware.zero_gpu:  # its card can't be asked before a run
        estimator.expect(ZERO_GPU)
        return
    try:
        estimator.calibrate(hardware.dtype if hardware.device == "cuda" else None)
    except RuntimeError as error:
        if not is_out_of_memory(error):  # finished runs tell the same, later
            raise


def check_fp8(name: str | Path | None = None) -> None:
    """Checks that a model can compute in FP8 on this machine, before it is loaded.

    Args:
        name: As in `load_models`.

    Raises:
        ValueError: if the GPU can't, or the model is the embedded one.
    """
    if choose(name).preset.name == "embedded":
        raise ValueError(
            "FP8 is for the 1.3B model, the embedded one is too small for it: leave out --fp8, or "
            "choose --model wan."
        )
    import torch

    from ..model.fp8 import check_machine

    check_machine(torch.device(find_hardware().device))


def _load(choice: Choice, hardware: Hardware) -> tuple[Any, tuple[Path, ...]]:
    """The pipeline on the CPU, and where it came from."""
    import torch

    from ..pipeline import UltraGenPipeline
    from ..weights.wan import locate_wan

    dtype = getattr(torch, hardware.dtype)
    if choice.name == "wan":  # its errors name what is wrong
        text_encoder = text_encoder_file()
        sources = locate_wan(text_encoder=text_encoder)
        native = UltraGenPipeline.from_wan(*sources, dtype=dtype, text_encoder=text_encoder)
        return native, (*sources, text_encoder) if text_encoder else sources
    try:
        return UltraGenPipeline.from_pretrained(choice.folder, dtype=dtype), (choice.folder,)
    except (OSError, ValueError):  # of `check_pipeline`, which name what is wrong
        raise
    except Exception as error:  # loaders raise many kinds, most of which don't name the model
        raise OSError(f"The model in {choice.folder} can't be loaded: {error}") from error


def _place(
    native: Any, base: Any, choice: Choice, hardware: Hardware
) -> tuple[Memory | None, Placement]:
    """Brings both pipelines to where they compute, in turn if they are too large together."""
    if hardware.device == "cpu" or choice.preset.name == EMBEDDED.name:
        native.to(hardware.device)  # the base model is one of its parts
        return None, "whole"
    try:
        return _place_parts(native, base, hardware)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise RuntimeError(
            f"The memory of {hardware.name} ran out while the model was brought there: another "
            "program may have taken some of it. Stop that one, or take the embedded model, "
            "ULTRAGEN_MODEL=embedded."
        ) from error


def _place_parts(native: Any, base: Any, hardware: Hardware) -> tuple[Memory, Placement]:
    memory = Memory(
        hardware.memory,
        weights_of(native),
        hardware.bytes_per_value,
        values_per_token(hardware),
    )
    placement = memory.place()
    if placement == "in turn":
        take_turns(native, base, hardware.device)
    else:
        native.to(hardware.device)
    return memory, placement


def take_turns(native: Any, base: Any, device: str) -> None:
    """Lets both pipelines bring each part to a device when it is needed, and then back."""
    import torch

    # A part has one hook, which knows the part before it. The native pipeline, which never runs the
    # base model, would give it one that sends nothing back.
    native.register_modules(base_transformer=None)
    place = torch.device(device)
    if place.type == "cuda" and place.index is None:
        # diffusers would take the first GPU, not the one of this process.
        place = torch.device("cuda", torch.cuda.current_device())
    for pipe in (native, base):
        pipe.enable_model_cpu_offload(device=place)
