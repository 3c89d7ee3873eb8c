"""Guidance's second pass on a second device, at the same time as the first one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn


class TransformerCopy:
    """A transformer with its adapters and its cache, copied to another device and run from this
    one. On the same device both share their weights.

    Args:
        transformer: What is copied, as it is now.
        device: Where the copy lies and runs.

    Raises:
        ValueError: if the transformer is offloaded or hooked in another way.
    """

    def __init__(self, transformer: Any, device: torch.device) -> None:
        self.device = device
        with without_cache(transformer) as cache:
            check_unhooked(transformer)
            # Given to the copy from the start: it never takes room beside the original.
            tensors: dict[int, Any] = {
                id(p): nn.Parameter(p.detach().to(device), p.requires_grad)
                for p in transformer.parameters()
            }
            tensors |= {id(b): b.to(device) for b in transformer.buffers()}
            self.model = deepcopy(transformer, tensors)
        self.thread, self.warm = ThreadPoolExecutor(1, "guidance"), False
        if cache is not None:
            self.model.enable_cache(cache)

    def start(self, context: str, where: dict[str, Any], **arguments: Any) -> Future[Tensor]:
        """Begins to run the copy, in a thread of its own: a thread that gives work to one GPU waits
        once that GPU's queue is full, and would come to the other one too late.

        Args:
            context: Name of the pass in diffusers' caches, see `CacheMixin.cache_context`.
            where: The step, for caches.
            arguments: What the transformer is called with, on the original's device.

        Returns:
            What will be the output, on the copy's device.
        """
        # A copy between two GPUs waits for all that either was given before it: what the second one
        # needs goes there before the first one has work.
        there = {
            name: value.to(self.device, non_blocking=True) if torch.is_tensor(value) else value
            for name, value in arguments.items()
        }
        kind = self.device.type
        # Both are each thread's own.
        grad = torch.is_grad_enabled()
        cast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

        def run() -> Tensor:
            # Some libraries launch on the current device, wherever the tensors are.
            current = torch.cuda.device(self.device) if kind == "cuda" else nullcontext()
            with (
                torch.set_grad_enabled(grad),
                torch.autocast(kind, cast[1], cast[0]),
                current,
                self.model.cache_context(context, **where),
            ):
                return self.model(return_dict=False, **there)[0]

        output = self.thread.submit(run)
        if not self.warm:  # what libraries compile at its first use, they shall not compile twice
            wait([output])
            self.warm = True
        return output


@contextmanager
def without_cache(transformer: Any) -> Iterator[Any]:
    """Takes a transformer's cache away for a while; yields its configuration, or None. Copied hooks
    would call the original."""
    config = transformer._cache_config
    if config is not None:
        transformer.disable_cache()
    try:
        yield config
    finally:
        if config is not None:
            transformer.enable_cache(config)


def check_unhooked(transformer: nn.Module) -> None:
    """Checks that nothing replaces the forward of a transformer or of a part of it.

    Raises:
        ValueError: if something does, with its name.
    """
    found: set[str] = set()
    for module in transformer.modules():
        if hasattr(module, "_hf_hook"):
            found.add(type(module._hf_hook).__name__)
        found |= set(getattr(getattr(module, "_diffusers_hook", None), "hooks", ()))
    if found:
        raise ValueError(
            f"The transformer is offloaded or hooked ({', '.join(sorted(found))}) and can't be "
            "copied to a second device: take that off, for example with pipe.remove_all_hooks() "
            "and pipe.to(device), or call pipe.disable_parallel_guidance()."
        )


def check_second(device: torch.device | str, first: torch.device | str) -> None:
    """Checks that a second device computes beside the first one.

    Raises:
        ValueError: if it is not there, the same one, or a processor beside a GPU.
    """
    second, first = check_device(device), torch.device(first)
    index = first.index or 0
    same = second.type == first.type and (second.index or 0) == index
    if same or second.type != first.type:
        others = [f"cuda:{i}" for i in range(torch.cuda.device_count()) if i != index]
        known = f"choose {' or '.join(others)}" if others else "this machine has no second GPU"
        raise ValueError(
            f"Guidance on {device} would save nothing beside {first}: {known}, or leave it out."
        )


def check_device(device: torch.device | str) -> torch.device:
    """A device that is there.

    Raises:
        ValueError: if it is not, with those that are.
    """
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(
            f"There is no device {str(device)!r} here: choose from {', '.join(there)}."
        ) from error
    if found.type == "meta":
        raise ValueError("A transformer can't run on 'meta': choose a device such as 'cuda:1'.")
    return found
