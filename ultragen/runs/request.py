"""What someone asks for: one prompt and its settings, checked before anything is computed."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any, get_args

from ..model.windows import check_windows
from ..presets import (
    CACHES,
    EVERY_STEP,
    FAST,
    GROWING,
    PROGRESSIVE,
    RESOLUTIONS,
    SOLVERS,
    ModelPreset,
    Noise,
    Resolution,
    check_aspect,
    check_frame_rate,
    check_guidance_interval,
    check_guidance_scale,
    check_lora_strength,
    check_num_frames,
    check_shift,
    shown,
    steps_taken,
)
from ..sampling.caches import FIRST_STEPS, computed_passes
from ..sampling.guidance import Guidance

MAX_PROMPT = 2000  # characters; the larger model reads 512 tokens, of about four each
MAX_STEPS = 100  # that a stranger may ask of the machine
MAX_SEED = 2**32 - 1  # exact in every JSON reader, unlike 64-bit numbers
MAX_DIGITS = 100  # of a number that is typed as text; Python itself reads some thousands
UPSCALERS = ("network", "lanczos")
SWITCH = ("off", "on")
NOISES = get_args(Noise)
BEFORE: dict[str, Any] = {
    "loras": {},
    "noise": "independent",
    "aspect": "16:9",
    "guidance_interval": EVERY_STEP,
    "cache": "off",
    "shift": None,
    "solver": "own",
    "base_num_inference_steps": None,
    "base_guidance_scale": None,
    "progressive": "off",
}
"""What clips were made with from before there was a choice, whose metadata does not name it; their
frame rate stands beside their settings."""
NO_TEXT = {"Cc": "control character", "Cs": "lone surrogate"}  # by Unicode's categories


@dataclass(frozen=True)
class Request:
    """One run: a native clip and an upscaled one from the same prompt and seed.

    Attributes:
        prompt: What the clip shows.
        resolution: A name in `RESOLUTIONS`; None takes the model's.
        windows: K, windows on each axis in even layers, an even number; `auto` keeps the window
            size that the model was trained with.
        num_frames: Frames, 4n + 1; None takes the model's.
        seed: Number that the starting noise is drawn from, the same for both models.
        num_inference_steps: Denoising steps; None takes the model's.
        guidance_scale: Scale of classifier-free guidance; 1 and below switch it off; None takes
            the model's.
        negative_prompt: What guidance leads away from; None takes the model's.
        upscaler: `network`, `lanczos`, or a file that spandrel loads.
        base_native: `on` also runs the base model at the full size.
        loras: Strength of each LoRA by its name, of those that this machine has; None takes the
            machine's own.
        noise: `spectral`, where a seed is the same scene at every size and length, or
            `independent`, which draws each of them anew.
        aspect: Shape of the frame, one of `ASPECTS`.
        fps: Frames a second of the files; None takes the model's. The frames are the same.
        guidance_interval: Noise levels between which guidance is computed, such as `0.6-1`, the
            lower one excluded; steps at others take one forward pass.
        cache: `off`, or another one of `CACHES`, which predicts some steps from those before.
        shift: Shift of the noise levels, above 1 towards more noise; None leaves it to the model.
        solver: What takes the steps, one of `SOLVERS`.
        base_num_inference_steps: Denoising steps of the base model's clips; None takes the native
            clip's, or the base model's own where only the native one is distilled.
        base_guidance_scale: Scale of guidance of the base model's clips; None as for its steps.
        progressive: `on` first makes a smaller clip, which decides where things are, wherever there
            is one; `auto` does so where frames are larger than the model was trained for; `off`
            begins at the full size.
    """

    prompt: str
    resolution: str | None = None
    windows: str | int = "auto"
    num_frames: int | None = None
    seed: int = 0
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    upscaler: str = "network"
    base_native: str = "off"
    loras: Mapping[str, float] | None = field(default=None, hash=False)
    noise: str = "spectral"
    aspect: str = "16:9"
    fps: int | None = None
    guidance_interval: str = EVERY_STEP
    cache: str = "off"
    shift: float | None = None
    solver: str = "own"
    base_num_inference_steps: int | None = None
    base_guidance_scale: float | None = None
    progressive: str = "auto"

    @property
    def of_base(self) -> Request:
        """What the base model's clips are made by, of a request that was validated."""
        steps, scale = self.base_num_inference_steps, self.base_guidance_scale
        return replace(
            self,
            num_inference_steps=self.num_inference_steps if steps is None else steps,
            guidance_scale=self.guidance_scale if scale is None else scale,
        )

    @property
    def size(self) -> Resolution:
        """The frame size, of a request that was validated."""
        return RESOLUTIONS[self.resolution or ""].shaped(self.aspect)

    def first_size(self, preset: ModelPreset) -> Resolution | None:
        """The frame size of the clip that this one takes its composition from, of a request that
        was validated; None where it begins at its own, as a clip of one step does."""
        largest = preset.first_size if self.progressive == "on" else preset.progressive_above
        if self.progressive == "off" or largest is None:
            return None
        sizes = RESOLUTIONS[self.resolution or ""], RESOLUTIONS[largest]
        pixels, most = (size.height * size.width for size in sizes)
        steps = self.num_inference_steps or preset.num_inference_steps
        if pixels <= most or steps_taken(steps) == steps:
            return None
        return RESOLUTIONS[preset.first_size].shaped(self.aspect)

    @property
    def frames(self) -> int:
        """The number of frames, of a request that was validated."""
        return self.num_frames or 0

    @property
    def guidance(self) -> Guidance:
        """How each step is guided, of a request that was validated."""
        return Guidance(self.guidance_scale or 0.0, check_guidance_interval(self.guidance_interval))

    @property
    def frame_rate(self) -> int:
        """Frames a second of the files, of a request that was validated."""
        return self.fps or 0

    def token_grid(self, preset: ModelPreset) -> tuple[int, int]:
        """Token rows and columns of a frame."""
        size = preset.pixels_per_token
        return self.size.height // size, self.size.width // size

    def validate(self, preset: ModelPreset) -> Request:
        """The same request with every setting checked and the model's own filled in.

        White space in prompts becomes single spaces.

        Raises:
            ValueError: for the first setting that can't be used, with what can.
        """
        checked = replace(
            self,
            prompt=check_prompt(self.prompt),
            resolution=check_choice(
                "resolution",
                preset.resolution if self.resolution is None else self.resolution,
                tuple(RESOLUTIONS),
            ),
            num_frames=check_frames(
                preset.num_frames if self.num_frames is None else self.num_frames, preset
            ),
            seed=check_integer("seed", self.seed, 0, MAX_SEED),
            num_inference_steps=check_integer(
                "num_inference_steps",
                preset.num_inference_steps
                if self.num_inference_steps is None
                else self.num_inference_steps,
                1,
                MAX_STEPS,
            ),
            guidance_scale=check_guidance_scale(
                preset.guidance_scale if self.guidance_scale is None else self.guidance_scale
            ),
            negative_prompt=check_text(
                "negative_prompt",
                preset.negative_prompt if self.negative_prompt is None else self.negative_prompt,
            ),
            upscaler=check_upscaler(self.upscaler),
            base_native=check_choice("base_native", self.base_native, SWITCH),
            loras=check_loras(self.loras, preset),
            noise=check_choice("noise", self.noise, NOISES),
            aspect=check_aspect(self.aspect),
            fps=check_frame_rate(preset.fps if self.fps is None else self.fps, preset.fps),
            guidance_interval=interval_text(self.guidance_interval),
            cache=check_choice("cache", self.cache, tuple(CACHES)),
            shift=None if self.shift is None else check_shift(self.shift),
            solver=check_choice("solver", self.solver, SOLVERS),
            base_num_inference_steps=check_base_steps(self.base_num_inference_steps, preset),
            base_guidance_scale=check_base_guidance(self.base_guidance_scale, preset),
            progressive=check_progressive(self.progressive, preset),
        )
        check_cache_steps(checked, preset)
        if checked.solver == "unipc" and checked.shift is None and preset.shift is None:
            raise ValueError(GROWING)
        return replace(checked, windows=check_window_choice(self.windows, checked, preset))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any] | str | Path) -> Request:
        """The request that made a clip, from the contents or the path of its `metadata.json`.

        Raises:
            ValueError: if it is not a run's metadata.
            OSError: if the file can't be read.
        """
        if isinstance(metadata, Path):
            metadata = metadata.read_text(encoding="utf-8")
        content = json.loads(metadata) if isinstance(metadata, str) else metadata
        settings = content.get("request") if isinstance(content, Mapping) else None
        known = [field.name for field in fields(cls)]
        if not isinstance(settings, Mapping):
            raise ValueError(
                "This is not the metadata of an UltraGen run: 'request' must hold "
                f"{', '.join(sorted(known))}."
            )
        settings = {**BEFORE, "fps": content.get("fps"), **settings}
        if unknown := [shown(name) for name in settings if name not in known]:
            raise ValueError(
                f"'request' holds {', '.join(unknown[:5])}, which this version does not know: it "
                "may come from a newer one, or from another program. Update UltraGen, or remove "
                "what it does not know."
            )
        if missing := [name for name in known if name not in settings]:
            raise ValueError(
                "This is not the metadata of an UltraGen run: 'request' must hold "
                f"{', '.join(sorted(known))}, and {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} missing."
            )
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self)


