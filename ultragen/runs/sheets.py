"""Contact sheets: what the model makes of a fixed list of prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..files import whole_file
from ..pictures import contact_sheet
from ..presets import PROMPTS
from .loading import Models
from .native import generate_native
from .progress import Progress
from .request import Request


@dataclass(frozen=True)
class Sheet:
    """A contact sheet.

    Attributes:
        resolution: Size of the clips, a name in `RESOLUTIONS`.
        count: Prompts, from the first on.
        columns: Pictures a row.
        width: Columns in pixels of a picture on the sheet.
        quality: JPEG's, 1 to 95.
    """

    resolution: str
    count: int
    columns: int
    width: int
    quality: int

    @property
    def name(self) -> str:
        """File name."""
        return f"contact_sheet_{self.resolution}.jpg"


SHEETS = (Sheet("544p", 12, 3, 400, 82), Sheet("1080p", 4, 2, 720, 82))


def make_sheet(
    sheet: Sheet,
    models: Models,
    out: Path,
    pieces: Path,
    seed: int = 0,
    report: Callable[[float, str], None] = lambda fraction, text: None,
) -> Path:
    """Makes the middle frame of each prompt's clip, then the sheet of them.

    Args:
        sheet: What to make.
        models: What to make it with.
        out: Folder of the sheet; created when missing.
        pieces: Folder of the single pictures; those of the same model, size and seed are used
            again.
        seed: Number that each clip's noise is drawn from.
        report: Called with the fraction that is done and a text.

    Raises:
        OSError: if a folder can't be written to.
    """
    out.mkdir(parents=True, exist_ok=True)
    pieces.mkdir(parents=True, exist_ok=True)
    prompts = PROMPTS[: sheet.count]
    pictures = []
    for number, prompt in enumerate(prompts):

        def show(progress: Progress, number: int = number) -> None:
            text = f"{sheet.resolution}, clip {number + 1} of {len(prompts)}"
            report((number + progress.fraction) / len(prompts), text)

        name = f"{models.fingerprint[:12]}-{sheet.resolution}-{seed}-{number + 1:02}.png"
        if not (pieces / name).exists():
            clip = generate_native(Request(prompt, sheet.resolution, seed=seed), models, show)
            _save(Image.fromarray(clip.frames[len(clip.frames) // 2]), pieces / name, 95)
        with Image.open(pieces / name) as picture:
            size = (sheet.width, round(picture.height * sheet.width / picture.width))
            pictures.append(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    image = contact_sheet(pictures, sheet.columns, prompts)
    return _save(image, out / sheet.name, sheet.quality)


def _save(image: Image.Image, path: Path, quality: int) -> Path:
    """Writes a picture whole or not at all; the quality matters to JPEG alone."""
    with whole_file(path) as partial:
        image.save(partial, quality=quality)
    return path
