"""What processes that compute one thing together give to each other.

A process names the parts of its tensors that each process is to get, and the parts of its own that
are to be filled by each. All know the same plan, so that no sizes are sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

Parts = Sequence[Sequence[Tensor]]
"""For each process, views of this one's tensors."""


class Member(NamedTuple):
    """One of the processes that compute something together.

    Attributes:
        group: The processes; None where their work is only planned.
        rank: Which one it is.
        processes: How many they are.
    """

    group: dist.ProcessGroup | None
    rank: int
    processes: int

    @classmethod
    def of(cls, group: dist.ProcessGroup) -> Member:
        """This process."""
        return cls(group, dist.get_rank(group), dist.get_world_size(group))


def exchange(
    given: Parts, taken: Parts, like: Tensor, member: Member, crosses: bool = True
) -> None:
    """Fills the parts that are taken by those that are given: all of one group at once.

    Args:
        given: What each process gets.
        taken: What each process fills, in the order in which it gives it, in the same shapes.
        like: Has the type and the device of all parts.
        member: This process.
        crosses: Whether any process gives something to another one; all know it.

    Raises:
        ValueError: if gradients are wanted, which do not go back through it.
    """
    if torch.is_grad_enabled():
        raise ValueError(
            "Several processes compute a clip together without gradients: use torch.no_grad(), "
            "and train with one process for each clip."
        )
    rank, group = member.rank, member.group
    for source, target in zip(given[rank], taken[rank], strict=True):
        target.copy_(source)
    if not crosses:
        return
    others = range(member.processes)
    sent, received = (
        [0 if other == rank else sum(part.numel() for part in parts[other]) for other in others]
        for parts in (given, taken)
    )
    outgoing, incoming = like.new_empty(sum(sent)), like.new_empty(sum(received))
    _each(outgoing, given, rank, write=True)
    dist.all_to_all_single(incoming, outgoing, received, sent, group=group)
    _each(incoming, taken, rank, write=False)


def _each(buffer: Tensor, parts: Parts, rank: int, write: bool) -> None:
    """Copies the parts of the other processes into a buffer, one after the other, or out of it."""
    start = 0
    for other, theirs in enumerate(parts):
        for part in () if other == rank else theirs:
            room = buffer[start : start + part.numel()].view(part.shape)
            start += part.numel()
            room.copy_(part) if write else part.copy_(room)


def gather(part: Tensor, sizes: Sequence[int], dim: int, member: Member) -> Tensor:
    """The parts of all processes, one behind the other, in all of them.

    Args:
        part: This process's.
        sizes: Of each process's part along the axis that they stand along.
        dim: That axis.
        member: This process.
    """
    shape = list(part.shape)
    shape[dim] = sum(sizes)
    out = part.new_empty(shape)
    taken = [[room] for room in out.split(list(sizes), dim)]
    exchange([[part]] * len(sizes), taken, part, member)
    return out


def of_the_first(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> list[Tensor]:
    """The same tensors as the first process has, in all of them, which have others of the same
    shapes."""
    found = [tensor.contiguous().clone() for tensor in tensors]
    for tensor in found:
        dist.broadcast(tensor, group=group, group_src=0)
    return found


def in_any(true: bool, device: torch.device, group: dist.ProcessGroup) -> bool:
    """Whether something is true in any of the processes; all ask together."""
    vote = torch.tensor(float(true), device=device)
    dist.all_reduce(vote, dist.ReduceOp.MAX, group=group)
    return bool(vote)


def check_alike(device: torch.device, group: dist.ProcessGroup | None = None) -> None:
    """Checks that all processes compute alike.

    Args:
        device: Where this one computes.
        group: The processes; None for all.

    Raises:
        ValueError: in all of them, if they have different versions of torch or different GPUs.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    check_same(
        {"torch": torch.__version__, "device": name},
        "one clip",
        "start them with one installation, on GPUs of one kind",
        f"process {dist.get_rank(group)}",
        group,
    )


def check_same(
    mine: Mapping[str, str],
    whole: str,
    remedy: str,
    place: str,
    group: dist.ProcessGroup | None = None,
) -> list[str]:
    """Checks that all processes say the same of themselves.

    Args:
        mine: What this process says, by what it is called.
        whole: What they compute together.
        remedy: What makes them alike.
        place: What this process is called.
        group: The processes; None for all.

    Returns:
        What the processes are called, by rank.

    Raises:
        ValueError: in all of them, if they don't.
    """
    found: list[tuple[str, Mapping[str, str]]] = [("", {})] * dist.get_world_size(group)
    dist.all_gather_object(found, (place, mine), group=group)
    for what in mine:
        if len({theirs[what] for _, theirs in found}) > 1:
            told = ", ".join(f"{theirs[what]} in {where}" for where, theirs in found)
            raise ValueError(
                f"All processes of {whole} must have the same {what}, not {told}: {remedy}."
            )
    return [where for where, _ in found]
