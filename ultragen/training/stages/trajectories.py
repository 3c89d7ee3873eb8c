"""What a distilled model learns: guidance and two steps of its teacher become one step of its own.

The student starts as its teacher's copy and learns, at every state that the teacher passes, the
mean velocity over the whole step (progressive distillation, Salimans and Ho, 2022, with the
guidance taken in, Meng et al., 2023). States come from sampling rather than from noised data, so
no clips are needed: half of them are led by the teacher, half by the student as it is by then,
because those are the states that it will meet, with its own errors in them (Ross et al., "A
Reduction of Imitation Learning", 2011).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# The velocity at latents b c t h w, noise levels b and texts b n …, token ids or embeddings.
Guided = Callable[[Tensor, Tensor, Tensor], Tensor]


class TeacherSteps:
    """The student's steps, each taken by the teacher in two, as its sampler of second order does:
    DPM-Solver++(2M), which looks back at the clean latents of the half step before (see
    `flow.second_order`).

    Args:
        sigmas: Noise levels from 1 to 0 of the student's steps, and one between each two for the
            teacher; a floating-point tensor of an odd number of them.
        guided: The teacher.
    """

    def __init__(self, sigmas: Tensor, guided: Guided) -> None:
        self.sigmas, self.guided = sigmas, guided
        self.changes = changes(sigmas)
        self.number = (len(sigmas) - 1) // 2

    def levels(self, steps: Sequence[int], ahead: int = 0) -> Tensor:
        """The noise level at which each clip's step begins, or so many half steps later, b."""
        at = [2 * step + ahead for step in steps]
        return self.sigmas[torch.tensor(at, device=self.sigmas.device)]

    def walk(
        self, latents: Tensor, clean: Tensor, steps: Sequence[int], texts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the student, taken by the teacher.

        Args:
            latents: Where it begins, b c t h w.
            clean: The clean latents as the teacher saw them half a step ago; of no weight at a
                clip's first step.
            steps: Which of the student's steps it is, for each clip.
            texts: What the teacher reads, b n ….

        Returns:
            The latents where it leads, the clean latents that the teacher saw last, and the mean
            velocity of the step.
        """
        x = latents
        for half in range(2):
            now, after = self.levels(steps, half), self.levels(steps, half + 1)
            velocity = self.guided(x, now, texts)
            seen = x - _wide(now) * velocity
            carried = self.changes[[2 * step + half for step in steps]]
            velocity = velocity - _wide(carried / now) * (seen - clean)
            x, clean = x + _wide(after - now) * velocity, seen
        return x, clean, (x - latents) / _wide(self.levels(steps, 2) - self.levels(steps))

    def lead(self, latents: Tensor, steps: Sequence[int], velocity: Tensor) -> Tensor:
        """Where a velocity leads in one step of the student."""
        return latents + _wide(self.levels(steps, 2) - self.levels(steps)) * velocity


class Trajectories:
    """A batch of clips on their way from noise to data, neighbours at different steps, so that a
    batch holds many noise levels.

    Args:
        sigmas: As in `TeacherSteps`.
        start: Gives noise b c t h w and token ids b n for some new clips.
        guided: The teacher.
        number: Clips.
        student: Leads every second clip from its start on; None leaves all to the teacher.
    """

    def __init__(
        self,
        sigmas: Tensor,
        start: Callable[[int], tuple[Tensor, Tensor]],
        guided: Guided,
        number: int,
        student: Guided | None = None,
    ) -> None:
        self.teacher, self.start = TeacherSteps(sigmas, guided), start
        self.student, self.begun = student, number
        self.steps = self.teacher.number
        self.latents, self.ids = start(number)
        self.clean = torch.zeros_like(self.latents)  # as the teacher saw it half a step ago
        self.step = [0] * number
        self.own = [False] * number  # these are half-way already, led by the teacher
        wanted = [clip % self.steps for clip in range(number)]
        reached, seen = self.latents.clone(), self.clean.clone()
        for step in range(1, self.steps):
            self.latents, _ = self.walk()
            self.step = [step] * number
            there = [clip for clip in range(number) if wanted[clip] == step]
            reached[there], seen[there] = self.latents[there], self.clean[there]
        self.latents, self.clean, self.step = reached, seen, wanted

    def walk(self) -> tuple[Tensor, Tensor]:
        """Where the teacher leads in one step of the student, and its mean velocity."""
        after, self.clean, velocity = self.teacher.walk(
            self.latents, self.clean, self.step, self.ids
        )
        return after, velocity

    def advance(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents, their noise levels, token ids, and the velocity to learn; clips that have
        arrived start anew."""
        latents, ids, sigma = self.latents, self.ids, self.teacher.levels(self.step)
        self.latents, velocity = self.walk()
        if self.student is not None and any(self.own):
            led = self.teacher.lead(latents, self.step, self.student(latents, sigma, ids))
            own = torch.tensor(self.own, device=led.device)
            self.latents = torch.where(_wide(own), led, self.latents)
        arrived = [clip for clip, step in enumerate(self.step) if step + 1 == self.steps]
        self.step = [(step + 1) % self.steps for step in self.step]
        if arrived:
            where = torch.tensor(arrived, device=self.latents.device)
            noise, fresh = self.start(len(arrived))
            self.latents = self.latents.index_copy(0, where, noise)
            self.ids = self.ids.index_copy(0, where, fresh)
            for clip in arrived:
                self.own[clip] = self.begun % 2 == 1
                self.begun += 1
        return latents, sigma, ids, velocity


def changes(sigmas: Tensor) -> Tensor:
    """For each step between noise levels, how much of the last change of the clean latents a step
    of DPM-Solver++(2M) carries on: none after pure noise and none on the way to no noise."""
    ratio = (1 - sigmas).log() - sigmas.log()  # log of the signal-to-noise ratio
    carried = torch.zeros_like(sigmas[:-1])
    carried[1:] = (ratio[2:] - ratio[1:-1]) / (2 * (ratio[1:-1] - ratio[:-2]))
    return torch.where(carried.isfinite(), carried, 0)


def _wide(x: Tensor) -> Tensor:
    return x.view(-1, 1, 1, 1, 1)
