"""The choices a user makes: the one place for defaults, and for the limits that all runs share."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from math import hypot, log
from numbers import Real
from pathlib import Path
from typing import Literal

EMBEDDED_MODEL = Path(__file__).parent / "embedded"


@dataclass(frozen=True)
class Resolution:
    """A frame size that is generated, and the part that is kept of it.

    Attributes:
        name: What users type, for example `1080p`.
        height: Generated rows in pixels, a multiple of 32.
        width: Generated columns in pixels, a multiple of 32.
        rows: Rows that remain after cropping, the usual number for this size.
        columns: Columns that remain; None where all do.
    """

    name: str
    height: int
    width: int
    rows: int
    columns: int | None = None

    @property
    def kept(self) -> tuple[int, int]:
        """Rows and columns that remain after cropping: the size of the files."""
        return self.rows, self.width if self.columns is None else self.columns

    def shaped(self, aspect: str) -> Resolution:
        """The size of the same name in another shape, one of `ASPECTS`."""
        if aspect == "16:9":
            return self
        rows, columns = self.kept
        if aspect == "9:16":
            return Resolution(self.name, self.width, self.height, columns, rows)
        rows, columns = SHAPES[aspect][self.name]
        height, width = (-(-side // TOKEN) * TOKEN for side in (rows, columns))
        return Resolution(self.name, height, width, rows, columns)


RESOLUTIONS = {
    resolution.name: resolution
    for resolution in (
        Resolution("544p", 544, 960, 544),
        Resolution("720p", 736, 1280, 720),
        Resolution("1080p", 1088, 1920, 1080),
        Resolution("2k", 1440, 2560, 1440),
        Resolution("4k", 2176, 3840, 2160),
    )
}

ASPECTS = ("16:9", "9:16", "1:1", "4:3", "21:9")
"""Shapes of a frame, width to height. What is sold as 21:9 lies between 2.35 and 2.4."""
TOKEN = 32  # pixels: the coarser model's, whose multiples the finer one's tokens cover as well
SHAPES = {
    "1:1": {
        "544p": (544, 544),
        "720p": (720, 720),
        "1080p": (1080, 1080),
        "2k": (1440, 1440),
        "4k": (2160, 2160),
    },
    "4:3": {
        "544p": (544, 720),
        "720p": (720, 960),
        "1080p": (1080, 1440),
        "2k": (1440, 1920),
        "4k": (2160, 2880),
    },
    # Of 4k not 5120 × 2160: a frame of more than 36,864 blocks of 16 × 16 is above level 5.2 of
    # H.264 (its table A-1), which common decoders refuse.
    "21:9": {
        "544p": (544, 1280),
        "720p": (720, 1720),
        "1080p": (1080, 2560),
        "2k": (1440, 3440),
        "4k": (1600, 3840),
    },
}
"""Rows and columns of the files in shapes that are not 16:9, nor that turned: usual sizes."""

FRAME_RATES = (12, 15, 16, 24)
"""Frames a second that a file may have, beside its model's own."""

WINDOWS = ("auto", "2", "4", "6", "8")

PROMPTS = (
    "a calm lake under snowy mountains at sunset, the camera pans right",
    "dark pine hills at night, a full moon",
    "golden dunes in the morning, a clear sky, birds",
    "green islands in a blue sea at noon, the camera rises",
    "northern lights above a still lake and snowy peaks at night",
    "misty hills with trees at dawn, the camera zooms in",
    "a red canyon in golden light, clear sky, the camera rises",
    "pine trees on snowy hills at dusk, snowfall, cold light",
    "mountains by the sea in the morning, a few clouds, warm colors",
    "a wide meadow with trees in the rain, overcast, the camera pans left",
    "ocean waves in front of red cliffs at sunset, the sun low in the middle",
    "rolling green hills at noon, scattered clouds, the camera zooms in",
)
"""What samples, sheets, examples and benchmarks are made of; the embedded model knows the words."""
SUGGESTED = 6  # prompts, from the first on, that the page suggests and has finished examples of

Noise = Literal["independent", "spectral"]
"""How the noise that a clip starts from is drawn: for each size anew, or for all sizes from one
spectrum, so that a seed is the same scene at every size (`sampling/spectral_noise.py`)."""

