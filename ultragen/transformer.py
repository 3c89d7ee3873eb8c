"""An alias: pipelines that were saved before the package had rooms name this module.

diffusers looks for a component's class, and for the library's class that tells how to load it, in
the module that `model_index.json` names (`get_class_obj_and_candidates`, diffusers 0.42.1).
"""

from diffusers.models.modeling_utils import ModelMixin

from .model.transformer import UltraGenTransformer3DModel

__all__ = ["ModelMixin", "UltraGenTransformer3DModel"]
