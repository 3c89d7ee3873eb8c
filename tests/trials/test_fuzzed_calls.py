"""Calls drawn at random: each way in says what the check in this process says, and no other way
breaks the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fakes import fake_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trials import CALL, LONG, SHORT, Page, Tally, is_served, page, read_call

from ultragen.runs.request import Request
from ultragen.web.calls import DEFAULTS, Refused, by_name, checker, parsed
from ultragen.web.settings import SETTINGS

pytestmark = [pytest.mark.trials, pytest.mark.slow]
CHECK = checker(fake_models())

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(), max_size=40),
    st.integers(min_value=10**300, max_value=10**301),
    st.sampled_from(["9" * 5000, "\ud800", "a" * 20_000, "\x00", "NaN", "<b>", "../..", "{}", ""]),
    st.lists(st.integers() | st.text(max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=5), st.floats() | st.none(), max_size=3),
)
LIKELY: dict[str, st.SearchStrategy] = {
    "prompt": st.sampled_from(["a calm lake", "  a lake ", "🏔️ Ünïcode", "<i>lake</i>"]),
    "resolution": st.sampled_from(["544p", " 720P ", "4k", None, "8k", "544"]),
    "windows": st.sampled_from(["auto", "2", 4, " 6 ", 0, 3, 101, -2, 2.0]),
    "num_frames": st.sampled_from([1, 5, 29, None, 4, 0, -3, 5.0, "5", 10**9]),
    "seed": st.integers(-1, 2**64),
    "num_inference_steps": st.integers(-1, 102) | st.sampled_from(["7", 7.0, 7.5]),
    "guidance_scale": st.floats(-1, 101) | st.sampled_from(["5", None]),
    "negative_prompt": st.sampled_from(["", "snow", None]),
    "upscaler": st.sampled_from(["network", "lanczos", "bicubic", "/etc/passwd"]),
    "base_native": st.sampled_from(["on", "off", True, "yes"]),
    "loras": st.sampled_from([None, {}, {"style": 1.0}, [["style", 1]]]),
    "noise": st.sampled_from(["spectral", "independent", "white"]),
    "aspect": st.sampled_from(["16:9", "9:16", " 1:1 ", "5:4", None, 1.78]),
    "fps": st.sampled_from([None, 12, 24, "15", 13, 0, 24.0]),
    "guidance_interval": st.sampled_from(["0-1", "0.6 - 1", [0.6, 1], "1-0.6", "", None, 0.5]),
    "cache": st.sampled_from(["off", "taylor-2", " Taylor-3 ", "on", None, 2]),
    "shift": st.floats(-1, 101) | st.sampled_from([None, 5, "5", True]),
    "solver": st.sampled_from(["own", " Euler ", "unipc", "heun", None]),
    "base_num_inference_steps": st.integers(-1, 102) | st.sampled_from([None, "7", 7.0, 7.5]),
    "base_guidance_scale": st.floats(-1, 101) | st.sampled_from(["5", None]),
    "progressive": st.sampled_from(["auto", " On ", "off", "yes", None, True]),
}
assert list(LIKELY) == SETTINGS
DRAWN = {name: st.one_of(values, values, JUNK) for name, values in LIKELY.items()}
ARGUMENTS = st.lists(st.sampled_from(SETTINGS), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: DRAWN[name] for name in names})
)
UNKNOWN = st.one_of(*[st.just({})] * 3, st.dictionaries(st.text(max_size=10), JUNK, max_size=1))
MISSING = st.sampled_from([{}, {"prompt": "a calm lake"}, {"prompt": "a calm lake"}])


def drawn(number: int, minutes: float) -> settings:
    """So many examples; the same ones each time in a short trial, which others have to rely on."""
    return settings(
        max_examples=number,
        deadline=None,
        database=None,
        derandomize=minutes < LONG,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Page]:
    with page(tmp_path_factory.mktemp("fuzzed"), delay=0) as started:
        yield started


def expected(arguments: dict[str, Any]) -> Request | Refused:
    """What the check says of a call, read from the JSON that is sent."""
    try:
        return CHECK(by_name(parsed(json.dumps(arguments).encode())))
    except Refused as refusal:
        return refusal


def by_http(tally: Tally, client: httpx.Client, arguments: dict) -> tuple[int, str]:
    body = json.dumps(arguments).encode()
    answer = tally.ask(client, "POST", CALL, content=body)
    if answer is None or answer.status_code == 200:
        event = answer.json()["event_id"] if answer is not None else ""
        if "event: complete" not in read_call(tally, client, event):
            tally.lost.append(str(arguments)[:200])
        return 200, ""
    return answer.status_code, answer.json().get("error", answer.text)


def by_queue(tally: Tally, client: httpx.Client, arguments: dict) -> tuple[int, str]:
    """As `gradio_client` calls: all values in their order, and the answers of a session."""
    values = [({"prompt": None} | DEFAULTS | arguments)[name] for name in SETTINGS]
    session = uuid4().hex
    body = {"data": values, "fn_index": by_queue.index, "session_hash": session}
    answer = tally.ask(client, "POST", "/gradio_api/queue/join", content=json.dumps(body).encode())
    if answer is None or answer.status_code == 200:
        path = f"/gradio_api/queue/data?session_hash={session}"
        told = tally.ask(client, "GET", path)
        if told is not None and '"success":true' not in told.text:
            tally.lost.append(str(arguments)[:200])
        return 200, ""
    [detail] = answer.json()["detail"]
    assert detail["message"] == answer.json()["error"]
    return answer.status_code, answer.json()["error"]


def by_tool(tally: Tally, client: httpx.Client, arguments: dict) -> tuple[int, str]:
    params = {"name": "generate", "arguments": arguments}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    accept = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
    answer = tally.ask(
        client, "POST", "/gradio_api/mcp/", content=json.dumps(message).encode(), headers=accept
    )
    if answer is None:
        return 200, ""
    result = json.loads(answer.text.rpartition("data: ")[2])["result"]
    return (422, result["content"][0]["text"]) if result.get("isError") else (200, "")


def cheap(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same in a size that takes no time."""
    known = {name: arguments[name] for name in arguments if name not in ("windows", "base_native")}
    return known | SHORT | {"resolution": "544p", "prompt": arguments["prompt"]}


