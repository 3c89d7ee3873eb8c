"""Steps whose velocity is predicted from those before, by diffusers' TaylorSeer cache.

The transformer's last layer gets a Taylor series of first order in the number of the step (Liu et
al., 2025, arXiv 2503.06923, eq. 4), and no block runs in between. diffusers can also predict each
attention and feed-forward network, at the cost of two features for each of them and each pass of a
guided step: 190 GB for a 1080p clip of the 1.3B model. Its other caches decide by values: what they
save is not known before a run, and processes that compute one clip together would part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..presets import CACHES

if TYPE_CHECKING:
    from diffusers import TaylorSeerCacheConfig

FIRST_STEPS = 5
"""Of each pass, which are always computed: the composition is decided there. After three, a clip of
ten steps became another scene; of 30, five give 4 dB more than three, seven no more than five."""


def cache_config(cache: str) -> TaylorSeerCacheConfig:
    """The configuration of one of `CACHES` other than `off`, for `enable_cache`."""
    import torch
    from diffusers import TaylorSeerCacheConfig

    return TaylorSeerCacheConfig(
        CACHES[cache],
        disable_cache_before_step=FIRST_STEPS,
        taylor_factors_dtype=torch.float32,
        use_lite_mode=True,
    )


def computed_passes(cache: str, passes: int) -> int:
    """Of so many passes with the same text, one a step, those that run the blocks."""
    # After the first steps one is predicted before any other is computed, whatever the interval.
    later = max(passes - FIRST_STEPS - 1, 0)
    return passes if cache == "off" else min(passes, FIRST_STEPS) + -(-later // CACHES[cache])


@contextmanager
def cached(transformer: Any, cache: str) -> Iterator[None]:
    """Lets a transformer use one of `CACHES` for a while; nothing of it is left after that."""
    if cache == "off":
        yield
        return
    transformer.enable_cache(cache_config(cache))
    try:
        yield
    finally:
        transformer.disable_cache()
