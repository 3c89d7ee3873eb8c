"""What a training of the 1.3B model is made of: found and checked before any weights are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import WanTransformer3DModel

from ..dataset.shard_files import Size, size_text
from ..dataset.shards import LatentDataset, text_fingerprint, vae_fingerprint
from ..model.transformer import UltraGenTransformer3DModel
from ..model.windows import check_windows
from ..presets import RESOLUTIONS, ULTRAGEN_SOURCE, WAN, WAN_SOURCE, check_num_frames
from ..weights.fingerprint import fingerprint
from ..weights.folders import check_base, check_kind, check_model_files, check_weights
from ..weights.hub import locate
from ..weights.keys import CONDITIONED
from ..weights.released import load_transformer, load_ultragen
from .checkpoint import check_data
from .wan_options import LAYOUTS, WanOptions

ALIKE = 0.15  # sizes whose areas differ by less are one resolution, whatever their shape
READERS = ("text_encoder", "tokenizer")  # which the dataset has been encoded with already
CHECKPOINT, EXPORT = "checkpoint", "export"


@dataclass(frozen=True)
class Sources:
    """What a training is made of, found and checked, not yet read.

    Attributes:
        base: Wan's folder.
        start: UltraGen's weights; None for the base model's own.
        dataset: The clips.
        clips: Size that is trained → numbers of its clips.
        config: Settings of the transformer.
        settings: What of it can't change while the training goes on, for people.
    """

    base: Path
    start: Path | None
    dataset: LatentDataset
    clips: dict[Size, list[int]]
    config: dict[str, Any]
    settings: dict[str, str]


def check_sources(options: WanOptions, out: Path) -> Sources:
    """Finds and checks what a training is made of, the clips first: the base model may have to be
    downloaded.

    Args:
        options: As in `train_wan`.
        out: The training's folder, which may have a checkpoint.

    Raises:
        ValueError: if something does not fit.
        OSError: if a file is missing, incomplete or damaged.
    """
    options.check()
    dataset = LatentDataset(options.data)
    check_data(out / CHECKPOINT, dataset.fingerprint())
    clips = choose_clips(dataset, options.resolution, options.num_frames)
    base = locate(options.base, WAN_SOURCE)
    dense = check_dense(base)
    there = (base / READERS[0]).is_dir()
    texts = text_fingerprint(base) if there else None
    dataset.check("wan", vae_fingerprint(base), text_encoder=texts)
    start = None if options.start is None else locate_start(options.start)
    if start is None:
        model = convert(dense, options, max(clips, key=area))
    else:
        if options.layout is not None:
            raise ValueError(
                f"The weights of {start} have their own layout: leave out --layout "
                f"{options.layout}, or --start to convert the base model."
            )
        model = check_start(start, dense)
    check_latents(dataset, clips, model)
    settings = {
        "layout": options.layout or ("its own" if start else "paper"),
        "kind of training": options.trained,
    }
    if options.trained != "all":  # what stays is not in checkpoints
        settings["start"] = fingerprint(start or base / "transformer")[:12]
    return Sources(base, start, dataset, clips, dict(model.config), settings)


def area(size: Size) -> int:
    """Pixels of a frame."""
    return size[0] * size[1]


def choose_clips(
    dataset: LatentDataset, resolution: str | None, num_frames: int | None
) -> dict[Size, list[int]]:
    """Size that is trained → numbers of the clips that have it, or more frames.

    Raises:
        ValueError: if there are none.
    """
    if num_frames is not None:
        check_num_frames(num_frames)
    found: dict[Size, list[int]] = {}
    for number, clip in enumerate(dataset.clips):
        size = clip.height, clip.width, min(clip.num_frames, num_frames or clip.num_frames)
        if resolution is None or is_alike(size, resolution):
            found.setdefault(size, []).append(number)
    longest = max((size[2] for size in found), default=0)
    if num_frames is not None and 0 < longest < num_frames:
        raise ValueError(
            f"{dataset.folder} has clips of {longest} frames at most, not of {num_frames}: give "
            f"--frames {longest}, or encode them with `dataset --frames {num_frames}`."
        )
    if not found:
        there = ", ".join(map(size_text, sorted({clip.size for clip in dataset.clips})))
        raise ValueError(
            f"{dataset.folder} has no clips of {resolution}, but of {there}: choose the resolution "
            f"of one of these, or encode the clips with `dataset --resolution {resolution}`."
        )
    return found


def is_alike(size: Size, resolution: str) -> bool:
    """Whether a size is one of a resolution's: as many pixels, in any shape."""
    if resolution not in RESOLUTIONS:
        raise ValueError(f"resolution must be one of {', '.join(RESOLUTIONS)}: {resolution!r}.")
    named = RESOLUTIONS[resolution]
    return abs(area(size) / (named.height * named.width) - 1) < ALIKE