def check_text(name: str, text: object) -> str:
    """Text in single-spaced form.

    Raises:
        ValueError: if it is no text, too long, or has control characters.
    """
    if not isinstance(text, str):
        raise ValueError(f"{name} must be text, not {_kind(text)}.")
    if len(text) > MAX_PROMPT:
        raise ValueError(
            f"{name} has {len(text):,} characters; at most {MAX_PROMPT:,} are taken. "
            f"Shorten it by {len(text) - MAX_PROMPT:,}."
        )
    for position, character in enumerate(text, 1):
        kind = NO_TEXT.get(unicodedata.category(character))
        if kind and not character.isspace():
            raise ValueError(
                f"{name} has the {kind} U+{ord(character):04X} at position {position}: remove it."
            )
    return " ".join(text.split())


def check_prompt(prompt: object) -> str:
    """A prompt in single-spaced form.

    Raises:
        ValueError: as `check_text`, and if nothing visible is in it.
    """
    text = check_text("prompt", prompt)
    if not any(unicodedata.category(c)[0] not in "ZC" for c in text):
        raise ValueError(
            "The prompt is empty: describe a scene, for example "
            "'a calm lake under snowy mountains at sunset'."
        )
    return text


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """One of the choices, whatever its case.

    Raises:
        ValueError: for anything else, naming the choices.
    """
    if isinstance(value, str) and value.strip().lower() in choices:
        return value.strip().lower()
    raise ValueError(f"{name} {shown(value)} is unknown: choose from {', '.join(choices)}.")


