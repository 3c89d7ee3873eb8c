"""Which measurement of `scaling.py` runs when, and on which GPUs."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from time import perf_counter
from typing import Any

Results = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A measurement, or what one needs.

    Attributes:
        name: Of its results: the part, and on how many GPUs.
        gpus: How many it takes.
        needs: Names of tasks that come first.
        action: Measures, with the variables of the commands that it starts.
    """

    name: str
    gpus: int
    needs: tuple[str, ...]
    action: Callable[[Mapping[str, str]], Results]


class Machine:
    """GPUs that tasks are given to, as many at once as fit.

    Args:
        gpus: How many there are.
        apart: Whether one task runs at a time.
        ends: When, on `perf_counter`, nothing more is begun.
    """

    def __init__(self, gpus: int, apart: bool, ends: float) -> None:
        self.free = list(range(gpus))
        self.apart, self.ends = apart, ends
        self.running: dict[Future[Results], tuple[Task, list[int]]] = {}
        self.failed: dict[str, str] = {}

    def work_off(
        self, tasks: Iterable[Task], done: Mapping[str, Results]
    ) -> Iterator[tuple[str, Results]]:
        """Runs tasks that have no results; yields those of each when it ends.

        Args:
            tasks: In the order in which they are begun.
            done: Results by name, to which those that are yielded are added meanwhile.
        """
        waiting = [task for task in tasks if task.name not in done]
        with ThreadPoolExecutor(max(len(waiting), 1)) as pool:
            while waiting or self.running:
                for task in [task for task in waiting if self.can_begin(task, done)]:
                    if len(self.free) >= task.gpus and not (self.apart and self.running):
                        waiting.remove(task)
                        self.begin(task, pool)
                if not self.running:
                    for task in waiting:
                        self.failed[task.name] = "not begun: no time left, or what it needs failed"
                    return
                ended, _ = wait(self.running, return_when=FIRST_COMPLETED)
                for future in ended:
                    task, taken = self.running.pop(future)
                    self.free.extend(taken)
                    if error := future.exception():
                        self.failed[task.name] = str(error)
                        traceback.print_exception(error)
                    else:
                        yield task.name, future.result()

    def can_begin(self, task: Task, done: Mapping[str, Results]) -> bool:
        return perf_counter() < self.ends and all(name in done for name in task.needs)

    def begin(self, task: Task, pool: ThreadPoolExecutor) -> None:
        self.free.sort()
        taken = [self.free.pop(0) for _ in range(task.gpus)]
        print(f"== {task.name}, on {', '.join(map(str, taken))}", flush=True)
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(map(str, taken))}
        self.running[pool.submit(task.action, environment)] = task, taken