def test_every_way_in_says_what_the_check_says(served, trial, minutes):
    tally = trial("fuzzed calls")
    client = served.client()
    by_queue.index = next(
        each["id"]
        for each in client.get("/config").json()["dependencies"]
        if each["api_name"] == "generate"
    )
    counts = {"valid": 0, "refused": 0}

    @drawn(round(110 * minutes), minutes)
    @given(arguments=ARGUMENTS, unknown=UNKNOWN, prompt=MISSING)
    def calls(arguments: dict, unknown: dict, prompt: dict) -> None:
        asked = prompt | arguments | unknown
        wanted = expected(asked)
        if isinstance(wanted, Request):
            asked = cheap(asked)
            wanted = expected(asked)
        counts["valid" if isinstance(wanted, Request) else "refused"] += 1
        ways = [by_http, by_tool]
        if set(asked) <= set(SETTINGS):
            ways.append(by_queue)
        for way in ways:
            status, message = way(tally, client, asked)
            if isinstance(wanted, Request):
                assert status == 200, (way.__name__, message)
            elif way is by_queue and "prompt" not in asked:
                assert status == 422  # it has a value there, None
            else:
                assert (status, message) in ((wanted.status, wanted.message), (422, wanted.message))
                tally.check_message(message, asked)

    calls()
    tally.notes = f"{counts['valid']} valid, {counts['refused']} refused, by 2 or 3 ways each"
    tally.tracebacks = served.tracebacks()
    assert tally.fails() == {}