def check_upscaler(value: object) -> str:
    """A known upscaler, or the path of an existing file.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, str) and (value in UPSCALERS or _is_file(value)):
        return value
    raise ValueError(
        f"upscaler {shown(value)} is unknown: choose from {', '.join(UPSCALERS)}, "
        "or the path of an existing weights file."
    )


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # a name that is too long for any file
        return False


def check_loras(value: object, preset: ModelPreset) -> dict[str, float]:
    """Strengths by name, without those that are 0; None gives the machine's own.

    Raises:
        ValueError: if a name is not on the machine's list, or a strength can't be used.
    """
    own = {lora.name: lora.strength for lora in preset.loras}
    asked = own if value is None else value
    if not isinstance(asked, Mapping):
        raise ValueError(f"loras must hold a strength by name, not {shown(value)}.")
    if unknown := next((name for name in asked if name not in own), None):
        there = (
            f"choose from {', '.join(own)}"
            if own
            else "it has none for this model, so leave it out"
        )
        raise ValueError(f"This machine has no LoRA {shown(unknown)}: {there}.")
    strengths = {
        name: check_lora_strength(f"The strength of {name}", asked[name])
        for name in own
        if name in asked
    }
    return {name: strength for name, strength in strengths.items() if strength}


def interval_text(levels: object) -> str:
    """An interval of noise levels as the text that all places take, such as `0.6-1`.

    Raises:
        ValueError: as `check_guidance_interval`.
    """
    # Never 1e-05, whose hyphen would be taken for the one between both.
    return "-".join(
        f"{Decimal(repr(level)).normalize():f}" for level in check_guidance_interval(levels)
    )


def check_cache_steps(request: Request, preset: ModelPreset | None = None) -> None:
    """Checks that a cache leaves something out of a request whose settings are checked.

    Args:
        request: The request.
        preset: Its model's, by which it may take its composition from a smaller clip.

    Raises:
        ValueError: if it computes all steps.
    """

    def taken(steps: int) -> int:
        asked = replace(request, num_inference_steps=steps)
        composed = preset is not None and asked.first_size(preset) is not None
        return steps_taken(steps) if composed else steps

    if request.cache == "off":
        return
    steps = taken(request.num_inference_steps or 0)
    if steps <= FIRST_STEPS:
        enough = next(number for number in count(1) if taken(number) > FIRST_STEPS)
        raise ValueError(
            f"cache {shown(request.cache)} leaves nothing out of {steps} steps, since it computes "
            f"the first {FIRST_STEPS}: choose off, or {enough} steps or more."
        )


def check_fast(request: Request) -> None:
    """Checks that `FAST` saves a validated request what it is for.

    Raises:
        ValueError: if it is not guided, with what saves as much, or has too few steps.
    """
    if (request.guidance_scale or 0) > 1:
        check_cache_steps(replace(request, cache=FAST["cache"]))
        return
    steps = request.num_inference_steps or 1
    fewer = computed_passes(FAST["cache"], steps)
    instead = f"{fewer} steps in place of {steps} save" if fewer < steps else "a smaller size saves"
    raise ValueError(
        f"fast is for guided clips, and this one has guidance {request.guidance_scale:g}, as the "
        f"models that were distilled to few steps have: {instead} as much without it."
    )


def check_progressive(value: object, preset: ModelPreset) -> str:
    """One of `PROGRESSIVE`; `auto` for a model whose clips begin at their own size by themselves.

    Raises:
        ValueError: as `check_choice`.
    """
    asked = check_choice("progressive", value, PROGRESSIVE)
    return "auto" if asked == "off" and preset.progressive_above is None else asked


def check_integer(name: str, value: object, lowest: int, highest: int) -> int:
    """A whole number in a range; 7.0 counts as 7, as JSON does not tell them apart.

    Raises:
        ValueError: for anything else.
    """
    whole = isinstance(value, float) and value.is_integer()
    if isinstance(value, bool) or not (isinstance(value, int) or whole):
        raise ValueError(
            f"{name} must be a whole number from {lowest} to {highest}, not {shown(value)}."
        )
    number = int(value)  # type: ignore[call-overload]
    if not lowest <= number <= highest:
        raise ValueError(
            f"{name} must be from {lowest} to {highest}, not {shown(value)}: "
            f"{lowest if number < lowest else highest} is the nearest."
        )
    return number


def check_base_steps(value: object, preset: ModelPreset) -> int | None:
    """The base model's steps, its own for None; None where both models have the same.

    Raises:
        ValueError: as `check_integer`.
    """
    steps = preset.base_num_inference_steps if value is None else value
    if steps is None:
        return None
    return check_integer("base_num_inference_steps", steps, 1, MAX_STEPS)


def check_base_guidance(value: object, preset: ModelPreset) -> float | None:
    """The base model's scale of guidance, its own for None; None where both models have the same.

    Raises:
        ValueError: as `check_guidance_scale`.
    """
    scale = preset.base_guidance_scale if value is None else value
    return None if scale is None else check_guidance_scale(scale, "base_guidance_scale")


def check_frames(value: object, preset: ModelPreset) -> int:
    """A number of frames that the autoencoder can make, within the model's range.

    Raises:
        ValueError: for anything else, naming the nearest.
    """
    frames = check_integer("num_frames", value, 1, preset.max_frames)
    check_num_frames(frames, most=preset.max_frames)
    return frames


def check_window_choice(value: object, request: Request, preset: ModelPreset) -> str | int:
    """`auto`, or K as a number that the grid of this request can take.

    Raises:
        ValueError: if it is odd, too large for the grid, or no number, naming what can be used.
    """
    if isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    if preset.windows == ("auto",):
        raise ValueError(
            f"windows must be 'auto', not {shown(value)}: {preset.method}'s layers have windows "
            "of their own."
        )
    number = value
    if isinstance(value, str) and value.strip().isdecimal() and len(value) <= MAX_DIGITS:
        number = int(value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(
            f"windows {shown(value)} is unknown: choose 'auto' or an even number such as 2 or 4."
        )
    return check_windows(number, *request.token_grid(preset))


def _kind(value: object) -> str:
    return "nothing" if value is None else shown(value)
