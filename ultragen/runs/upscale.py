"""The two-stage baseline: a clip of the base model's own size, enlarged frame by frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from ..files import first_line
from ..hardware import is_out_of_memory
from ..model.upscaler import UpscalerNetwork
from ..pictures import is_black, to_frames
from ..sampling.sampler import GenerationError
from ..weights.fingerprint import check_shipped

NAMES = ("lanczos", "network")
TRIED = 32  # rows and columns of the picture that networks are tried on


class SpandrelNetwork(nn.Module):
    """A network that spandrel loaded, with the padding that its sizes need."""

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self.model = descriptor.model
        self.descriptor = descriptor

    def forward(self, images: Tensor) -> Tensor:
        return self.descriptor(images)


class Upscaler:
    """Lanczos: enlarges every frame by itself, in memory that does not grow with the clip.

    Attributes:
        name: What labels call it.
    """

    name = "Lanczos"

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Upscaler:
        """Moves the weights, where there are any; returns itself."""
        return self

    def magnify(self, frame: np.ndarray) -> np.ndarray:
        """Enlarges a frame (uint8, h w 3) by the network's own factor; Lanczos has none."""
        return frame

    def stream(self, frames: Iterable[np.ndarray], height: int, width: int) -> Iterator[np.ndarray]:
        """Enlarges frames (uint8, h w 3) to an exact size, one at a time as they are asked for.

        Raises:
            ValueError: A frame of another type or shape, or a size that is not positive.
            GenerationError: A network gave something that is no picture.
        """
        if height < 1 or width < 1:
            raise ValueError(f"the target size must be positive, not {height}×{width}")
        for frame in frames:
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                raise ValueError(
                    f"frames to upscale are uint8, h w 3, not {frame.dtype} of {frame.shape}"
                )
            yield _lanczos(self.magnify(frame), height, width)

    def upscale(self, frames: np.ndarray, height: int, width: int) -> np.ndarray:
        """Enlarges a clip: uint8, t h w 3 → t height width 3; errors as in `stream`."""
        if len(frames) == 0:
            raise ValueError("there are no frames to upscale")
        return np.stack(list(self.stream(frames, height, width)))


class NetworkUpscaler(Upscaler):
    """A network enlarges each frame by its own factor, Lanczos takes it to the exact size.

    Args:
        network: Maps `b c h w` in [0, 1] to an enlarged picture of the same layout.
        name: What labels call it.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        self.name = name
        # Convolutions on a CPU are faster in this order, and cuDNN's no slower.
        self.network: nn.Module = network.eval()
        for parameter in network.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> NetworkUpscaler:
        """Moves the weights; to float32 where the network can't compute in `dtype`.

        Raises:
            ValueError: It gives no picture there.
        """
        # Of spandrel's networks; some that can't do it say that they can.
        descriptor = getattr(self.network, "descriptor", None)
        if dtype == torch.bfloat16 and not getattr(descriptor, "supports_bfloat16", True):
            dtype = torch.float32
        # diffusers' own warns of what it would keep in float32, also where that is nothing.
        nn.Module.to(self.network, device=device, dtype=dtype)
        if dtype != torch.float32:
            try:
                self.check()
            except ValueError:
                nn.Module.to(self.network, dtype=torch.float32)
        self.check()
        return self

    def check(self) -> None:
        """Enlarges a small picture, before minutes of other work.

        Raises:
            ValueError: The network fails, or gives no picture of a larger or the same size.
        """
        small = np.linspace(64, 255, TRIED * TRIED * 3).astype(np.uint8).reshape(TRIED, TRIED, 3)
        try:
            large = self.magnify(small)
        except Exception as error:  # a network of somebody else's raises whatever it likes
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"The upscaler {self.name} can't enlarge a small picture: {first_line(error)}. "
                "Choose lanczos, or another file."
            ) from error
        height, width, channels = large.shape
        if height < TRIED or width != height or channels != 3 or is_black(large):
            shape = " × ".join(map(str, large.shape))
            seen = "a black one" if is_black(large) else f"one of {shape} values"
            raise ValueError(
                f"The upscaler {self.name} makes {seen} of a bright picture of {TRIED} × {TRIED}: "
                "its weights may be damaged. Choose lanczos, or another file."
            )

    @torch.inference_mode()
    def magnify(self, frame: np.ndarray) -> np.ndarray:
        weight = next(self.network.parameters())
        image = torch.tensor(frame, device=weight.device).to(weight.dtype) / 255
        image = self.network(rearrange(image, "h w c -> 1 c h w"))
        if not torch.isfinite(image).all():  # it would become a black picture
            raise GenerationError(
                f"The upscaler {self.name} gave numbers that are not finite: its weights may be "
                "damaged, or not meant for the precision that is computed in. Choose lanczos, or "
                "compute in float32, ULTRAGEN_DTYPE=float32."
            )
        return to_frames(rearrange(image, "1 c h w -> c 1 h w"))[0]


def _lanczos(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    if frame.shape[:2] == (height, width):
        return frame
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))


def load_upscaler(name_or_path: str | Path, model_root: Path) -> Upscaler:
    """Loads an upscaler.

    Args:
        name_or_path: `lanczos`, `network` (the trained one of the model), or a super-resolution
            file that the optional package spandrel reads.
        model_root: The model's folder, whose subfolder `upscaler` holds the network.

    Raises:
        OSError: The network's folder lacks a file, or one is damaged.
        ValueError: There is no such upscaler, its weights are of another layout, or it can't
            enlarge a small picture; the text names the upscaler, the file or folder.
        ImportError: A file is given and spandrel can't be imported.
    """
    if name_or_path == "lanczos":
        return Upscaler()
    if name_or_path == "network":
        check_shipped(Path(model_root) / "upscaler")
        network = UpscalerNetwork.from_pretrained(
            Path(model_root) / "upscaler", torch_dtype=torch.float32, local_files_only=True
        )
        return _tried(NetworkUpscaler(network, "×4 network"))
    path = Path(name_or_path)
    if not path.is_file():
        raise ValueError(
            f"unknown upscaler {str(name_or_path)!r}: choose one of {', '.join(NAMES)}, or the"
            " path of a super-resolution file"
        )
    return _tried(NetworkUpscaler(_load_foreign(path), path.stem))


def _tried(upscaler: NetworkUpscaler) -> NetworkUpscaler:
    upscaler.check()
    return upscaler


def _load_foreign(path: Path) -> nn.Module:
    try:
        from spandrel import ImageModelDescriptor, ModelLoader
    except (ImportError, RuntimeError) as error:  # torchvision built for another torch: the latter
        raise ImportError(
            f"to load {path} the package spandrel is needed, and it can't be imported"
            f" ({first_line(error)}): pip install -e '.[spandrel]' in the clone's folder,"
            " with a torchvision that fits the installed torch; or choose one of "
            + ", ".join(NAMES)
        ) from error
    try:
        model = ModelLoader().load_from_file(path)
    except Exception as error:  # the readers of a damaged file raise whatever they like
        raise ValueError(
            f"{path} is no super-resolution file that spandrel can read: {first_line(error)}"
        ) from error
    if not isinstance(model, ImageModelDescriptor) or model.input_channels != 3:
        raise ValueError(f"{path} holds no network that enlarges RGB pictures")
    return SpandrelNetwork(model)
