"""What Gradio keeps of calls that have ended."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import httpx
import pytest
from fakes import fake_models, served, until
from gradio.server_messages import (
    EstimationMessage,
    ProcessCompletedMessage,
    ProcessGeneratingMessage,
)
from starlette.middleware import Middleware

import app
from ultragen.web import answers, gate
from ultragen.web.gate import Gate

GIVEN = {"prompt": "a calm lake", "num_frames": 1, "num_inference_steps": 2}
GRACE = 2.0


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page whose calls are soon dropped, its queue, and what makes its clips."""
    built, build = [], app.build
    options = app.launch_options()
    options["app_kwargs"] |= {"middleware": [Middleware(Gate, grace=GRACE)]}
    monkeypatch.setattr(app, "build", lambda *given: built.append(build(*given)) or built[-1])
    monkeypatch.setattr(app, "launch_options", lambda: options)
    models = fake_models(delay=0.05)
    with served(models, tmp_path) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield SimpleNamespace(client=client, queue=built[0]._queue)


def call(page, **given) -> str:
    return page.client.post("/gradio_api/call/v2/generate", json=GIVEN | given).json()["event_id"]


def address(name: str) -> str:
    return f"/gradio_api/call/generate/{name}"


def test_of_calls_that_nobody_reads_nothing_is_kept(page, monkeypatch):
    monkeypatch.setattr(gate, "UNREAD", 0.1)
    call(page)  # ends before it is dropped
    until(lambda: not page.queue.event_ids_to_events)
    running = call(page, num_inference_steps=100)
    call(page)  # is dropped while it waits
    with page.client.stream("GET", address(running)) as answer:
        next(line for line in answer.iter_lines() if "generating" in line)
    until(lambda: not page.queue.event_ids_to_events)
    cancelled = call(page, num_inference_steps=100)
    until(lambda: cancelled in page.queue.server_app.iterators)
    body = {"session_hash": cancelled, "event_id": cancelled, "fn_index": 0}
    page.client.post("/gradio_api/cancel", json=body)
    until(lambda: not page.queue.event_ids_to_events)
    until(lambda: page.queue.pending_event_ids_session == {})
    assert not page.queue.pending_messages_per_session
    assert not page.queue.server_app.iterators_to_reset


def test_a_call_is_dropped_once_however_long_its_last_step_takes(page, monkeypatch):
    dropped = []

    async def drop(queue, event, why: str) -> None:
        dropped.append(event._id)

    monkeypatch.setattr(gate, "drop", drop)
    name = call(page, num_inference_steps=100)  # it is looked at each half second
    until(lambda: not page.queue.event_ids_to_events)
    assert dropped == [name]


def test_a_call_goes_whose_end_gradio_does_not_reach(page, monkeypatch):
    async def closed_meanwhile(call: str) -> None:
        raise KeyError(call)

    monkeypatch.setattr(page.queue, "reset_iterators", closed_meanwhile)
    name = call(page)
    assert "event: complete" in page.client.get(address(name)).text
    until(lambda: page.queue.event_ids_to_events == {})
    assert page.queue.pending_event_ids_session == {}


def test_an_answer_waits_for_who_comes_late_and_without_what_went_before(page):
    name = call(page, num_inference_steps=8)
    waiting = page.queue.pending_messages_per_session[name]
    until(lambda: waiting.qsize() > 1)
    until(lambda: not page.queue.event_ids_to_events and waiting.qsize() == 1)
    assert len(page.queue.event_analytics) == 1
    text = page.client.get(address(name)).text
    assert text.startswith("event: ") and text.count("event: ") == 1
    assert page.client.get(address(name)).status_code == 404


def queue(said: dict[str, list], waiting: dict[str, set], going: dict[str, str]) -> SimpleNamespace:
    """Gradio's, of messages and calls by session, and the sessions of calls that go on."""
    messages = {session: asyncio.Queue() for session in said}
    for session, each in said.items():
        for message in each:
            messages[session].put_nowait(message)
    events = {name: SimpleNamespace(session_hash=session) for name, session in going.items()}
    return SimpleNamespace(
        pending_messages_per_session=messages,
        pending_event_ids_session=waiting,
        event_ids_to_events=events,
    )


def test_only_what_its_end_tells_goes_and_nothing_of_other_calls():
    def messages(name: str) -> list:
        made = {"output": {}, "success": True, "event_id": name}
        waits = EstimationMessage(queue_size=1, event_id=name)
        return [waits, ProcessGeneratingMessage(**made), ProcessCompletedMessage(**made)]

    first, second = messages("first"), messages("second")
    held = queue({"script": first + second}, {}, {})
    answers.shorten(held, SimpleNamespace(session_hash="script", _id="first"))
    answers.shorten(held, SimpleNamespace(session_hash="gone", _id="third"))
    left = held.pending_messages_per_session["script"]
    assert [left.get_nowait() for _ in range(left.qsize())] == [first[-1], *second]


def test_sessions_stay_while_they_go_on_or_can_be_read():
    waiting = {"goes on": set(), "unread": {"a"}, "read": set(), "hung up": {"b"}}
    held = queue({"goes on": [], "unread": ["an end"], "read": []}, waiting, {"c": "goes on"})
    assert answers.session_of(held, "c") == "goes on"
    assert answers.session_of(held, "a") == "unread"
    assert answers.session_of(held, "d") is None
    for session in [*waiting, "unknown"]:
        answers.let_go(held, session)
    assert [*held.pending_messages_per_session] == ["goes on", "unread"]
    assert waiting == {"goes on": set(), "unread": {"a"}}