PROGRESSIVE = ("auto", "on", "off")
"""Whether a large clip takes its composition from a small one (`sampling/composition.py`): `auto`
does so where frames are larger than the model was trained for."""
STRENGTH = 0.625
"""Part of the steps that a clip with a composition takes: the last five of the embedded model's
eight. With fewer, water gets fine stripes (chosen by looking at frames of 2176 × 3840)."""

ASPECT = re.compile(r"([1-9]\d{0,4})[:x/]([1-9]\d{0,4})")

FRAMES_PER_LATENT = 4
"""Frames that Wan's autoencoder, and the embedded one, pack into one latent frame."""
GUIDANCE_SCALES = (0, 100)
"""Lowest and highest scale of classifier-free guidance; 1 and below switch it off."""
EVERY_STEP = "0-1"
"""The interval of noise levels, as text, in which all steps of a guided run lie."""
INTERVAL = re.compile(r"[\[(]?\s*(\d*\.?\d+)(?:\s*[-–,;]\s*|\s+to\s+|\s+)(\d*\.?\d+)\s*[\])]?")
"""As people type one."""
CACHES = {"off": 1, "taylor-2": 2, "taylor-3": 3}
"""Ways to leave steps out, each with the steps of which it computes one, see `sampling/caches`."""
FAST = {"cache": "taylor-2", "guidance_interval": "0.6-1"}
"""Settings of a guided run that take half its time, and what they do to clips is measured."""
SOLVERS = ("own", "euler", "unipc")
"""What takes the steps: the model's own solver, Euler's, or UniPC, which learns from several."""
GROWING = (
    "solver unipc needs a fixed shift, and the model's own grows with the frame: add a shift, such "
    "as 5, or choose euler."
)
SHIFTS = (0.01, 100)
"""Lowest and highest shift of the noise levels; 1 leaves them evenly spaced."""
LORA_STRENGTHS = (-10, 10)
"""Lowest and highest strength of a LoRA; 0 leaves it out, below that it is taken away."""


def shown(value: object) -> str:
    """A value for a message, cut to a readable length."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no longer ones
        return f"a number of more than {sys.get_int_max_str_digits():,} digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_num_frames(
    num_frames: int, step: int = FRAMES_PER_LATENT, most: int | None = None
) -> None:
    """Checks that a clip can have so many frames: one, and `step` more for each further latent one.

    Args:
        num_frames: Frames of the clip.
        step: Frames that the autoencoder packs into one latent frame.
        most: Frames that a clip may have; None sets no limit.

    Raises:
        ValueError: With the nearest numbers that can be used.
    """
    possible = num_frames if most is None else min(num_frames, most)
    below = max(1, possible - (possible - 1) % step)
    if num_frames == below:
        return
    nearest = [str(n) for n in (below, below + step) if most is None or n <= most]
    limit = "" if most is None else f" (at most {most})"
    raise ValueError(
        f"num_frames must be {step}n + 1, not {shown(num_frames)}: choose "
        f"{' or '.join(nearest)}{limit}."
    )


def check_aspect(aspect: object) -> str:
    """One of `ASPECTS`; spaces do not matter.

    Raises:
        ValueError: For another shape, with the nearest two.
    """
    text = aspect.replace(" ", "") if isinstance(aspect, str) else ""
    if text in ASPECTS:
        return text
    there = ", ".join(ASPECTS)
    if not (sides := ASPECT.fullmatch(text)):
        raise ValueError(f"aspect {shown(aspect)} is unknown: choose from {there}.")
    shape = int(sides[1]) / int(sides[2])
    near = sorted(ASPECTS, key=lambda each: abs(log(_shape(each) / shape)))[:2]
    raise ValueError(
        f"aspect {shown(aspect)} is none of {there}: the nearest are {' and '.join(near)}."
    )


def _shape(aspect: str) -> float:
    width, height = aspect.split(":")
    return int(width) / int(height)


def find_size(width: int, height: int) -> tuple[str, str]:
    """Name and aspect of the size whose files have so many columns and rows.

    Raises:
        ValueError: If none has, with the nearest two.
    """
    sizes = {
        size.shaped(aspect).kept: (name, aspect)
        for aspect in ASPECTS
        for name, size in RESOLUTIONS.items()
    }
    if (height, width) in sizes:
        return sizes[height, width]
    if min(width, height) < 1:
        raise ValueError(f"A frame of {width} × {height} pixels has no area: give positive sides.")
    near = sorted(sizes, key=lambda sides: hypot(log(sides[0] / height), log(sides[1] / width)))[:2]
    options = (
        f"{columns} × {rows} ({' in '.join(sizes[rows, columns])})" for rows, columns in near
    )
    raise ValueError(
        f"No clip has {shown(width)} × {shown(height)} pixels: the nearest are "
        f"{' and '.join(options)}."
    )


def check_frame_rate(fps: object, own: int) -> int:
    """Frames a second that a file may have.

    Args:
        fps: What was asked for.
        own: The model's own.

    Raises:
        ValueError: For another number, with those that there are.
    """
    rates = frame_rates(own)
    if isinstance(fps, Real) and not isinstance(fps, bool) and fps in rates:
        return int(fps)  # type: ignore[call-overload]
    raise ValueError(
        f"fps must be one of {', '.join(map(str, rates))}, not {shown(fps)}: the frames stay the "
        "same, and are shown faster or slower."
    )


def frame_rates(own: int) -> list[int]:
    """Frames a second to choose from, rising, where a model's own number is `own`."""
    return sorted({*FRAME_RATES, own})


