"""Pyramid Attention Broadcast that tells the passes of a guided step apart.

diffusers' (0.42.1, `hooks/pyramid_attention_broadcast.py`) counts and remembers the calls of each
attention whoever makes them. Where guidance is a pass of its own, as in Wan, the second pass would
get the attention of the first: with every second call skipped, the prompt's pass that of the
negative prompt, and guidance would lead nowhere.
"""

from __future__ import annotations

from typing import Any

from diffusers.hooks.hooks import HookRegistry, StateManager
from diffusers.hooks.pyramid_attention_broadcast import (
    _PYRAMID_ATTENTION_BROADCAST_HOOK,
    PyramidAttentionBroadcastHook,
    PyramidAttentionBroadcastState,
)
from torch import nn


class BroadcastByPass(PyramidAttentionBroadcastHook):
    """The hook of one attention, with a memory for each pass that `cache_context` names."""

    states: StateManager

    @classmethod
    def take_over(cls, hook: PyramidAttentionBroadcastHook) -> None:
        """Makes a hook of diffusers' one of these."""
        del hook.state
        hook.__class__ = cls
        hook.states = StateManager(PyramidAttentionBroadcastState)

    @property
    def state(self) -> PyramidAttentionBroadcastState:
        """What is known of the pass that runs."""
        return self.states.get_state()

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Forgets all passes."""
        self.states.reset()
        return module


def tell_passes_apart(transformer: Any) -> None:
    """Lets each pass of a transformer remember its own attention, once the cache is enabled."""
    for module in transformer.modules():
        registry: HookRegistry | None = getattr(module, "_diffusers_hook", None)
        hook = registry and registry.get_hook(_PYRAMID_ATTENTION_BROADCAST_HOOK)
        if hook is not None:
            BroadcastByPass.take_over(hook)
