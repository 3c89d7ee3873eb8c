"""Clips on their way from noise to data, one in each place of a training's step, which go on where
they were when the training does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class MovingClip:
    """A clip on its way.

    Attributes:
        latents: Where it is, c t h w, on the CPU.
        clean: The clean latents as the teacher saw them half a step ago, the same shape.
        number: Of the sample that it began with, which its text and its noise follow.
        step: The student's step that it takes next.
        before: Clips that this place had before it.
    """

    latents: Tensor
    clean: Tensor
    number: int
    step: int
    before: int


class ClipsOnTheirWay:
    """The clips of one process, by place: the number of a sample within its training step, counted
    over all processes. They are kept in checkpoints by it, so that a training goes on as it was
    with another number of processes, if its steps have as many samples.

    The first clip of a place is taken off early, at another step than its neighbours': from then on
    a training step holds many noise levels.

    Args:
        places: Of this process.
        shape: c t h w.
        steps: From noise to data.
        noise: Gives the noise of the clip that begins with a sample, c t h w.
    """

    def __init__(
        self,
        places: Sequence[int],
        shape: tuple[int, ...],
        steps: int,
        noise: Callable[[int], Tensor],
    ) -> None:
        self.places, self.shape, self.steps, self.noise = tuple(places), shape, steps, noise
        self.clips: dict[int, MovingClip] = {}

    def at(self, place: int, sample: int) -> MovingClip:
        """The clip of a place, which begins with a sample if there is none."""
        if place not in self.clips:
            self.clips[place] = self._begin(sample, before=0)
        return self.clips[place]

    def is_led_by_student(self, place: int) -> bool:
        """Whether it is the student that leads the clip of a place: every second one."""
        before = self.clips[place].before
        return before > 0 and (place + before) % 2 == 1

    def move(self, place: int, latents: Tensor, clean: Tensor, next_sample: int) -> None:
        """Moves the clip of a place on by a step; if it has arrived, the next sample begins
        another one.

        Args:
            place: One of `places`.
            latents: Where it is led, c t h w.
            clean: As the teacher saw them last, c t h w.
            next_sample: The number of the sample that this place has next.
        """
        clip = self.clips[place]
        first = clip.before == 0
        last = self.steps - (place % self.steps if first else 0)
        if clip.step + 1 == last:
            self.clips[place] = self._begin(next_sample, clip.before + 1)
        else:
            self.clips[place] = MovingClip(
                latents.cpu(), clean.cpu(), clip.number, clip.step + 1, clip.before
            )

    def _begin(self, sample: int, before: int) -> MovingClip:
        return MovingClip(self.noise(sample), torch.zeros(self.shape), sample, 0, before)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """By place, `numbers` -1 where no clip has begun."""
        return {str(place): self._state(self.clips.get(place)) for place in self.places}

    def _state(self, clip: MovingClip | None) -> dict[str, Tensor]:
        if clip is None:
            empty = torch.zeros(2, *self.shape)
            return {"latents": empty[0], "clean": empty[1], "numbers": torch.full((3,), -1)}
        numbers = torch.tensor([clip.number, clip.step, clip.before])
        return {"latents": clip.latents, "clean": clip.clean, "numbers": numbers}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        for place in self.places:
            parts = state[str(place)]
            number, step, before = parts["numbers"].tolist()
            if number >= 0:
                latents, clean = parts["latents"], parts["clean"]
                self.clips[place] = MovingClip(latents, clean, number, step, before)