def check_guidance_scale(scale: object, name: str = "guidance_scale") -> float:
    """A scale of classifier-free guidance as a float.

    Args:
        scale: The scale.
        name: What the error calls it.

    Raises:
        ValueError: It is no number, or outside `GUIDANCE_SCALES`.
    """
    lowest, highest = GUIDANCE_SCALES
    number = isinstance(scale, Real) and not isinstance(scale, bool)
    if number and lowest <= scale <= highest:  # type: ignore[operator]
        return float(scale)  # type: ignore[arg-type]
    raise ValueError(
        f"{name} must be a number from {lowest} to {highest}, not {shown(scale)}: "
        "1 switches it off."
    )


def check_guidance_interval(levels: object) -> tuple[float, float]:
    """Two noise levels between which guidance is computed, from numbers or text such as `0.6-1`.

    Raises:
        ValueError: They are no two rising numbers from 0 to 1.
    """
    found: object = levels
    if isinstance(levels, str) and (match := INTERVAL.fullmatch(levels)):
        found = [float(number) for number in match.groups()]
    pair = isinstance(found, tuple | list) and len(found) == 2
    if pair and all(isinstance(each, Real) and not isinstance(each, bool) for each in found):  # type: ignore[attr-defined]
        low, high = map(float, found)  # type: ignore[call-overload]
        if 0 <= low < high <= 1:
            return low, high
    raise ValueError(
        f"guidance_interval must be two rising noise levels from 0 to 1, not {shown(levels)}: "
        "(0, 1) guides every step, as text 0-1."
    )


def check_shift(shift: object) -> float:
    """A shift of the noise levels as a float.

    Raises:
        ValueError: It is no number, or outside `SHIFTS`.
    """
    lowest, highest = SHIFTS
    number = isinstance(shift, Real) and not isinstance(shift, bool)
    if number and lowest <= shift <= highest:  # type: ignore[operator]
        return float(shift)  # type: ignore[arg-type]
    raise ValueError(
        f"shift must be a number from {lowest} to {highest}, not {shown(shift)}: above 1 more of "
        "the steps are where there is much noise. Left out, it is the model's own."
    )


def steps_taken(steps: int, strength: float = STRENGTH) -> int:
    """How many of its steps a clip with a composition takes, the last ones; one at least.

    Args:
        steps: Of a clip without one.
        strength: Part of them, above 0 and up to 1.

    Raises:
        ValueError: There is no such part.
    """
    if not isinstance(strength, Real) or not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and up to 1, not {shown(strength)}.")
    return max(1, round(steps * strength))


