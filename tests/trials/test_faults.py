"""Callers that cancel or vanish, processes that are killed, disks that are full: each ends in one
message, nothing half stays, and the next call is served."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from fakes import until
from trials import BOUND, SHORT, Page, Tally, hang_up, is_served, page, read_call, start_call

from ultragen.files import UNFINISHED

pytestmark = [pytest.mark.trials, pytest.mark.slow]

# Who goes, and how


STEP, GRACE = 1.0, 2.0
# Seconds until what a caller did is noticed, between two items of a run; no step begins later.
NOTICED = 1.0
MANY = {"num_inference_steps": 60}


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
    request = client.build_request(
        "POST", "/gradio_api/mcp/", json=message, headers=accept, timeout=BOUND
    )
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
    with page(tmp_path_factory.mktemp("slow"), delay=STEP, grace=GRACE) as started:
        yield started


def test_the_device_is_free_within_a_step_of_a_caller_who_goes(slow, trial):
    tally = trial("callers who go")
    tally.steps_after, waits = 0, []
    with (
        httpx.Client(base_url=slow.url) as client,
        httpx.Client(base_url=slow.url) as next_one,
        ThreadPoolExecutor(1) as reader,
    ):
        for way in WAYS:
            steps = len(slow.steps())
            go = way(slow, tally, client)
            until(lambda steps=steps: any(step >= 0 for _, _, step in slow.steps()[steps:]))
            waiting = start_call(tally, next_one, seed=8)
            answer = reader.submit(read_call, tally, next_one, waiting)
            go()
            gone = time.monotonic()
            assert "event: complete" in answer.result()
            seen = slow.steps()[steps:]
            after = sum(when > gone and seed == 7 and step >= 0 for when, seed, step in seen)
            began = next(when for when, seed, step in seen if (seed, step) == (8, -1))
            tally.steps_after = max(tally.steps_after, after)
            waits.append(began - gone)
            grace = GRACE / 4 if way is by_never_asking else 0  # how often that is looked at
            # A step begins when the one before has ended; the last one that ends has none after it.
            *begins, _ = (when for when, seed, _ in seen if seed == 7)
            last = begins[-1]
            assert last - gone < NOTICED + grace, (way.__name__, last - gone, began - gone)
    tally.notes = "free after " + ", ".join(f"{wait:.1f}" for wait in waits) + " s"
    tally.tracebacks = slow.tracebacks()
    assert tally.fails() == {}


# Who kills, and when

MOMENTS = {
    "Native clip: denoising": "step 2",
    "Writing the files": "frame 40",
    "Writing the files, the last": "frame 98",
    "Native clip: decoding": "frames? [1-9]",
    "Base clip: denoising": "step 1",
    "Base clip: upscaling": "frame [1-9]",
    "Writing the files, the first": "frame 1",
}
FEW = 2


def wait_for(client: httpx.Client, event: str, stage: str, when: str) -> None:
    """Reads the answer of a call until its run is so far."""
    wanted = re.compile(f"{re.escape(stage.partition(',')[0])}, .*{when}")
    with client.stream("GET", f"/gradio_api/call/generate/{event}", timeout=BOUND) as answer:
        for line in answer.iter_lines():
            if wanted.search(line):
                return
            assert "event: complete" not in line, f"{stage}, {when} did not come"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_page_that_is_ended_leaves_nothing_half(tmp_path, trial, minutes, number):
    tally = trial(f"{signal.Signals(number).name} at each stage")
    killed = number == signal.SIGKILL
    moments = list(MOMENTS.items())
    moments = moments[: FEW if killed else 1] if minutes < 10 else moments * 3
    served = Page(tmp_path, delay=0.05)
    try:
        for stage, when in moments:
            with httpx.Client(base_url=served.url) as client:
                assert is_served(tally, client)
                whole = served.results() - set(served.half())
                event = start_call(tally, client, num_frames=33, num_inference_steps=5)
                wait_for(client, event, stage, when)
                began = time.monotonic()
                code = served.end(number)
                assert code == (-number if killed else 128 + number)
                assert time.monotonic() - began < 5
            if not killed and list(served.runs.glob(f"{UNFINISHED}*")):
                tally.left.append(f"{stage}: {served.half()}")
            served.start()
            until(lambda: not served.half())
            # Gradio itself takes away what it has sent, where it comes to its end.
            if killed and not whole <= served.results():
                tally.lost.append(f"{stage}: a result from before")
            with httpx.Client(base_url=served.url) as client:
                if not is_served(tally, client):
                    tally.lost.append(f"{stage}: the next run")
    finally:
        served.end(signal.SIGKILL)
    tally.notes = f"{len(moments)} times"
    tally.tracebacks = served.tracebacks()
    assert tally.fails() == {}


# Disks


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of its own, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may mount no disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def ends_in_one_message(tally: Tally, served: Page, client: httpx.Client) -> None:
    """A run that can't be written says so, and nothing of it stays."""
    before = served.results()
    text = read_call(tally, client, start_call(tally, client, num_frames=33))
    [data] = re.findall(r"event: error\ndata: (.*)", text) or [""]
    message = json.loads(data).get("error", "") if data.startswith("{") else data
    assert "disk is full" in message and str(served.files) not in text
    tally.check_message(message, "a full disk")
    until(lambda: served.results() == before)


def test_a_full_disk_is_one_message(small_disk, tmp_path, trial):
    tally = trial("full disk")
    filler = small_disk / "filler"
    with page(tmp_path, files=small_disk) as served, httpx.Client(base_url=served.url) as client:
        for _ in range(2):
            if not is_served(tally, client):
                tally.lost.append("a run with room")
            with filler.open("wb", buffering=0) as file, pytest.raises(OSError):
                while True:
                    file.write(bytes(2**12))
            ends_in_one_message(tally, served, client)
            filler.unlink()
        if not is_served(tally, client):
            tally.lost.append("the next run")
        with suppress(AssertionError):  # what a run shows early goes a moment after it
            until(lambda: not served.half())
        tally.tracebacks, tally.left = served.tracebacks(), served.half()
    assert tally.fails() == {}


def test_files_that_may_not_grow_are_one_message(tmp_path, trial):
    tally = trial("limited files")
    with page(tmp_path, file_size=150_000) as served, httpx.Client(base_url=served.url) as client:
        ends_in_one_message(tally, served, client)
        if not is_served(tally, client):
            tally.lost.append("the next run")
        with suppress(AssertionError):  # what a run shows early goes a moment after it
            until(lambda: not served.half())
        tally.tracebacks, tally.left = served.tracebacks(), served.half()
    assert tally.fails() == {}
