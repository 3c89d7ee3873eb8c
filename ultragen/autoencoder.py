"""An alias: pipelines that were saved before the package had rooms name this module, see
`ultragen.transformer`."""

from diffusers.models.modeling_utils import ModelMixin

from .model.autoencoder import CompactAutoencoder

__all__ = ["CompactAutoencoder", "ModelMixin"]
