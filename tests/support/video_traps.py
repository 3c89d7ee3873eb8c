"""Small video files, each with one of the traps that people's own clips hold.

Colours become YUV here, in float64, and not by ffmpeg, so that what a reader makes of a file is
checked against something else than the library it reads with.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np

# Weights of red and blue in luma: BT.601, BT.709 and BT.2020, by FFmpeg's names for the tags.
LUMA = {"smpte170m": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020nc": (0.2627, 0.0593)}
# Corners: upper left, upper right, lower left, lower right.
CORNERS = ((200, 40, 40), (40, 180, 60), (50, 60, 190), (225, 225, 225))


def corners(height: int = 64, width: int = 96) -> np.ndarray:
    """Four colours that tell which way is up: uint8, h w 3."""
    picture = np.empty((height, width, 3), np.uint8)
    for index, colour in enumerate(CORNERS):
        top, left = index // 2, index % 2
        rows = slice(0, height // 2) if top == 0 else slice(height // 2, None)
        columns = slice(0, width // 2) if left == 0 else slice(width // 2, None)
        picture[rows, columns] = colour
    return picture


def counted(num_frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Plain grey frames, 4 brighter each from 20 on, by which `number_of` tells them apart."""
    levels = 20 + 4 * np.arange(num_frames, dtype=np.uint8)
    return np.tile(levels[:, None, None, None], (1, height, width, 3))


def number_of(frame: np.ndarray) -> int:
    """Which of `counted`'s frames this is."""
    return round((float(frame.mean()) - 20) / 4)


