"""Close and remote windows: which tokens they hold, and back again; with kernels and without."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import product
from math import prod

import pytest
import torch
from einops import rearrange
from kernels import DEVICE
from t3_reference import windows

from ultragen.ops.dispatch import use
from ultragen.ops.strided_windows import merge_close, merge_remote, split_close, split_remote

GRID, WIDTH = (4, 6, 2), 3
CUTS = {False: (split_close, merge_close), True: (split_remote, merge_remote)}
FORMS = ["plain", *(["triton"] if find_spec("triton") else [])]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strided", CUTS)
@pytest.mark.parametrize("counts", [(1, 1, 1), (4, 1, 1), (1, 3, 2), (2, 2, 1), (2, 3, 2)])
def test_windows_hold_the_tokens_of_the_reference_and_come_back(counts, strided, form):
    split, merge = CUTS[strided]
    samples, tokens = 2, prod(GRID)
    grid = torch.arange(samples * tokens * WIDTH, device=DEVICE).view(samples, *GRID, WIDTH).float()
    with use(form):
        found = split(grid, counts)
        back = merge(found, counts)
    assert torch.equal(back, grid)
    # Remote windows of one row lie feature by feature beside each other.
    columns = counts[2] if strided else 1
    rows = rearrange(found, "b t h w (k d) -> (b k) (t h w) d", k=columns)
    expected = [
        grid.flatten(1, 3)[sample, places]
        for sample, places in product(range(samples), windows(GRID, counts, strided))
    ]
    assert torch.equal(rows, torch.stack(expected))
