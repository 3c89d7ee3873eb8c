"""The networks that metrics look through: loaded from files, always named with their weights.

None is downloaded by itself. The attribute classifier comes with the model; ImageNet features with
two small packages; I3D, the backbones of LPIPS, and CLIP are files that a user names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ..model.classifier import AttributeClassifier
from ..weights.efficientnet import load_efficientnet, standardise
from .metrics import FrameNetwork, PerceptualDistance, TextFrameNetwork, TubeNetwork

Device = torch.device | str

TUBE_NETWORKS = ("classifier", "imagenet", "i3d=FILE")
CLIP_FRAMES = 17  # of a tube that the classifier sees: the length it is trained on
I3D_FRAMES, I3D_LEAST, I3D_SIZE = 16, 10, 224
IMAGENET_STRIDE, IMAGENET_SIZE = 4, 224


def digest(path: Path) -> str:
    """First eight hexadecimal digits of a file's SHA-256, or of all weights in a folder."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:8]


# HD-FVD


def load_tube_network(
    choice: str, classifier: Callable[[], tuple[AttributeClassifier, str]], device: Device = "cpu"
) -> TubeNetwork:
    """Loads the feature network of HD-FVD.

    Args:
        choice: `classifier`, `imagenet`, or `i3d=FILE` with the TorchScript file of I3D that
            StyleGAN-V's authors published.
        classifier: Gives the classifier and its name where it is chosen.
        device: Where it computes.

    Raises:
        ValueError: for another choice, or a file that can't be used.
        ImportError: The packages with the ImageNet network are missing.
    """
    kind, _, path = choice.partition("=")
    if choice == "classifier":
        return classifier_tubes(*classifier())
    if choice == "imagenet":
        return imagenet_tubes(device)
    if kind == "i3d" and path:
        return i3d_tubes(Path(path), device)
    raise ValueError(
        f"unknown feature network {choice!r}: choose one of {', '.join(TUBE_NETWORKS)}."
    )


def classifier_tubes(network: AttributeClassifier, name: str) -> TubeNetwork:
    """The attribute classifier's features of patches in its own input size."""

    def embed(video: Tensor) -> Tensor:
        return network.embed(network.choose(video))

    size = (network.config.height, network.config.width)
    return TubeNetwork(name, embed, CLIP_FRAMES, 1, *size, device=network.device)


def i3d_tubes(path: Path, device: Device = "cpu") -> TubeNetwork:
    """I3D trained on Kinetics-400, as TorchScript: 400 features of 16 frames.

    Raises:
        ValueError: The file is missing or no TorchScript.
    """
    network = _torchscript(path, device)

    def embed(video: Tensor) -> Tensor:
        # It takes [-1, 1] where it is told not to rescale, and patches have its size.
        return network(2 * video - 1, rescale=False, resize=False, return_features=True)

    name = f"I3D {path.name} {digest(path)}"
    return TubeNetwork(name, embed, I3D_FRAMES, I3D_LEAST, I3D_SIZE, I3D_SIZE, device)


def _torchscript(path: Path, device: Device) -> torch.jit.ScriptModule:
    if not path.is_file():
        raise ValueError(f"there is no file {path}: download I3D's TorchScript and name it.")
    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"{path} is not a TorchScript file, as I3D's is.") from error


def imagenet_tubes(device: Device = "cpu") -> TubeNetwork:
    """EfficientNet-Lite0 trained on ImageNet: 1280 features of every fourth frame, no motion.

    Raises:
        ImportError: Its packages are missing.
    """
    pictures, version = _imagenet(device)
    name = f"EfficientNet-Lite0, every {IMAGENET_STRIDE}th frame, {version}"
    size = IMAGENET_SIZE
    return TubeNetwork(
        name, lambda video: pictures(video[:, :, 0]), IMAGENET_STRIDE, 1, size, size, device
    )


