"""A training step of the transformers: forward and backward for one clip, without an optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..ops.gradients import Recomputation
from .bench import Bench
from .cases import VARIANTS, Case, Variant, arguments, build
from .forward import operations_of
from .machine import default_dtype

FORWARD_PASSES = 4
"""Forward passes that cost as much as a step: with gradient checkpointing every layer runs forward
twice, and its backward pass takes two products for each of the forward pass."""


HOST = "host"
Recipe = Callable[[], Recomputation]
RECIPES: dict[str, Recipe] = {
    "": Recomputation,
    f", {HOST}": partial(Recomputation, results="all", host_memory=True),
}
"""What is kept of a layer, by what a variant's name is followed by in the tables; made anew for
each measurement, because its room in the host's memory is never given back."""


def measure_training(bench: Bench, case: Case) -> None:
    """Measures every variant's step."""
    for variant in VARIANTS[case.family]:
        dense = variant.windows is None  # as diffusers computes it
        recipes: Mapping[str, Recipe | None] = {"": None} if dense else RECIPES
        for suffix, recipe in recipes.items():
            name = variant.name + suffix
            bench.attempt(case, name, partial(measure_step, bench, case, variant, name, recipe))


def measure_step(
    bench: Bench,
    case: Case,
    variant: Variant,
    name: str,
    make_recipe: Recipe | None,
) -> None:
    """Measures one variant, with gradient checkpointing of every layer: diffusers' own, or ours."""
    recipe = None if make_recipe is None else make_recipe()
    operations = operations_of(case, variant)
    floor = FORWARD_PASSES * bench.report.machine.floor(operations)
    bench.require(floor)
    dtype = default_dtype(bench.device)
    model = build(case.family, variant, bench.device, dtype).train()
    model.enable_gradient_checkpointing(recipe)  # type: ignore[operator]

    def step(given: dict[str, Any]) -> None:
        with torch.enable_grad():
            model(**given)[0].float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    # What is compiled at its first use is compiled on one frame: of steps that take long, the
    # first is the one that counts. But room in the host's memory takes seconds to be had.
    first = case if recipe is not None and recipe.host_memory else replace(case, frames=1)
    step(arguments(first, variant, bench.device, dtype))
    call = partial(step, arguments(case, variant, bench.device, dtype))
    work = FORWARD_PASSES * sum(operations.values())
    bench.record(case, bench.measure(name, call, work, floor))
