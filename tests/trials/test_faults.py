"""Callers that cancel or vanish, processes that are killed, disks that are full: each ends in one
message, nothing half stays, and the next call is served."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from disks import fill, small_disk
from fakes import until
from trials import (
    LONG,
    PATIENCE,
    SHORT,
    Page,
    Tally,
    hang_up,
    is_served,
    page,
    read_call,
    start_call,
)

from ultragen.files import UNFINISHED

pytestmark = [pytest.mark.trials, pytest.mark.slow]

# Who goes, and how


GRACE = 8.0
# Seconds in which a machine of its own notices what a caller did: a run is looked at five times a
# second, a call that nobody waits for once a second.
NOTICED = 3.0
MANY = {"num_inference_steps": 100}


def by_hanging_up(served: Page, tally: Tally, client: httpx.Client) -> Callable[[], None]:
    """Each of these starts a call, and returns what gives it up."""
    event = start_call(tally, client, **MANY, seed=7)
    return lambda: hang_up(client, event)


def by_cancelling(served: Page, tally: Tally, client: httpx.Client) -> Callable[[], None]:
    event = start_call(tally, client, **MANY, seed=7)
    body = {"session_hash": event, "event_id": event, "fn_index": 0}
    return lambda: tally.ask(client, "POST", "/gradio_api/cancel", json=body) and None


def by_never_asking(served: Page, tally: Tally, client: httpx.Client) -> Callable[[], None]:
    start_call(tally, client, **MANY, seed=7)
    return lambda: time.sleep(GRACE)


def send_tool(client: httpx.Client, method: str, params: dict, **more) -> httpx.Response:
    """A message for the MCP server, whose answer is not read yet."""
    message = {"jsonrpc": "2.0", "method": method, "params": params, **more}
    accept = {"accept": "application/json, text/event-stream"}
    request = client.build_request("POST", "/gradio_api/mcp/", json=message, headers=accept)
    return client.send(request, stream=True)


TOOL = {"name": "generate", "arguments": SHORT | MANY | {"seed": 7}}


def by_leaving_a_tool(served: Page, tally: Tally, client: httpx.Client) -> Callable[[], None]:
    return send_tool(client, "tools/call", TOOL, id=5).close


def by_cancelling_a_tool(served: Page, tally: Tally, client: httpx.Client) -> Callable[[], None]:
    answer = send_tool(client, "tools/call", TOOL, id=5)

    def cancel() -> None:
        send_tool(client, "notifications/cancelled", {"requestId": 5}).read()
        assert "The caller is gone" in answer.read().decode()

    return cancel


WAYS = (by_hanging_up, by_cancelling, by_never_asking, by_leaving_a_tool, by_cancelling_a_tool)


@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> Iterator[Page]:
    with page(tmp_path_factory.mktemp("slow"), delay=0, grace=GRACE) as started:
        yield started


def test_the_device_is_free_within_a_step_of_a_caller_who_goes(slow, trial, minutes):
    tally = trial("callers who go")
    tally.steps_after, noticed, waits = 0, [], []
    with (
        slow.client() as client,
        slow.client() as next_one,
        ThreadPoolExecutor(1) as reader,
    ):
        for way in WAYS:
            steps = len(slow.steps())
            slow.hold.touch()
            go = way(slow, tally, client)
            until(lambda steps=steps: len(slow.steps()) > steps, PATIENCE)
            waiting = start_call(tally, next_one, seed=8)
            answer = reader.submit(read_call, tally, next_one, waiting)
            go()
            gone = time.monotonic()
            until(lambda steps=steps: len(slow.steps()) > steps + 1, PATIENCE)
            began, cancelled = slow.steps()[steps:]  # and no other run: it still has the device
            assert (began[1:], cancelled[1:]) == ((7, -1), (7, -2)), way.__name__
            noticed.append(max(0.0, cancelled[0] - gone))
            released = time.monotonic()
            slow.hold.unlink()
            assert "event: complete" in answer.result()
            seen = slow.steps()[steps:]
            after = sum(seed == 7 and step >= 0 for _, seed, step in seen)
            tally.steps_after = max(tally.steps_after, after - 1)
            began = seen.index(next(each for each in seen if each[1] == 8))
            assert all(seed == 8 for _, seed, _ in seen[began:]), way.__name__
            waits.append(seen[began][0] - released)
            assert after <= 1, (way.__name__, after)  # the step that was under way
    tally.notes = "noticed after " + ", ".join(f"{wait:.1f}" for wait in noticed) + " s, "
    tally.notes += "free after " + ", ".join(f"{wait:.1f}" for wait in waits) + " s"
    tally.tracebacks = slow.tracebacks()
    assert tally.fails() == {}
    assert max(noticed) < NOTICED * slow.slowness or minutes < LONG


# Who kills, and when

# A stage, and the part of its steps or frames that has been reached.
MOMENTS = (
    ("Native clip: denoising", 0.4),
    ("Writing the files", 0.4),
    ("Writing the files", 0.95),
    ("Native clip: decoding", 0),
    ("Base clip: denoising", 0),
    ("Base clip: upscaling", 0),
    ("Writing the files", 0),
)
FEW = 2
ATTEMPTS = 5  # at a moment that has passed before it was seen


def is_reached(client: httpx.Client, event: str, stage: str, part: float) -> bool:
    """Reads the answer of a call until its run is so far; False where it has ended before."""
    wanted = re.compile(rf"{re.escape(stage)}, .*(?:step|frames?) (\d+) of (\d+)")
    with client.stream("GET", f"/gradio_api/call/generate/{event}") as answer:
        for line in answer.iter_lines():
            if (found := wanted.search(line)) and int(found[1]) >= part * int(found[2]):
                return True
            if "event: complete" in line:
                break
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_page_that_is_ended_leaves_nothing_half(tmp_path, trial, minutes, number):
    tally = trial(f"{signal.Signals(number).name} at each stage")
    killed = number == signal.SIGKILL
    moments = MOMENTS[: FEW if killed else 1] if minutes < LONG else MOMENTS * 3
    served = Page(tmp_path, delay=0.05)
    try:
        for stage, reached in moments:
            with served.client() as client:
                assert is_served(tally, client)
                assert any(
                    is_reached(
                        client,
                        start_call(tally, client, num_frames=33, num_inference_steps=5),
                        stage,
                        reached,
                    )
                    for _ in range(ATTEMPTS)
                ), (stage, reached)
                whole = served.whole()
                began = time.monotonic()
                code = served.end(number)
                assert code == (-number if killed else 128 + number)
                took = time.monotonic() - began
                assert took < 5 * served.slowness or minutes < LONG
            if not killed and list(served.runs.glob(f"{UNFINISHED}*")):
                tally.left.append(f"{stage}: {served.half()}")
            served.start()
            tally.left += served.stays_half()
            # Gradio itself takes away what it has sent, where it comes to its end.
            if killed and not whole <= served.results():
                tally.lost.append(f"{stage}: a result from before")
            with served.client() as client:
                if not is_served(tally, client):
                    tally.lost.append(f"{stage}: the next run")
    finally:
        served.end(signal.SIGKILL)
    tally.notes = f"{len(moments)} times"
    tally.tracebacks = served.tracebacks()
    assert tally.fails() == {}


# Disks


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of its own."""
    with small_disk(tmp_path / "disk", "20m") as folder:
        yield folder


