"""`benchmarks/scaling.py`: which measurement runs when and where, and the table."""

from __future__ import annotations

from threading import Lock
from time import perf_counter, sleep

import pytest
from scaling import Measurements, main, table
from scaling_machine import Machine, Task


class Recorded:
    """Tasks that say on which GPUs they ran, and what ran beside them."""

    def __init__(self) -> None:
        self.lock, self.busy = Lock(), set()
        self.beside: dict[str, int] = {}
        self.on: dict[str, str] = {}

    def task(self, name: str, gpus: int, needs: tuple[str, ...] = (), fails: bool = False) -> Task:
        def action(environment):
            taken = set(environment["CUDA_VISIBLE_DEVICES"].split(","))
            with self.lock:
                assert not taken & self.busy
                self.busy |= taken
                self.beside[name] = len(self.busy) - gpus
            sleep(0.05)
            with self.lock:
                self.busy -= taken
            self.on[name] = environment["CUDA_VISIBLE_DEVICES"]
            if fails:
                raise RuntimeError("no memory")
            return {"seconds": 1}

        return Task(name, gpus, needs, action)


def work_off(machine: Machine, tasks, done=None) -> dict:
    done = done or {}
    for name, found in machine.work_off(tasks, done):
        done[name] = found
    return done


def test_as_many_run_at_once_as_there_are_gpus():
    seen = Recorded()
    tasks = [seen.task("one", 1), seen.task("other", 1), seen.task("two", 2), seen.task("all", 4)]
    assert work_off(Machine(4, False, perf_counter() + 60), tasks).keys() == seen.on.keys()
    assert seen.on == {"one": "0", "other": "1", "two": "2,3", "all": "0,1,2,3"}
    assert max(seen.beside.values()) > 0
    assert seen.beside["all"] == 0
    apart = Recorded()
    tasks = [apart.task("one", 1), apart.task("other", 1)]
    work_off(Machine(4, True, perf_counter() + 60), tasks)
    assert apart.beside == {"one": 0, "other": 0}


def test_what_needs_another_comes_after_it_or_not_at_all():
    seen = Recorded()
    tasks = [
        seen.task("weights", 1),
        seen.task("latents", 1, fails=True),
        seen.task("batch", 1, ("weights",)),
        seen.task("training", 1, ("latents",)),
    ]
    machine = Machine(2, False, perf_counter() + 60)
    assert work_off(machine, tasks).keys() == {"weights", "batch"}
    assert machine.failed["latents"] == "no memory"
    assert "what it needs failed" in machine.failed["training"]


def test_nothing_is_measured_twice_or_begun_after_the_end():
    seen = Recorded()
    tasks = [seen.task("one", 1), seen.task("other", 1)]
    work_off(Machine(1, False, perf_counter() + 60), tasks, {"one": {"seconds": 2}})
    assert list(seen.on) == ["other"]
    late = Machine(1, False, perf_counter())
    assert work_off(late, tasks) == {}
    assert late.failed.keys() == {"one", "other"}


def test_counts_are_powers_of_two_and_all(tmp_path):
    assert Measurements(tmp_path, 8, True).counts == [1, 2, 4, 8]
    assert Measurements(tmp_path, 6, True).counts == [1, 2, 4, 6]
    tasks = list(Measurements(tmp_path, 2, True).tasks(("frame", "training")))
    assert [task.name for task in tasks] == [
        "weights", "latents", "frame 1", "training 1", "frame 2", "training 2"
    ]  # fmt: skip


def test_the_table_tells_what_was_reached():
    steps = {"step_seconds": 7.0, "states_gib": 24.0, "clips_a_second": 0.14}
    results = {
        "weights": {"seconds": 20},
        "frame 1": {"4K paper": {"seconds": 18.0}},
        "frame 2": {"4K paper": {"seconds": 10.0}},
        "frame 4": {"4K paper": {"seconds": 5.4}},
        "training 1": {"steps": steps},
        "training 4": {"steps": {**steps, "states_gib": 6.0, "clips_a_second": 0.546}},
    }
    assert list(table(results))[2:] == [
        "| frame, 4K paper | 2 | 18 s | 10 s | 1.80 |  |",
        "| frame, 4K paper | 4 | 18 s | 5.4 s | 3.33 | 3.4, missed |",
        "| training, steps, states 0.250 | 4 | 0.14 clips a second | 0.546 clips a second | 3.90 "
        "| 3.7, reached |",
    ]


def test_a_machine_of_one_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--work", str(tmp_path), "--gpus", "1"])
    assert "take a machine of several, or choose --tiny" in capsys.readouterr().err


@pytest.mark.slow
def test_toys(tmp_path, capsys):
    words = ["--work", str(tmp_path), "--tiny", "--gpus", "2", "--only", "frame"]
    assert main(words) == 0
    assert "| frame, tiny paper | 2 |" in capsys.readouterr().out
