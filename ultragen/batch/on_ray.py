"""Clips on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ..cluster.ray_actors import work_on_ray
from ..files import first_line
from .clip_folder import Outcome
from .maker import Maker, Settings
from .prompt_files import Clip


class Worker:
    """Makes clips in an actor, and tells of each what became of it.

    Args:
        settings: What they share.
    """

    def __init__(self, settings: Settings) -> None:
        self.maker = Maker(settings)

    def __call__(self, clip: Clip) -> Outcome:
        try:
            return self.maker.make(clip)
        except Exception as error:  # an actor that raises would be tried again
            return Outcome(clip.name, "stopped", first_line(error))


def make_on_ray(
    clips: Sequence[Clip],
    settings: Settings,
    address: str,
    workers: int | None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Outcome]:
    """Makes clips on a cluster, in the order in which actors take them; what an actor that dies
    had not written is made again.

    Args:
        clips: What is asked for.
        settings: What they share; their folder lies where all machines see it.
        address: As for `work_on_ray`, like the rest.
        workers: Actors.
        say: Takes a line on where they run.

    Raises:
        ValueError: As `work_on_ray`.
        OSError: Likewise.
    """
    return work_on_ray(clips, Worker, (settings,), settings.out, address, workers, say)