def ends_in_one_message(tally: Tally, served: Page, client: httpx.Client) -> None:
    """A run that can't be written says so, and nothing of it stays."""
    served.stays_half()  # of a run before
    before = served.results()
    text = read_call(tally, client, start_call(tally, client, num_frames=33))
    [data] = re.findall(r"event: error\ndata: (.*)", text) or [""]
    message = json.loads(data).get("error", "") if data.startswith("{") else data
    assert "disk is full" in message and str(served.files) not in text
    tally.check_message(message, "a full disk")
    until(lambda: served.results() == before, PATIENCE)


def test_a_full_disk_is_one_message(disk, tmp_path, trial):
    tally = trial("full disk")
    with page(tmp_path, files=disk) as served, served.client() as client:
        for _ in range(2):
            if not is_served(tally, client):
                tally.lost.append("a run with room")
            filler = fill(disk)
            ends_in_one_message(tally, served, client)
            filler.unlink()
        if not is_served(tally, client):
            tally.lost.append("the next run")
        tally.tracebacks, tally.left = served.tracebacks(), served.stays_half()
    assert tally.fails() == {}


def test_files_that_may_not_grow_are_one_message(tmp_path, trial):
    tally = trial("limited files")
    with page(tmp_path, file_size=150_000) as served, served.client() as client:
        ends_in_one_message(tally, served, client)
        if not is_served(tally, client):
            tally.lost.append("the next run")
        tally.tracebacks, tally.left = served.tracebacks(), served.stays_half()
    assert tally.fails() == {}