def to_yuv(
    pictures: np.ndarray, matrix: str = "bt709", full: bool = False, bits: int = 8
) -> np.ndarray:
    """R'G'B' → the bytes of planar Y'CbCr 4:2:0 frames.

    Args:
        pictures: In [0, 1], t h w 3, of even height and width.
        matrix: A key of `LUMA`.
        full: Full range, not limited.
        bits: 8, or 10 to 16 in little-endian words of 16.
    """
    kr, kb = LUMA[matrix]
    red, green, blue = np.moveaxis(np.asarray(pictures, np.float64), -1, 0)
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = np.stack([(blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)])
    t, h, w = luma.shape
    chroma = chroma.reshape(2, t, h // 2, 2, w // 2, 2).mean((3, 5))
    top, unit = 2**bits - 1, 2 ** (bits - 8)
    if full:
        codes = luma * top, chroma * top + 128 * unit
    else:
        codes = (luma * 219 + 16) * unit, (chroma * 224 + 128) * unit
    kind = np.uint8 if bits == 8 else "<u2"
    y, uv = (np.rint(code).clip(0, top).astype(kind) for code in codes)
    return np.concatenate([y.reshape(t, -1), *(plane.reshape(t, -1) for plane in uv)], axis=1)


def tags(
    matrix: str = "bt709", primaries: str = "bt709", transfer: str = "bt709", full: bool = False
) -> str:
    """The filter that tags frames without changing them."""
    reach = "pc" if full else "tv"
    return (
        f"setparams=colorspace={matrix}:color_primaries={primaries}"
        f":color_trc={transfer}:range={reach}"
    )


def encode(
    path: Path,
    pictures: np.ndarray,
    rate: str | float = 24,
    *,
    matrix: str = "bt709",
    full: bool = False,
    bits: int = 8,
    filters: str = "null",
    codec: Sequence[str] = ("libx264", "-crf", "1", "-preset", "ultrafast"),
    options: Sequence[str] = (),
) -> Path:
    """Writes frames by ffmpeg, with the colours that `to_yuv` gives them.

    Args:
        pictures: t h w 3, uint8 or floats in [0, 1].
        filters: ffmpeg's, after the frames are YUV; `tags()` names their colours.
    """
    if pictures.dtype == np.uint8:
        pictures = pictures / 255
    height, width = pictures.shape[1:3]
    pixels = "yuv420p" if bits == 8 else f"yuv420p{bits}le"
    ffmpeg(
        *("-f", "rawvideo", "-pix_fmt", pixels, "-s", f"{width}x{height}", "-r", str(rate)),
        *("-i", "-", "-vf", filters, "-c:v", *codec, *options, str(path)),
        data=to_yuv(pictures, matrix, full, bits).tobytes(),
    )
    return path


def ffmpeg(*arguments: str, data: bytes = b"") -> None:
    """Runs ffmpeg quietly; `data` is what it reads from `-`."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-y", "-v", "error", *arguments]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")


# One function a trap: pictures, t h w 3, become a file.

LOSSLESS_265 = ("libx265", "-x265-params", "lossless=1:log-level=error")
# ITU-R BT.2087-0, from linear BT.709 to linear BT.2020.
TO_2020 = ((0.6274, 0.3293, 0.0433), (0.0691, 0.9195, 0.0114), (0.0164, 0.0880, 0.8956))


def plain(path: Path, pictures: np.ndarray, rate: float = 24) -> Path:
    """No trap: progressive, tagged BT.709."""
    return encode(path, pictures, rate, filters=tags())


def turned(
    path: Path, pictures: np.ndarray, rate: float = 24, degrees: int = 90, mirror: str = ""
) -> Path:
    """Stored as given, to be shown turned to the left, and mirrored: `h`, `v` or not at all."""
    flip = [f"-display_{mirror}flip"] if mirror else []
    return _copied(path, pictures, rate, "-display_rotation", str(degrees), *flip)


def anamorphic(
    path: Path, pictures: np.ndarray, rate: float = 24, pixel_shape: str = "4/3"
) -> Path:
    """Pixels that are wider than high, or higher than wide."""
    return encode(path, pictures, rate, filters=f"setsar={pixel_shape},{tags()}")


def full_range(path: Path, pictures: np.ndarray, rate: float = 24) -> Path:
    return encode(path, pictures, rate, full=True, filters=tags(full=True))


def ten_bits(path: Path, pictures: np.ndarray, rate: float = 24) -> Path:
    return encode(path, pictures, rate, bits=10, filters=tags(), codec=LOSSLESS_265)


def interlaced(path: Path, pictures: np.ndarray, rate: float = 50) -> Path:
    """Two pictures a frame, the earlier one in the upper rows of each pair; `rate` is theirs."""
    woven = pictures[::2].copy()
    woven[:, 1::2] = pictures[1::2, 1::2]
    flags = ("-flags", "+ildct+ilme")
    return encode(path, woven, rate / 2, filters=f"setfield=tff,{tags()}", options=flags)


def variable_rate(path: Path, pictures: np.ndarray, milliseconds: Sequence[int]) -> Path:
    """Each picture at its own time; the last stays as long as the one before."""
    stamps = "+".join(f"eq(N,{index})*{time}" for index, time in enumerate(milliseconds))
    filters = f"settb=1/1000,setpts='{stamps}',{tags()}"
    options = ("-fps_mode", "passthrough", "-enc_time_base", "1:1000")
    return encode(path, pictures, filters=filters, options=options)


def hdr(
    path: Path,
    light: np.ndarray,
    rate: float = 24,
    transfer: str = "pq",
    options: str = "",
) -> Path:
    """HDR in 10 bits with BT.2020's primaries.

    Args:
        light: Linear, BT.709's primaries, in cd/m², t h w 3; at most 1000.
        transfer: `pq` or `hlg`.
        options: x265's, such as `max-cll=600,200`.
    """
    codes = pq(light @ np.array(TO_2020).T) if transfer == "pq" else hlg(light)
    name = "smpte2084" if transfer == "pq" else "arib-std-b67"
    codec = (*LOSSLESS_265[:2], ":".join(filter(None, (LOSSLESS_265[2], options))))
    filters = tags("bt2020nc", "bt2020", name)
    return encode(path, codes, rate, matrix="bt2020nc", bits=10, filters=filters, codec=codec)


def pq(light: np.ndarray) -> np.ndarray:
    """cd/m² → codes in [0, 1]: SMPTE ST 2084, equation 5.2."""
    power = (np.maximum(light, 0) / 10000) ** (1305 / 8192)
    return ((107 / 128 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def hlg(light: np.ndarray) -> np.ndarray:
    """cd/m² on a display of 1000 → codes in [0, 1]: ITU-R BT.2100-2, table 5, from its display's
    light back to the scene's and through the OETF."""
    shown = np.maximum(light @ np.array(TO_2020).T, 0) / 1000
    luminance = np.maximum(shown @ np.array([0.2627, 0.6780, 0.0593]), 1e-9)
    scene = shown * luminance[..., None] ** ((1 - 1.2) / 1.2)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    bright = a * np.log(np.maximum(12 * scene - b, 1e-9)) + c
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright)


