"""What Gradio keeps of sessions."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import gradio as gr
import httpx
import pytest
from fakes import fake_models, served, until
from gradio.state_holder import StateHolder

from ultragen.web.gate import Gate
from ultragen.web.sessions import Sessions

NOW = datetime(2026, 1, 1)


@pytest.fixture
def holder() -> StateHolder:
    """Sessions of a page with a value, of a client without one, and of a call."""
    with gr.Blocks() as blocks:
        seen = gr.State([])
    held = StateHolder()
    held.set_blocks(blocks)
    held["page"][seen._id] = ["a run"]
    for session in ("client", "call"):
        assert held[session] is not None
    for session, minutes in (("page", 30), ("client", 30), ("call", 30)):
        held.time_last_used[session] = NOW - timedelta(minutes=minutes)
    return held


def test_a_call_that_has_ended_leaves_no_session(holder):
    sessions = Sessions()
    with sessions.connected("client"):
        for session in ("page", "client", "call", "another", None):
            sessions.end_call(holder, session)
    assert [*holder.session_data] == [*holder.time_last_used] == ["page", "client"]


def test_sessions_go_when_nobody_can_come_back_to_them(holder):
    sessions = Sessions()
    with sessions.connected("client"), sessions.connected("client"):
        sessions.sweep(holder, NOW)
        assert [*holder.session_data] == ["page", "client"]
    sessions.sweep(holder, NOW)
    assert [*holder.session_data] == ["page"]
    with sessions.connected("page"):
        sessions.sweep(holder, NOW + timedelta(days=1))
        assert [*holder.session_data] == ["page"]
    sessions.sweep(holder, NOW + timedelta(minutes=29))
    assert [*holder.session_data] == ["page"]
    sessions.sweep(holder, NOW + timedelta(minutes=31))
    assert [*holder.session_data] == []


def test_a_heartbeat_keeps_a_session_while_it_lasts():
    seen = []

    async def behind(scope, receive, send) -> None:
        seen.append(dict(gate.sessions._connected))

    gate = Gate(behind)
    asyncio.run(gate({"path": "/gradio_api/heartbeat/abc", "method": "GET"}, None, None))
    assert seen == [{"abc": 1}]
    assert not gate.sessions._connected


def test_gradio_keeps_nothing_of_a_call(tmp_path, monkeypatch):
    ended, queues, end = [], [], Sessions.end_call

    def noted(self, holder, session) -> None:
        had = session in holder
        end(self, holder, session)
        ended.append((session, had, len(holder.session_data)))
        queues.append(holder.blocks._queue)

    monkeypatch.setattr(Sessions, "end_call", noted)
    given = {"prompt": "a calm lake", "num_frames": 1, "num_inference_steps": 1}
    with served(fake_models(), tmp_path) as url:
        for number in range(1, 3):
            called = httpx.post(f"{url}/gradio_api/call/v2/generate", json=given).json()
            answer = httpx.get(f"{url}/gradio_api/call/generate/{called['event_id']}")
            assert "event: complete" in answer.text
            until(lambda number=number: len(ended) == number)
            assert ended[-1] == (called["event_id"], True, 0)
            again = httpx.get(f"{url}/gradio_api/call/generate/{called['event_id']}")
            assert again.status_code == 404 and "read before" in again.text
        until(lambda: not queues[0].pending_messages_per_session)
        assert queues[0].pending_event_ids_session == {}
        components = httpx.get(f"{url}/config").json()["components"]
        asked = {"session_hash": "nobody", "component_id": components[0]["id"], "fn_name": "x"}
        for change in ({}, {"component_id": -1}, {"component_id": []}, {"session_hash": None}):
            given = asked | {"data": []} | change
            answer = httpx.post(f"{url}/gradio_api/component_server", json=given)
            assert answer.status_code == 404
        assert ended[2:] == [("nobody", True, 0)]