ROUTES = [
    "", "config", "theme.css", "robots.txt", "login", "logout", "token", "user", "monitoring",
    "gradio_api/info", "gradio_api/openapi.json", "gradio_api/startup-events", "gradio_api/app_id",
    "gradio_api/call/generate", "gradio_api/call/v2/generate", "gradio_api/call/nothing",
    "gradio_api/call/generate/0", "gradio_api/call/v2/generate/0", "gradio_api/queue/join",
    "gradio_api/queue/data", "gradio_api/queue/data?session_hash=me", "gradio_api/queue/status",
    "gradio_api/cancel", "gradio_api/reset", "gradio_api/run/generate", "gradio_api/run/predict",
    "gradio_api/api/predict", "gradio_api/component_server", "gradio_api/process_recording",
    "gradio_api/upload", "gradio_api/upload?upload_id=1", "gradio_api/upload_progress",
    "gradio_api/upload_progress?upload_id=2", "gradio_api/file=/etc/passwd", "gradio_api/file=",
    "gradio_api/file/%00", "gradio_api/file=%2e%2e/%2e%2e/x", "gradio_api/proxy=http://127.0.0.1",
    "gradio_api/stream/a/b/c/playlist.m3u8", "gradio_api/deep_link",
    "gradio_api/deep_link?session_hash=x", "gradio_api/mcp", "gradio_api/mcp/",
    "gradio_api/mcp/http", "gradio_api/mcp/schema", "gradio_api/mcp/sse", "gradio_api/mcp/messages",
    "gradio_api/heartbeat/me", "svelte/x", "assets/x", "static/x", "manifest.json",
    "gradio_api/custom_component/x/y/z/w", "no/such/page", "%ff", "?__theme=x",
    "gradio_api/dev/reload", "gradio_api/vibe-editor/", "gradio_api/monitoring/x",
    "ultragen/poster?run=..", "?run=../..&seed=x&prompt=%00",
]  # fmt: skip
KEYS = [
    "data", "fn_index", "session_hash", "event_id", "trigger_id", "component_id", "fn_name",
    "jsonrpc", "id", "method", "params", "prompt", "event_data", "session_id",
]  # fmt: skip
METHODS = ["initialize", "ping", "tools/list", "tools/call", "notifications/cancelled", "x"]
BODIES = st.one_of(
    st.binary(max_size=200),
    JUNK.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(KEYS), JUNK | st.integers(0, 30), max_size=6).map(
        lambda value: json.dumps(value).encode()
    ),
    st.builds(
        lambda method, params: json.dumps(
            {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        ).encode(),
        st.sampled_from(METHODS),
        JUNK | st.dictionaries(st.sampled_from(["name", "requestId", "arguments"]), JUNK),
    ),
)
TYPES = ["application/json", "multipart/form-data; boundary=x", "text/plain", "multipart/form-data"]


def test_no_request_breaks_the_page(served, trial, minutes):
    tally = trial("fuzzed requests")
    client = served.client()

    @drawn(round(200 * minutes), minutes)
    @given(
        method=st.sampled_from(["GET", "POST", "POST", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"]),
        route=st.sampled_from(ROUTES),
        body=BODIES,
        kind=st.sampled_from(TYPES),
    )
    def requests(method: str, route: str, body: bytes, kind: str) -> None:
        headers = {"content-type": kind, "accept": "application/json, text/event-stream"}
        request = client.build_request(method, f"/{route}", content=body, headers=headers)
        tally.requests += 1
        try:
            answer = client.send(request, stream=True)  # some answers end with the page
        except httpx.TimeoutException:
            tally.hangs.append(f"{method} {route} {kind} {body!r}")
            return
        answer.close()
        if answer.status_code >= 500:
            tally.server_errors.append(f"{method} {route} {kind} {body!r}: {answer.status_code}")

    requests()
    assert is_served(tally, client)
    tally.tracebacks = served.tracebacks()
    assert tally.fails() == {}
