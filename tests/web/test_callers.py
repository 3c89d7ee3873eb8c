"""A run belongs to somebody: what becomes of it when its caller cancels or vanishes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from threading import Event
from types import SimpleNamespace

import httpx
import pytest
from fakes import fake_models, served, until
from gradio_client import Client

from ultragen.presets import EMBEDDED
from ultragen.runs.progress import Progress
from ultragen.runs.request import Request
from ultragen.runs.worker import Finished
from ultragen.web.places import Place
from ultragen.web.runs import CANCELLED, Runs

LONG = {"prompt": "a calm lake", "num_frames": 1, "num_inference_steps": 60}
SHORT = {**LONG, "num_inference_steps": 1}
STEP = 0.05


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A page whose runs take a while; its pipeline counts steps and calls."""
    models = fake_models(delay=STEP)
    with served(models, tmp_path_factory.mktemp("runs")) as url:
        yield SimpleNamespace(url=url, pipe=models.native, call=f"{url}/gradio_api/call")


@pytest.fixture
def steps(server) -> Iterator[Callable[[], int]]:
    """Steps that were computed since the test began."""
    before = server.pipe.steps_done
    yield lambda: server.pipe.steps_done - before


def post(server, given: dict) -> str:
    answer = httpx.post(f"{server.call}/v2/generate", json=given)
    assert answer.status_code == 200, answer.text
    return answer.json()["event_id"]


def read(server, event: str) -> str:
    return httpx.get(f"{server.call}/generate/{event}", timeout=60).text


def is_served(server) -> bool:
    return "event: complete" in read(server, post(server, SHORT))


def test_a_client_that_cancels_stops_its_run_within_a_step(server, steps):
    client = Client(server.url, verbose=False)
    job = client.submit(**LONG, api_name="/generate")
    until(lambda: steps() >= 2)
    job.cancel()
    with pytest.raises((CancelledError, KeyError)):  # gradio_client 2.7.2: whichever is first
        job.result(timeout=20)
    assert is_served(server)
    assert steps() < 40


def test_a_caller_who_hangs_up_stops_the_run(server, steps):
    event = post(server, LONG)
    with httpx.stream("GET", f"{server.call}/generate/{event}", timeout=60) as answer:
        assert answer.status_code == 200
        until(lambda: steps() >= 2)
    assert is_served(server)
    assert steps() < 40


def test_a_run_that_is_cancelled_while_it_waits_never_starts(server, steps):
    before = len(server.pipe.calls)
    first, second = (Client(server.url, verbose=False) for _ in range(2))
    running = first.submit(**LONG, api_name="/generate")
    until(lambda: steps() >= 1)
    waiting = second.submit(**LONG, api_name="/generate")
    until(lambda: waiting.status().code.name == "IN_QUEUE")
    waiting.cancel()
    running.cancel()
    assert is_served(server)
    assert len(server.pipe.calls) == before + 2


def test_how_far_a_run_is_comes_before_its_result(server):
    answer = read(server, post(server, LONG | {"num_inference_steps": 8}))
    assert answer.count("event: complete") == 1
    assert '"fraction"' in answer and "step" in answer


class Part:
    """A GPU function that ends when it is told to, and counts who entered it."""

    def __init__(self) -> None:
        self.entered, self.inside, self.most = 0, 0, 0
        self.may_end = Event()

    def __call__(self, request: Request):
        self.entered += 1
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            while True:
                yield None
        finally:  # the step that was under way
            self.may_end.wait(20)
            self.inside -= 1


@pytest.fixture
def runs(tmp_path) -> Runs:
    return Runs(fake_models(), tmp_path)


@pytest.fixture
def asked() -> Request:
    return Request("a calm lake").validate(EMBEDDED)


def test_the_next_run_waits_for_the_step_that_a_cancelled_one_still_computes(runs, asked):
    part = Part()
    first, second = runs.items(asked, part), runs.items(asked, part)
    next(first)
    began = time.monotonic()
    first.close()
    assert time.monotonic() - began < 1  # Gradio's event loop, which closes it, goes on
    for _ in range(3):
        assert next(second) is None
    assert part.entered == 1
    part.may_end.set()
    until(lambda: next(second) is None and part.entered == 2)
    second.close()
    with runs.device:
        assert part.most == 1


@pytest.mark.parametrize("busy", [False, True])
def test_a_run_that_was_stopped_before_its_turn_never_reaches_the_gpu(runs, asked, busy):
    part, stop = Part(), Event()
    stop.set()
    if busy:
        runs.device.acquire()
    assert list(runs.items(asked, part, stop)) == [CANCELLED]
    if busy:
        runs.device.release()
    assert part.entered == 0
    with runs.device:
        pass


def test_a_finished_run_gives_the_device_back(runs):
    asked = Request("a calm lake", num_frames=1, num_inference_steps=1).validate(EMBEDDED)
    assert isinstance(list(runs.items(asked, runs.frames))[-1], Finished)
    assert runs.device.acquire(timeout=5)


# What pages that wait are told


@pytest.mark.parametrize(
    ("ahead", "seconds", "at", "is_news"),
    [
        (2, 100.0, 0.0, False),
        (2, 70.0, 30.0, False),  # as the page counts down
        (1, 70.0, 30.0, True),
        (2, 100.0, 30.0, True),  # it takes longer
        (2, 40.0, 30.0, True),
        (2, 1.0, 103.0, False),
        (2, 4.0, 103.0, True),
    ],
)
def test_a_page_is_told_what_it_does_not_count_down_itself(ahead, seconds, at, is_news):
    assert Place(ahead, seconds, at).is_news(Place(2, 100.0, 0.0)) == is_news
    assert Place(ahead, seconds, at).is_news(None)


def test_an_expected_wait_goes_down_between_two_steps(runs, asked):
    def part(request: Request) -> Iterator[Progress]:
        yield Progress("denoise", 1, 4, 0.25, "")
        while True:
            yield None

    going = runs.items(asked, part)
    assert runs.seconds_left() is None
    while not isinstance(next(going), Progress):
        pass
    before, began = runs.seconds_left(), time.monotonic()
    time.sleep(0.05)
    gone = before - runs.seconds_left()
    going.close()
    assert 0.05 <= gone <= time.monotonic() - began
