"""Many runs, one after the other and of many clients at once: in order, none lost, nothing kept."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count

import httpx
import pytest
from trials import (
    LONG,
    PATIENCE,
    Page,
    Taken,
    Tally,
    displaced,
    hang_up,
    is_served,
    page,
    read_call,
    take_place,
)

pytestmark = [pytest.mark.trials, pytest.mark.slow]
CLIENTS, WARM, ROW, ROUNDS = 20, 20, 10, 3
GROWTH = 0.05  # of the memory, after the first runs
# Seconds for which a call waits unheard. A page that stands still for half of them would drop calls
# whose callers have asked.
GRACE = 30.0


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Page]:
    """After its first runs, from where it grows no more."""
    with page(tmp_path_factory.mktemp("load"), delay=0.02, grace=GRACE) as started:
        with started.client() as client:
            for index in range(WARM):
                assert is_served(Tally("first runs"), client, seed=index)
        yield started


def settled(served: Page, before: dict[str, int]) -> dict[str, int]:
    """What the page uses once threads that wait for work have gone."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        used = served.use()
        if all(used[name] <= before[name] + 1 for name in ("handles", "threads")):
            break
        time.sleep(0.5)
    return used


def left(used: dict[str, int], before: dict[str, int]) -> list[str]:
    """Handles and threads that have come to stay."""
    return [
        f"{used[name] - before[name]} more {name} than {before[name]}"
        for name in ("handles", "threads")
        if used[name] > before[name] + 1
    ]


def test_runs_in_a_row_leave_the_page_as_it_was(served, trial, minutes):
    tally = trial("runs in a row")
    number, rounds = max(ROW, min(200, round(8 * minutes))), 1 if minutes >= LONG else ROUNDS
    for _ in range(rounds):  # what is lost with each run is lost in each round
        with served.client() as client:
            before = served.use()
            for index in range(number):
                if not is_served(tally, client, seed=index):
                    tally.lost.append(f"run {index}")
        used = settled(served, before)
        tally.memory = used["memory"] / before["memory"] - 1
        if tally.memory < GROWTH:
            break
    tally.left = [*left(used, before), *served.stays_half()]
    tally.tracebacks = served.tracebacks()
    tally.notes = f"{number} runs, {before['memory'] / 2**20:.0f} MiB"
    assert tally.fails() == {}
    assert tally.memory < GROWTH


@dataclass
class Calls:
    """What clients did, by the seeds of their calls."""

    seeds: Iterator[int] = field(default_factory=lambda: count(10_000))
    taken: dict[int, Taken] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    stopped: set[int] = field(default_factory=set)
    late: set[int] = field(default_factory=set)  # whose clients had no time to read


def visit(served: Page, tally: Tally, calls: Calls, index: int, end: float) -> None:
    """A client with an address of its own, two thirds of whose calls wait for their clips."""
    chance = random.Random(index)
    transport = httpx.HTTPTransport(local_address=f"127.0.1.{index + 1}")
    with served.client(transport=transport) as client:
        while time.monotonic() < end:
            seed = next(calls.seeds)
            steps = chance.randint(1, 8)
            taken = take_place(tally, client, seed=seed, num_inference_steps=steps)
            if taken is None:
                continue
            calls.taken[seed], event = taken, taken.event
            if chance.random() < 2 / 3:
                asked = time.monotonic()
                text = read_call(tally, client, event)
                if "event: complete" in text and f'"seed": {seed}' in text:
                    calls.done.add(seed)
                elif "Nobody waited" in text and asked - taken.sent > GRACE / 2:
                    calls.late.add(seed)
                else:
                    tally.lost.append(f"{seed}: {text[-300:]}")
                continue
            calls.stopped.add(seed)
            tally.requests += 1
            way = chance.choice(["hang up", "cancel", "vanish"])
            if way == "hang up":
                hang_up(client, event, after=chance.randint(1, 4))
            elif way == "cancel":
                time.sleep(chance.uniform(0, 1))
                body = {"session_hash": event, "event_id": event, "fn_index": 0}
                tally.ask(client, "POST", "/gradio_api/cancel", json=body)
            else:
                time.sleep(GRACE)


def warmed_up(served: Page, calls: Calls, end: float) -> int:
    """Bytes of the page once many clients at a time have had its first runs."""
    while len(calls.done) < WARM and time.monotonic() < end:
        time.sleep(0.1)
    return served.use()["memory"]


def test_places_are_counted_between_calls_whose_order_is_known():
    taken = {seed: Taken("", seed, seed + 0.5) for seed in range(6)}
    assert displaced(taken, [0, 1, 2, 4, 5]) == 0  # 3 was given up
    assert displaced(taken, [0, 4, 1, 2, 3, 5]) == displaced(taken, [1, 2, 3, 0, 4, 5]) == 3
    at_once = {seed: Taken("", 0, 9) for seed in range(6)}
    assert displaced(at_once, [5, 4, 3, 2, 1, 0]) == 0


def test_many_clients_of_whom_a_third_goes(served, trial, minutes):
    tally, calls = trial("many clients"), Calls()
    with served.client() as client:
        assert is_served(tally, client)
        before = served.use()
        end = time.monotonic() + minutes * 60 * (0.65 if minutes >= LONG else 0.2)
        with ThreadPoolExecutor(CLIENTS) as threads:
            visits = [
                threads.submit(visit, served, tally, calls, index, end) for index in range(CLIENTS)
            ]
            warm = warmed_up(served, calls, end)
        for each in visits:
            each.result()
        # What was left behind is dropped, and then the page is free.
        left_at = time.monotonic()
        if not is_served(tally, client, seed=1):
            tally.lost.append("the run after all")
        free_after = time.monotonic() - left_at
    began = [seed for _, seed, step in served.steps() if step == -1 and seed in calls.taken]
    tally.order = displaced(calls.taken, [seed for seed in began if seed in calls.done])
    used = settled(served, before)
    tally.memory = used["memory"] / warm - 1
    tally.left = [*left(used, before), *served.stays_half()]
    tally.tracebacks = served.tracebacks()
    tally.notes = (
        f"{len(calls.done)} clips, {len(calls.stopped)} given up, {len(calls.late)} read too late, "
        f"free after {free_after:.1f} s, {warm / 2**20:.0f} MiB"
    )
    assert tally.fails() == {}
    assert len(calls.late) <= len(calls.done)
    assert tally.order <= 2
    assert len(began) == len(set(began))
    assert tally.memory < GROWTH or minutes < LONG