def _imagenet(device: Device) -> tuple[Callable[[Tensor], Tensor], str]:
    """What maps pictures `b 3 h w` in [0, 1] to features `b d`, and its weights' digest.

    Raises:
        ImportError: Its packages are missing.
    """
    network, path = load_efficientnet(0, "measure", "choose another one with --features")
    network.to(device)

    def embed(pictures: Tensor) -> Tensor:
        return network.extract_features(standardise(pictures)).mean((2, 3))

    return embed, digest(path)


# HD-LPIPS

POOL = "M"
# Convolutions as channels, kernel and stride; after which activations the distance reads.
LPIPS_LAYERS: dict[str, tuple[tuple[str | tuple[int, int, int], ...], tuple[int, ...], int]] = {
    "alex": (
        ((64, 11, 4), POOL, (192, 5, 1), POOL, (384, 3, 1), (256, 3, 1), (256, 3, 1)),
        (0, 1, 2, 3, 4),
        3,
    ),
    "vgg": (
        (
            *((64, 3, 1), (64, 3, 1), POOL, (128, 3, 1), (128, 3, 1), POOL),
            *((256, 3, 1), (256, 3, 1), (256, 3, 1), POOL),
            *((512, 3, 1), (512, 3, 1), (512, 3, 1), POOL),
            *((512, 3, 1), (512, 3, 1), (512, 3, 1)),
        ),
        (1, 3, 6, 9, 12),
        2,
    ),
}
"""Layers, the numbers of the convolutions that are read, and the size of the pooling."""


class LPIPS(nn.Module):
    """Learned perceptual distance (arXiv 1801.03924), version 0.1, without torchvision.

    Args:
        net: `alex` or `vgg`.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str) -> None:
        super().__init__()
        layers, self.read, pooling = LPIPS_LAYERS[net]
        # Numbered as in torchvision, whose files name the weights by the numbers.
        self.features, channels, widths = nn.Sequential(), 3, []
        for layer in layers:
            if isinstance(layer, str):
                self.features.append(nn.MaxPool2d(pooling, 2))
                continue
            width, kernel, stride = layer
            # AlexNet's first layer pads less than half its kernel.
            padding = 2 if kernel == 11 else kernel // 2
            self.features.append(nn.Conv2d(channels, width, kernel, stride, padding))
            self.features.append(nn.ReLU())
            channels = width
            widths.append(width)
        self.weights = nn.ParameterList(torch.zeros(widths[i]) for i in self.read)
        # ImageNet's means and deviations, of values in [-1, 1], as LPIPS's `ScalingLayer` has them.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    def activations(self, images: Tensor) -> list[Tensor]:
        """Pictures `b 3 h w` in [0, 1] → activations of the layers that are read, unit vectors."""
        hidden, found = (2 * images - 1 - self.shift) / self.scale, []
        for layer in self.features:
            hidden = layer(hidden)
            if isinstance(layer, nn.ReLU):
                found.append(hidden)
        chosen = [found[i] for i in self.read]
        return [x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt() for x in chosen]

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The mean distance of two batches of pictures, a scalar."""
        pairs = zip(self.activations(first), self.activations(second), self.weights, strict=True)
        errors = [
            torch.einsum("bdhw,d->bhw", (a - b).square(), weight).mean() for a, b, weight in pairs
        ]
        return torch.stack(errors).sum()