def check_lora_strength(name: str, strength: object) -> float:
    """A LoRA's strength as a float.

    Args:
        name: What the error calls it.
        strength: The strength.

    Raises:
        ValueError: It is no number, or outside `LORA_STRENGTHS`.
    """
    lowest, highest = LORA_STRENGTHS
    number = isinstance(strength, Real) and not isinstance(strength, bool)
    if number and lowest <= strength <= highest:  # type: ignore[operator]
        return float(strength)  # type: ignore[arg-type]
    raise ValueError(
        f"{name} must be a number from {lowest} to {highest}, not {shown(strength)}: 1 is what the "
        "LoRA was trained for, 0 leaves it out."
    )


@dataclass(frozen=True)
class HubSource:
    """Where a model's files come from, unless an environment variable names another place.

    Attributes:
        name: What messages call the model.
        repository: On the Hub, `owner/name`; public, so that no token is needed.
        revision: Commit, tag or branch of this repository; of a mirror without one its branch
            `main` is taken.
        variable: Environment variable that holds a local path, or `owner/name` or
            `owner/name@revision` of a mirror.
        files: Patterns of the files that are needed.
    """

    name: str
    repository: str
    revision: str
    variable: str
    files: tuple[str, ...]


TEXT_ENCODER_VARIABLE = "ULTRAGEN_TEXT_ENCODER"
"""Names a file to take umT5 from, in place of the base model's own."""

MAIN = "main"
# The commit that published projects pin and whose files their manifests list.
WAN_REVISION = "0fad780a534b6463e45facd96134c9f345acfa5b"
# No commit of these weights is published anywhere but on their own page, which could not be read
# when this was written: `owner/name@COMMIT` in the variable pins one.
ULTRAGEN_REVISION = MAIN

WAN_SOURCE = HubSource(
    name="the Wan base model",
    repository="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    revision=WAN_REVISION,
    variable="ULTRAGEN_WAN",
    files=(
        "model_index.json",
        *(f"{part}/*" for part in ("scheduler", "tokenizer", "text_encoder", "transformer", "vae")),
    ),
)
ULTRAGEN_SOURCE = HubSource(
    name="the released UltraGen weights",
    repository="JTUplayer/Ultragen",
    revision=ULTRAGEN_REVISION,
    variable="ULTRAGEN_WEIGHTS",
    files=("ultragen_1080p.ckpt",),
)
T3_SOURCE = HubSource(
    name="T3-Video's weights",
    repository="APRIL-AIGC/T3-Video",
    revision=MAIN,
    variable=ULTRAGEN_SOURCE.variable,
    files=("T3-Video-Wan2.1-T2V-1.3B.safetensors",),
)
LAYOUT_VARIABLE = "ULTRAGEN_LAYOUT"
"""Says of weights in `ULTRAGEN_WEIGHTS`, whose names don't tell it, how their layers attend."""


LORA_VARIABLE = "ULTRAGEN_LORA"
"""Environment variable that names LoRAs: files, folders or repositories, each with `:STRENGTH`."""
LORA_FOLDER = Path("loras")
"""Where the commands and the page look for LoRAs beside those that are named."""


@dataclass(frozen=True)
class LoraChoice:
    """A LoRA that runs may ask for.

    Attributes:
        name: What they ask for it by.
        place: A file, or a repository on the Hub, see `weights.hub_lora`.
        strength: What runs have of it unless they ask for another.
    """

    name: str
    place: str
    strength: float


