"""What the fused decompression has to know of an axis: which small tokens each place of the full
grid is made of, and which places are alike."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

PARTNERS_PAY = 0.75  # up to so many programs for each group: one without a partner computes two


class Axis(NamedTuple):
    """What the places of an axis are made of when the small axis is upsampled and convolved.

    Attributes:
        programs: What a program does along the axis, int32, 4 × programs: the first place of a
            group, the first place of its partner or -1, the first of the three small tokens that
            the group needs (its partner's begin with the next one), and the kind of both.
        shares: The shares that the neighbour before, at and after each place of a group have of
            the three, kinds × places of a group × 3 × 3. Beyond the edges there is nothing.
    """

    programs: Tensor
    shares: Tensor


def plan_axis(
    matrix: Tensor, group: int, partners: bool = True, places: slice = slice(None)
) -> Axis:
    """Finds the kinds of places of an axis, and partners among them.

    Args:
        matrix: Length of the full axis × length of the small one, of the upsampling.
        group: Neighbouring places that share their small tokens: 1 for rows, 2 for columns.
        partners: Whether a program may take two groups, where most of them find a partner.
        places: Those of the full axis that are asked for; their neighbours beyond are there.

    Raises:
        ValueError: if a group needs more than three, as upsampling by less than 2 may.
    """
    small = matrix.shape[1]
    around = F.pad(matrix.float(), (0, 2, 1, 1)).unfold(0, 3, 1)[places]  # place small neighbour
    length = len(around)
    around = F.pad(around, (0, 0, 0, 0, 0, -length % group)).unflatten(0, (-1, group))
    first = (around.sum((1, 3)) > 0).int().argmax(1)
    first = first.clamp(max=max(0, small - 3))  # so that all three are there, if there are three
    three = first[:, None, None, None] + torch.arange(3, device=matrix.device)[:, None]
    shares = around.gather(2, three.expand(-1, group, -1, 3))
    if not torch.allclose(shares.sum(), around.sum()):
        raise ValueError(f"Upsampling {small} tokens to {length} needs more than three at a place.")
    kinds, kind = shares.transpose(2, 3).round(decimals=5).unique(dim=0, return_inverse=True)
    seen = [*zip(first.tolist(), kind.tolist(), strict=True)]
    found = find_partners(seen)
    if not partners or len(found) > PARTNERS_PAY * len(seen):
        found = dict.fromkeys(range(len(seen)))
    programs = [
        (i * group, -1 if partner is None else partner * group, *seen[i])
        for i, partner in found.items()
    ]
    return Axis(matrix.new_tensor(programs, dtype=torch.int32).t().contiguous(), kinds.contiguous())


def find_partners(seen: list[tuple[int, int]]) -> dict[int, int | None]:
    """Groups that one program takes together: those of one kind, a small token apart.

    Args:
        seen: The first small token and the kind of each group.

    Returns:
        The partner of each group that is not a partner itself, or None.
    """
    left: dict[tuple[int, int], list[int]] = {}
    for i, place in enumerate(seen):
        left.setdefault(place, []).append(i)
    partners: dict[int, int | None] = {}
    for i, (first, kind) in enumerate(seen):
        if i in left[first, kind]:
            left[first, kind].remove(i)
            others = left.get((first + 1, kind))
            partners[i] = others.pop(0) if others else None
    return partners