def load_perceptual(choice: str, device: Device = "cpu") -> PerceptualDistance:
    """Loads the distance of HD-LPIPS.

    Args:
        choice: `alex=FILE` or `vgg=FILE`, with torchvision's weights of AlexNet or VGG-16. The
            trained weights of the layers come with torchmetrics.
        device: Where it computes.

    Raises:
        ValueError: for another choice, or a file that can't be used.
        ImportError: torchmetrics is missing.
    """
    net, _, path = choice.partition("=")
    if net not in LPIPS_LAYERS or not path:
        raise ValueError(f"unknown LPIPS backbone {choice!r}: choose alex=FILE or vgg=FILE.")
    network = LPIPS(net)
    try:
        backbone = torch.load(path, map_location="cpu", weights_only=True)
        features = {k: v for k, v in backbone.items() if k.startswith("features.")}
        network.load_state_dict({**network.state_dict(), **features})
    except OSError as error:
        raise ValueError(f"the backbone {path} can't be read ({error.strerror}).") from error
    except Exception as error:  # the readers of a damaged file raise whatever they like
        raise ValueError(f"{path} does not hold torchvision's weights of {net}.") from error
    trained = torch.load(_layer_weights(net), map_location="cpu", weights_only=True)
    for i, weight in enumerate(network.weights):
        weight.data = trained[f"lin{i}.model.1.weight"].flatten()
    network = network.eval().to(device)
    return PerceptualDistance(f"LPIPS {net} 0.1, {digest(Path(path))}", network, device)


def _layer_weights(net: str) -> Path:
    try:
        import torchmetrics
    except ImportError as error:
        raise ImportError("HD-LPIPS needs one more package: pip install torchmetrics.") from error
    return Path(torchmetrics.__file__).parent / f"functional/image/lpips_models/{net}.pth"


# Frames and texts


def classifier_frames(network: AttributeClassifier, name: str) -> FrameNetwork:
    """The attribute classifier's features of single frames."""

    def embed(frame: Tensor) -> Tensor:
        return network.embed(rearrange(network.reduce(frame), "b c h w -> b c 1 h w"))

    return FrameNetwork(name, embed, network.device)


def imagenet_frames(device: Device = "cpu") -> FrameNetwork:
    """EfficientNet-Lite0's features of the middle of single frames.

    Raises:
        ImportError: Its packages are missing.
    """
    pictures, version = _imagenet(device)
    return FrameNetwork(
        f"EfficientNet-Lite0, middle of the frame, {version}",
        lambda frame: pictures(middle_square(frame, IMAGENET_SIZE)),
        device,
    )


def middle_square(frame: Tensor, size: int) -> Tensor:
    """A picture `1 3 h w` with its shorter side resized, its middle kept: `1 3 size size`."""
    height, width = frame.shape[-2:]
    scale = size / min(height, width)
    shape = (max(size, round(height * scale)), max(size, round(width * scale)))
    frame = functional.interpolate(frame, shape, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return frame[..., top : top + size, left : left + size]


def load_clip(name_or_path: str, device: Device = "cpu") -> TextFrameNetwork:
    """Loads CLIP in the layout of transformers.

    Args:
        name_or_path: A folder, or a model of the hub such as `openai/clip-vit-base-patch32`.
        device: Where it computes.

    Raises:
        ValueError: There is no such model, or no connection to the hub.
    """
    from transformers import AutoTokenizer, CLIPModel

    try:
        model = CLIPModel.from_pretrained(name_or_path).eval().to(device)
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except Exception as error:  # loaders raise many kinds
        raise ValueError(
            f"CLIP can't be loaded from {name_or_path!r}: name a folder that holds it, or connect "
            "to the hub."
        ) from error

    @torch.inference_mode()
    def embed_text(text: str) -> Tensor:
        tokens = tokenizer(text, truncation=True, return_tensors="pt").to(device)
        return model.get_text_features(**tokens).pooler_output

    embed = partial(_embed_frame, model)
    return TextFrameNetwork(f"CLIP {name_or_path}", embed, device, embed_text=embed_text)


def _embed_frame(model: Any, frame: Tensor) -> Tensor:
    """The shorter side resized, the middle kept, as CLIP was trained."""
    from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    frame = middle_square(frame, model.config.vision_config.image_size)
    mean, std = (frame.new_tensor(x)[:, None, None] for x in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return model.get_image_features(pixel_values=(frame - mean) / std).pooler_output
