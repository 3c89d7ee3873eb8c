"""Clips on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..cluster.ray_actors import work_on_ray
from ..files import create_folder, first_line
from ..runs.choice import Choice, with_fetched_weights
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


class Fetcher:
    """Has the weights of a model on its actor's machine, and tells what settings they bring, or
    why it can't."""

    def __call__(self, choice: Choice) -> Choice | str:
        try:
            return with_fetched_weights(choice)
        except Exception as error:  # an actor that raises would be tried again
            return first_line(error)


def fetch_on_ray(choice: Choice, out: Path, address: str) -> Choice:
    """What `with_fetched_weights` gives on a cluster whose machines may have weights that are not
    here.

    Args:
        choice: The model.
        out: Folder of the clips; created if missing.
        address: As for `work_on_ray`.

    Raises:
        ValueError: As `work_on_ray`.
        OSError: Likewise, or if the weights can't be had there.
    """
    [found] = work_on_ray([choice], Fetcher, (), create_folder(out), address, 1)
    if isinstance(found, str):
        raise OSError(found)
    return found


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
