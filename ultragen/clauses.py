"""An alias: pipelines that were saved before the package had rooms name this module, see
`ultragen.transformer`."""

from transformers import PreTrainedModel

from .model.text_encoder import ClauseTextEncoder

__all__ = ["ClauseTextEncoder", "PreTrainedModel"]