def wide_colours(path: Path, pictures: np.ndarray, rate: float = 24) -> Path:
    """BT.2020's primaries and matrix without HDR, in 10 bits."""
    codes = ((pictures / 255) ** 2.4 @ np.array(TO_2020).T) ** (1 / 2.4)
    filters = tags("bt2020nc", "bt2020", "bt2020-10")
    return encode(
        path, codes, rate, matrix="bt2020nc", bits=10, filters=filters, codec=LOSSLESS_265
    )


def transparent(path: Path, pictures: np.ndarray, rate: float = 24) -> Path:
    """RGB with an alpha that hides the left half, in QuickTime's own codec."""
    alpha = np.full((*pictures.shape[:3], 1), 255, np.uint8)
    alpha[:, :, : pictures.shape[2] // 2] = 0
    height, width = pictures.shape[1:3]
    ffmpeg(
        *("-f", "rawvideo", "-pix_fmt", "rgba", "-s", f"{width}x{height}", "-r", str(rate)),
        *("-i", "-", "-c:v", "qtrle", "-pix_fmt", "argb", str(path)),
        data=np.concatenate([pictures, alpha], axis=-1).tobytes(),
    )
    return path


def several_streams(path: Path, pictures: np.ndarray, rate: float = 24) -> Path:
    """Sound that is no sound, a dark stream, and the pictures, which are marked as default."""
    first, second = path.with_stem("first"), path.with_stem("second")
    plain(first, np.zeros_like(pictures), rate)
    plain(second, pictures, rate)
    ffmpeg(
        *("-i", str(first), "-i", str(second), "-f", "lavfi", "-t", "1", "-i", "anoisesrc"),
        *("-map", "2", "-map", "0", "-map", "1", "-c:v", "copy", "-c:a", "aac"),
        *("-bsf:a", "noise=amount=1"),  # damages the sound
        *("-disposition:v:0", "0", "-disposition:v:1", "default", str(path)),
    )
    first.unlink()
    second.unlink()
    return path


def edited(path: Path, pictures: np.ndarray, rate: float = 24, skipped: int = 6) -> Path:
    """All frames are stored, and an edit list says that the first are not shown."""
    return _copied(path, pictures, rate, "-ss", str(skipped / rate))


def _copied(path: Path, pictures: np.ndarray, rate: float, *options: str) -> Path:
    """A plain file, copied with options for its input."""
    original = path.with_stem("original")
    plain(original, pictures, rate)
    ffmpeg(*options, "-i", str(original), "-c", "copy", str(path))
    original.unlink()
    return path


def sound_only(path: Path) -> Path:
    ffmpeg("-f", "lavfi", "-t", "1", "-i", "anoisesrc", "-c:a", "aac", str(path))
    return path


def cut_off(path: Path, part: float = 0.6) -> Path:
    """Keeps the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: round(len(data) * part)])
    return path


def overwrite(path: Path, part: float = 0.6, size: int = 3000) -> Path:
    """Puts noise over some bytes in the middle of a file."""
    data = bytearray(path.read_bytes())
    first = round(len(data) * part)
    data[first : first + size] = np.random.default_rng(0).bytes(size)
    path.write_bytes(bytes(data))
    return path


def _bright(path: Path, pictures: np.ndarray, rate: float = 24) -> Path:
    """Pictures as HDR whose white is HDR's reference white."""
    return hdr(path, 203 * (pictures / 255) ** 2.4, rate)


# Eight files that between them hold what goes wrong most: called with a path that ends in .mp4,
# pictures of a height that is a multiple of 4, and their rate.
TRAPS: dict[str, Callable[[Path, np.ndarray, float], Path]] = {
    "turned": turned,
    "anamorphic": anamorphic,
    "interlaced": interlaced,
    "full range": full_range,
    "10 bits": ten_bits,
    "HDR": _bright,
    "several streams": several_streams,
    "edited": edited,
}
