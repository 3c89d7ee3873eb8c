"""UltraGen: native high-resolution text-to-video generation with hierarchical window attention."""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

# Resolved at first use: `import ultragen` must not take the seconds that torch takes.
_HOMES = {
    "EMBEDDED_MODEL": "ultragen.presets",
    "CompactAutoencoder": "ultragen.model.autoencoder",
    "UltraGenPipeline": "ultragen.pipeline",
    "UltraGenTransformer3DModel": "ultragen.model.transformer",
    "UpscalerNetwork": "ultragen.model.upscaler",
    "encode_video": "ultragen.video",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