@dataclass(frozen=True)
class ModelPreset:
    """Settings that suit one model.

    Attributes:
        name: `embedded`, `wan` or `t3-4k`.
        pixels_per_token: Rows, and columns, of pixels that a token covers.
        base_height: Rows in pixels of the dense base model's own size.
        base_width: Columns in pixels of the dense base model's own size.
        resolution: Name of the size that runs have unless another is asked for.
        num_frames: Frames a clip has, 4n + 1.
        max_frames: Most frames a clip may have.
        fps: Frames a second of the encoded clip.
        num_inference_steps: Denoising steps.
        guidance_scale: Classifier-free guidance scale; 1 switches guidance off.
        negative_prompt: What guidance leads away from.
        max_sequence_length: Text tokens the model was trained with.
        vocabulary: `words` where the tokenizer knows some words and no others, `pieces` where it
            cuts any text into known pieces.
        ladder: Settings to offer where seconds count, best first: resolution, frames, steps.
        windows: Choices for K; `auto` alone where the layers have windows of their own.
        shift: Shift of its noise levels; None where it grows with the frame.
        base_num_inference_steps: Denoising steps of the base model; None where both models have
            the same.
        base_guidance_scale: The base model's guidance scale; None where both have the same.
        first_size: Name of the size that may give larger frames their composition.
        progressive_above: Name of the largest size whose clips begin at their own size unless
            something else is asked for; None where all do.
        method: What the native clip is made with, as labels call it.
        credit: Whose weights they are, for people, if not the authors' of the paper.
        loras: LoRAs that this machine has for it.
    """

    name: str
    pixels_per_token: int
    base_height: int
    base_width: int
    resolution: str
    num_frames: int
    max_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    negative_prompt: str
    max_sequence_length: int
    vocabulary: Literal["words", "pieces"]
    ladder: tuple[tuple[str, int, int], ...]
    windows: tuple[str, ...] = WINDOWS
    shift: float | None = None
    base_num_inference_steps: int | None = None
    base_guidance_scale: float | None = None
    first_size: str = "1080p"
    progressive_above: str | None = None
    method: str = "UltraGen"
    credit: str = ""
    loras: tuple[LoraChoice, ...] = ()

    def base_size(self, aspect: str) -> tuple[int, int]:
        """Rows and columns in pixels of the base model's clip in a shape, one of `ASPECTS`: about
        as many tokens as its own size has."""
        if aspect == "16:9":
            return self.base_height, self.base_width
        if aspect == "9:16":
            return self.base_width, self.base_height
        token, shape = self.pixels_per_token, _shape(aspect)
        rows = round((self.base_height * self.base_width / shape) ** 0.5 / token)
        return rows * token, round(rows * shape) * token


EMBEDDED = ModelPreset(
    name="embedded",
    pixels_per_token=32,
    base_height=288,
    base_width=512,
    resolution="544p",
    num_frames=17,
    max_frames=33,
    fps=12,
    num_inference_steps=10,
    guidance_scale=3.0,
    negative_prompt="",
    max_sequence_length=64,
    vocabulary="words",
    first_size="544p",
    progressive_above="1080p",
    ladder=(("4k", 17, 10), ("2k", 17, 10), ("1080p", 33, 10), ("1080p", 17, 10), ("544p", 17, 10)),
)

WAN_SHIFT = 5.0  # of the released schedule: σ_i = 1 − i/30, then sσ / (1 + (s − 1)σ)
WAN = ModelPreset(
    name="wan",
    pixels_per_token=16,
    base_height=480,
    base_width=832,
    resolution="1080p",
    num_frames=81,
    max_frames=121,
    fps=15,
    num_inference_steps=30,
    guidance_scale=5.0,
    negative_prompt=(
        "low quality, blurry, overexposed, static, worst quality, jpeg artifacts, subtitles, "
        "watermark"
    ),
    max_sequence_length=512,
    vocabulary="pieces",
    shift=WAN_SHIFT,
    ladder=(
        ("4k", 29, 30),
        ("1080p", 81, 30),
        ("1080p", 49, 30),
        ("1080p", 33, 30),
        ("1080p", 33, 20),
        ("1080p", 17, 20),
        ("720p", 33, 20),
        ("720p", 17, 20),
        ("544p", 17, 20),
        ("544p", 17, 10),
        ("544p", 5, 10),
    ),
)

T3_4K = replace(
    WAN,
    name="t3-4k",
    resolution="4k",
    fps=30,
    num_inference_steps=50,
    # Wan's own, which T3-Video's authors sample with.
    negative_prompt=(
        "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
        "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
        "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
    ),
    ladder=(("4k", 81, 50), ("4k", 81, 30), ("4k", 29, 30), *WAN.ladder[1:]),
    windows=("auto",),
    first_size="4k",
    method="T3-Video",
    credit=(
        "The weights are T3-Video's, by other authors than UltraGen's (arXiv 2512.13492, "
        "APRIL-AIGC/T3-Video on the Hub): trained for 4k with 81 frames alone."
    ),
)
PRESETS = {preset.name: preset for preset in (EMBEDDED, WAN, T3_4K)}