def check_dense(base: Path) -> WanTransformer3DModel:
    """The dense transformer of Wan's folder, on the meta device. The text encoder may be missing.

    Raises:
        ValueError: if it is another model.
        OSError: if a file is missing, incomplete or damaged.
    """
    if (base / READERS[0]).is_dir():
        check_base(base)
    else:
        check_kind(base)
        check_model_files(base, READERS)
        for part in ("transformer", "vae"):
            check_weights(base / part)
    dense = load_transformer(base / "transformer", device="meta")
    if isinstance(dense, UltraGenTransformer3DModel):
        raise ValueError(f"{base} holds UltraGen, where dense Wan is needed: name it by --start.")
    if dense.config.in_channels != dense.config.out_channels:
        raise ValueError(
            f"{base} takes {dense.config.in_channels} channels and gives "
            f"{dense.config.out_channels}: it looks like {CONDITIONED}."
        )
    return dense


def locate_start(start: str) -> Path:
    """UltraGen's weights: a file, a folder, a repository, or the folder of an earlier training."""
    exported = Path(start) / EXPORT
    return exported if exported.is_dir() else locate(start, ULTRAGEN_SOURCE)


def check_start(start: Path, dense: WanTransformer3DModel) -> UltraGenTransformer3DModel:
    """UltraGen's weights on the meta device.

    Raises:
        ValueError: if the base model has other sizes.
        OSError: if a file is missing, incomplete or damaged.
    """
    model = load_ultragen(start, device="meta")
    names = ("num_layers", "num_attention_heads", "ffn_dim", "text_dim", "in_channels")
    theirs = {name: model.config[name] for name in names}
    if theirs != (ours := {name: dense.config[name] for name in names}):
        other = {key: value for key, value in ours.items() if theirs[key] != value}
        raise ValueError(
            f"{start} is of another size than the base model, whose {other} are "
            f"{ {key: theirs[key] for key in other} } there: take both of the same size, 1.3B or "
            "14B."
        )
    return model


def convert(
    dense: WanTransformer3DModel, options: WanOptions, size: Size
) -> UltraGenTransformer3DModel:
    """Dense Wan with UltraGen's attention, whose windows are K × K at a size.

    Raises:
        ValueError: if a LoRA is asked for, which would leave the new parts untrained.
    """
    if options.trained == "lora":
        raise ValueError(
            "A LoRA leaves UltraGen's own parts as they are, and those of a dense model are "
            "untrained: name UltraGen's weights by --start, or take --train new."
        )
    settings = LAYOUTS[options.layout or "paper"](dense.config.num_layers)
    window = tuple(side / WAN.pixels_per_token / options.windows for side in size[:2])
    return UltraGenTransformer3DModel.from_wan(dense, **{**settings, "window_size": window})


def check_latents(
    dataset: LatentDataset, clips: dict[Size, list[int]], model: UltraGenTransformer3DModel
) -> None:
    """Checks that a model can be trained on the clips' latents and texts.

    Raises:
        ValueError: if it has other widths, or windows that don't fit a size.
    """
    widths = {
        "channels": (len(dataset.latents(0)), model.config.in_channels),
        "text features": (dataset.empty_text().shape[1], model.config.text_dim),
    }
    for name, (found, needed) in widths.items():
        if found != needed:
            raise ValueError(
                f"{dataset.folder} has {found} {name}, and the model {needed}: encode the clips "
                "with the base model that is trained."
            )
    check_sizes(model, clips, "Encode them in another bucket.")


def check_sizes(model: UltraGenTransformer3DModel, sizes: Iterable[Size], way_out: str) -> None:
    """Checks that a model can be trained on clips of sizes.

    Raises:
        ValueError: if windows don't fit one, with the way out.
    """
    token = WAN.pixels_per_token
    for size in sizes:
        try:
            if size[0] % token or size[1] % token:
                raise ValueError(f"rows and columns must be multiples of {token}.")
            rows, columns = size[0] // token, size[1] // token
            windows = model.resolve_windows("auto", rows, columns)
            if windows is not None:  # T3-Video's fit any grid
                check_windows(windows, rows, columns)
        except ValueError as error:
            raise ValueError(
                f"Clips of {size_text(size)} can't be trained on: {error} {way_out}"
            ) from error
