"""The choices a user makes, as frozen dataclasses: the one place for defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EMBEDDED_MODEL = Path(__file__).parent / "embedded"


@dataclass(frozen=True)
class Resolution:
    """A frame size that is generated, and the rows that are kept of it.

    Attributes:
        name: What users type, for example `1080p`.
        height: Generated rows in pixels, a multiple of 32.
        width: Generated columns in pixels, a multiple of 32.
        rows: Rows that remain after cropping, the usual number for this size.
    """

    name: str
    height: int
    width: int
    rows: int


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

WINDOWS = ("auto", "2", "4", "6", "8")


@dataclass(frozen=True)
class ModelPreset:
    """Settings that suit one model.

    Attributes:
        name: `embedded` or `wan`.
        pixels_per_token: Rows, and columns, of pixels that a token covers.
        base_height: Rows in pixels of the dense base model's own size.
        base_width: Columns in pixels of the dense base model's own size.
        num_frames: Frames a clip has, 4n + 1.
        max_frames: Most frames a clip may have.
        fps: Frames a second of the encoded clip.
        num_inference_steps: Denoising steps.
        guidance_scale: Classifier-free guidance scale; 1 switches guidance off.
        negative_prompt: What guidance leads away from.
        max_sequence_length: Text tokens the model was trained with.
    """

    name: str
    pixels_per_token: int
    base_height: int
    base_width: int
    num_frames: int
    max_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    negative_prompt: str
    max_sequence_length: int


EMBEDDED = ModelPreset(
    name="embedded",
    pixels_per_token=32,
    base_height=288,
    base_width=512,
    num_frames=17,
    max_frames=33,
    fps=12,
    num_inference_steps=10,
    guidance_scale=3.0,
    negative_prompt="",
    max_sequence_length=64,
)

WAN = ModelPreset(
    name="wan",
    pixels_per_token=16,
    base_height=480,
    base_width=832,
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
)
