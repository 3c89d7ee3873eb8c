"""What is answered before the queue: forms, arguments, places, and calls that nobody waits for."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx
import pytest
from fakes import fake_models, served, until
from gradio.utils import get_upload_folder
from gradio_client import Client
from gradio_client.exceptions import ValidationError
from gradio_client.utils import QueueError
from starlette.middleware import Middleware

import app
from ultragen.runs.loading import Models
from ultragen.runs.request import Request
from ultragen.web import cache
from ultragen.web.asgi import LARGEST
from ultragen.web.cache import LARGEST_UPLOAD
from ultragen.web.call_places import CALLER, MAKES_CLIPS, OWN_PLACES, PLACES, check_places
from ultragen.web.calls import Refused
from ultragen.web.gate import Gate
from ultragen.web.settings import SETTINGS

LONG = {"prompt": "a calm lake", "num_frames": 1, "num_inference_steps": 100}
SHORT = {**LONG, "num_inference_steps": 1}
IN_ORDER = list(Request(**LONG).to_dict().values())
GRACE = 1.0


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Serves a page that soon drops calls which nobody waits for."""
    options = app.launch_options()

    def start(models: Models, monkeypatch: pytest.MonkeyPatch, grace: float = GRACE):
        # A new dictionary each time: Gradio writes into it.
        inside = {"app_kwargs": {"middleware": [Middleware(Gate, grace=grace)]}}
        monkeypatch.setattr(app, "launch_options", lambda: options | inside)
        return served(models, tmp_path_factory.mktemp("runs"))

    return start


@pytest.fixture(scope="module")
def server(serve):
    models = fake_models(delay=0.05)
    with pytest.MonkeyPatch.context() as monkeypatch, serve(models, monkeypatch) as url:
        yield SimpleNamespace(url=url, api=f"{url}/gradio_api", pipe=models.native)


def post(server, path: str, **given) -> httpx.Response:
    return httpx.post(f"{server.api}/{path}", **given)


def tool(server, arguments: object, name: str = "generate", **more) -> dict:
    params = {"name": name, "arguments": arguments}
    message = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}
    accept = {"accept": "application/json, text/event-stream"}
    return {"json": message, "headers": accept, "url": f"{server.api}/mcp/", **more}


# Arguments and forms


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("prompt=a+lake", 400, "must be JSON"),
        ("[" * 100_000, 400, "must be JSON"),
        ("\xff", 400, "must be JSON"),
        ("[]", 422, "object of arguments: prompt, resolution"),
        ("null", 422, "object of arguments"),
        ("{}", 422, "'prompt' is missing, of these: prompt, resolution"),
        ('{"prompt": "a", "sead": 1}', 422, "no argument 'sead': choose from prompt, "),
        ('{"prompt": "a", "": 1}', 422, "no argument ''"),
        ('{"prompt": "a", "\\ud800": 1}', 422, "no argument '\\ud800'"),
        ('{"prompt": "a", "seed": "many"}', 422, "seed must be a whole number"),
        ('{"prompt": "a", "seed": [{}]}', 422, "seed must be a whole number"),
        ('{"prompt": "a", "seed": Infinity}', 422, "seed must be a whole number"),
        ('{"prompt": "a", "seed": ' + "9" * 5000 + "}", 422, "seed must be a whole number"),
        ('{"prompt": "a", "seed": -1' + "0" * 400 + "}", 422, "seed must be from 0"),
        ('{"prompt": "a", "guidance_scale": NaN}', 422, "guidance_scale must be a number from 0"),
        ('{"prompt": "a", "guidance_scale": 1e999}', 422, "from 0 to 100, not inf"),
        ('{"prompt": "a lake\\ud800"}', 422, "prompt has the lone surrogate U+D800 at position 7"),
        ('{"prompt": "a", "windows": 101}', 422, "windows 101 are too many"),
        ('{"prompt": "a", "windows": "' + "9" * 5000 + '"}', 422, "windows '999"),
        ('{"prompt": "a", "upscaler": "' + "u" * 300 + '"}', 422, "network or lanczos"),
        ('{"prompt": "a", "loras": {"' + "l" * 300 + '": 1}}', 422, "no LoRA 'lll"),
        ('{"prompt": "' + "a" * LARGEST + '"}', 413, "bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_call_is_answered_at_once_with_the_way_out(server, body, status, words):
    content = body.encode("latin-1")
    answer = post(server, "call/v2/generate", content=content)
    assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text
    assert len(answer.text) < 2000


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", ""])
def test_json_is_json_whatever_it_is_sent_as(server, kind):
    headers = {"content-type": kind} if kind else {}
    answer = post(server, "call/v2/generate", content=json.dumps(SHORT), headers=headers)
    assert "event: complete" in read(server, event_id(answer)).text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("call/v2/nothing", 404),
        ("call/nothing", 404),
        ("call/run", 404),  # the page's own
        ("call/v2/x/generate", 404),
        ("run/generate", 404),
        ("api/generate", 404),
        ("run/predict", 404),
        ("queue/join", 404),
        ("call/generate", 422),
    ],
)
def test_a_wrong_endpoint_or_form_names_the_right_one(server, path, status):
    answer = post(server, path, json={"data": [], "session_hash": "me", "fn_index": 10**6})
    assert answer.status_code == status
    assert "/gradio_api/call/v2/generate" in answer.json()["error"]


def test_a_list_of_values_is_read_in_order(server):
    wrong = [*IN_ORDER[:4], -1, *IN_ORDER[5:]]
    answer = post(server, "call/generate", json={"data": wrong})
    assert SETTINGS[4] == "seed"
    assert "seed must be from 0" in answer.json()["error"]


def test_a_list_of_before_there_were_shapes_still_runs(server):
    of_then = IN_ORDER[: SETTINGS.index("aspect")]
    assert len(of_then) == 12
    quick = [1 if name == "num_inference_steps" else value for name, value in
             zip(SETTINGS, of_then, strict=False)]  # fmt: skip
    event = post(server, "call/generate", json={"data": quick}).json()["event_id"]
    answer = httpx.get(f"{server.api}/call/generate/{event}", timeout=60).text
    metadata = json.loads(answer.strip().splitlines()[-1].removeprefix("data:"))[3]
    assert metadata["request"]["aspect"] == "16:9"
    assert post(server, "call/generate", json={"data": of_then[:-1]}).status_code == 422


def test_the_connection_serves_the_next_call_after_a_refusal(server):
    with httpx.Client() as client:
        for _ in range(3):
            assert client.post(f"{server.api}/call/v2/generate", json={}).status_code == 422
            assert client.post(f"{server.api}/call/v2/nothing", json={}).status_code == 404


@pytest.mark.parametrize(
    ("arguments", "name", "words"),
    [
        ({"prompt": "a", "seed": "many"}, "generate", "seed must be a whole number"),
        ({"prompt": "a", "sead": 1}, "generate", "no argument 'sead': choose from prompt"),
        ({}, "generate", "'prompt' is missing"),
        ([1], "generate", "object of arguments"),
        ({}, "generale", "no tool 'generale': choose from generate"),
        ({}, ["generate"], "choose from generate"),
    ],
)
def test_a_wrong_tool_call_says_what_to_change(server, arguments, name, words):
    pytest.importorskip("mcp")
    result = httpx.post(**tool(server, arguments, name)).json()["result"]
    assert result["isError"] and words in result["content"][0]["text"]


def test_a_tool_takes_what_the_endpoint_takes(server):
    pytest.importorskip("mcp")
    given = {**SHORT, "windows": 4, "resolution": " 544P ", "num_inference_steps": 1.0, "seed": 3}
    answer = httpx.post(**tool(server, given | {"guidance_scale": None}, timeout=60))
    result = json.loads(answer.text.rpartition("data: ")[2])["result"]
    assert not result["isError"], result
    assert "side_by_side" in str(result["content"])


# Calls that nobody waits for


def event_id(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["event_id"]


def read(server, event: str) -> httpx.Response:
    return httpx.get(f"{server.api}/call/generate/{event}", timeout=60)


def is_served(server) -> bool:
    answer = read(server, event_id(post(server, "call/v2/generate", json=SHORT)))
    return "event: complete" in answer.text


def test_a_call_that_nobody_waits_for_is_dropped_and_says_so(server):
    running, waiting = (event_id(post(server, "call/v2/generate", json=LONG)) for _ in range(2))
    began = time.monotonic()
    assert is_served(server)
    assert time.monotonic() - began < 100 * 0.05
    for event in (running, waiting):
        told = read(server, event).text
        assert "event: error" in told and "Nobody waited for this call" in told


def test_a_call_that_is_waited_for_outlives_the_grace(server):
    given = LONG | {"num_inference_steps": int(2 * GRACE / 0.05)}
    event = event_id(post(server, "call/v2/generate", json=given))
    assert "event: complete" in read(server, event).text
    again = read(server, event)  # it was read
    assert again.status_code == 404 and "call again" in again.json()["error"]


@pytest.mark.parametrize("read", [True, False])
def test_time_in_which_the_server_stands_still_counts_against_nobody(monkeypatch, read):
    gate, event = Gate(None, grace=0.2), SimpleNamespace(_id="call", session_hash="call", fn=None)
    places, names = SimpleNamespace(queue=[event]), {}
    queue = SimpleNamespace(
        event_queue_per_concurrency_id={"run": places}, active_jobs=[],
        event_ids_to_events=names, pending_event_ids_session=names,
    )  # fmt: skip
    state = SimpleNamespace(state_holder=None, iterators_to_reset=set())
    dropped = []

    async def drop(queue, event, why: str) -> None:
        dropped.append(event)

    async def watched() -> list:
        watch = asyncio.create_task(gate._watch(queue, event, state))
        await asyncio.sleep(0.01)
        time.sleep(1)  # all of the loop, and whoever comes to read
        await asyncio.sleep(0.01)
        gate.listeners["call"] += read
        await asyncio.sleep(0.6)
        places.queue.clear()
        await watch
        return dropped

    monkeypatch.setattr("ultragen.web.gate.drop", drop)
    monkeypatch.setattr(gate.sessions, "end_call", lambda *_: None)
    monkeypatch.setattr(gate, "_let_go", lambda *_: None)
    assert asyncio.run(watched()) == ([] if read else [event])


def test_a_tool_whose_caller_is_gone_stops(server):
    pytest.importorskip("mcp")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(**tool(server, LONG, timeout=httpx.Timeout(10, read=1)))
    began = time.monotonic()
    assert is_served(server)
    assert time.monotonic() - began < 2.5


@pytest.mark.parametrize("meta", [{}, {"_meta": {"progressToken": 5}}])
def test_a_tool_answers_in_blocks_whether_or_not_progress_is_asked_for(server, meta):
    pytest.importorskip("mcp")
    message = tool(server, SHORT, timeout=60)
    message["json"]["params"] |= meta
    answer = httpx.post(**message).text
    told = [json.loads(line[5:]) for line in answer.splitlines() if line.startswith("data:")]
    progress = [each for each in told if each.get("method") == "notifications/progress"]
    assert bool(progress) == bool(meta)
    blocks = [block["text"] for block in told[-1]["result"]["content"]]
    assert len(blocks) == 4
    for address in blocks[:3]:
        assert address.startswith(f"{server.url}/") and address.endswith(".mp4")
        assert httpx.get(address).content[4:8] == b"ftyp"
    assert Request.from_metadata(json.loads(blocks[3])).prompt == "a calm lake"


def test_gradios_own_links_which_leave_files_are_not_made(server):
    answer = httpx.get(f"{server.api}/deep_link?session_hash=any")
    assert answer.status_code == 404 and "press Share" in answer.json()["error"]


# Places


def test_one_caller_gets_no_more_than_its_places(serve, monkeypatch):
    with serve(fake_models(delay=0.5), monkeypatch, grace=60) as url:
        server = SimpleNamespace(api=f"{url}/gradio_api")
        client = Client(url, verbose=False)
        jobs = [client.submit(**LONG, api_name="/generate")]
        until(lambda: jobs[0].status().code.name in ("PROGRESS", "ITERATING"))
        jobs += [client.submit(**LONG, api_name="/generate") for _ in range(OWN_PLACES + 1)]
        until(lambda: any(job.done() for job in jobs))
        refused = [job for job in jobs if job.done()]
        with pytest.raises(QueueError, match="Queue is full"):
            refused[0].result()
        for _ in range(PLACES - OWN_PLACES):
            event_id(post(server, "call/v2/generate", json=LONG))
        full = post(server, "call/v2/generate", json=LONG)
        assert full.status_code == 429 and "all 20 places" in full.json()["error"]
        assert post(server, "call/v2/generate", json={}).status_code == 422  # also when it is full
        with pytest.raises(ValidationError, match="seed must be"):
            Client(url, verbose=False).predict("a lake", seed=-1, api_name="/generate")
        own = httpx.post(**tool(server, LONG)).json()["result"]
        assert own["isError"] and "all 20 places" in own["content"][0]["text"]
        for job in jobs:
            job.cancel()


@pytest.mark.parametrize(
    ("space", "address", "forwarded", "session", "caller"),
    [
        ("", "10.0.0.7", "", "tab", "10.0.0.7"),
        ("", "10.0.0.7", "1.2.3.4", "", "10.0.0.7"),  # anyone may claim that
        ("", "127.0.0.1", "", "tab", "127.0.0.1 tab"),
        ("", "127.0.0.1", "", "", "127.0.0.1 "),
        ("me/ultragen", "10.0.0.7", "1.2.3.4, 10.0.0.1", "tab", "1.2.3.4"),
    ],
)
def test_a_caller_is_an_address(space, address, forwarded, session, caller, monkeypatch):
    monkeypatch.setenv("SPACE_ID", space)
    headers = [(b"x-forwarded-for", forwarded.encode())]
    assert Gate(None)._caller({"client": (address, 1), "headers": headers}, session) == caller


def test_who_has_its_places_gets_no_more_and_others_do():
    waiting = [SimpleNamespace(request=SimpleNamespace(scope={CALLER: "a"}))] * OWN_PLACES
    runs, others = (SimpleNamespace(queue=queue) for queue in (waiting, waiting * PLACES))
    queue = SimpleNamespace(event_queue_per_concurrency_id={MAKES_CLIPS: runs, "watch": others})
    check_places(queue, "b")
    with pytest.raises(Refused, match=f"one caller may have {OWN_PLACES}"):
        check_places(queue, "a")


def test_a_script_learns_that_the_page_has_stopped(serve, monkeypatch):
    with serve(fake_models(delay=0.05), monkeypatch) as url:
        job = Client(url, verbose=False).submit(**LONG, api_name="/generate")
        time.sleep(1)
    with pytest.raises(KeyError, match="unexpected_error"):  # gradio_client 2.7.2 knows no better
        job.result(timeout=20)


# Uploads


def upload(server, content: bytes, name: str = "a.json", field: str = "files") -> httpx.Response:
    return post(server, "upload", files={field: (name, content)})


def test_uploads_are_small(server):
    assert upload(server, b"{}").status_code == 200
    answer = upload(server, bytes(LARGEST_UPLOAD + 1))
    assert answer.status_code == 413 and f"{LARGEST_UPLOAD:,} bytes" in answer.json()["error"]


@pytest.mark.parametrize(
    "given",
    [
        {"files": {"other": ("a.json", b"{}")}},
        {"files": {"files": ("a.json", b"{}")}, "data": {"files": "no file"}},
        {"data": {"files": "no file"}},
        {"json": {}},
        {"content": b"--x", "headers": {"content-type": "multipart/form-data; boundary=x"}},
        {"content": b"--x", "headers": {"content-type": "multipart/form-data"}},
    ],
    ids=str,
)
def test_uploads_of_another_form_are_told_theirs(server, given):
    answer = post(server, "upload", **given)
    assert answer.status_code == 400, answer.text
    assert "multipart/form-data" in answer.json()["error"]


@pytest.mark.parametrize("path", ["component_server", "process_recording", "reset", "no/such"])
def test_nothing_else_takes_more_than_a_call(server, path):
    answer = post(server, path, content=bytes(LARGEST + 1))
    assert answer.status_code == 413


@pytest.fixture
def gradio(tmp_path, monkeypatch):
    """What stands in for Gradio's route: it writes one file, first under a name of its own."""
    monkeypatch.setattr(cache, "get_upload_folder", lambda: str(tmp_path))
    blocks = SimpleNamespace(blocks={}, upload_file_set=set(), uploads=cache.Uploads())
    blocks.temp_file_sets = [blocks.upload_file_set]
    headers = [(b"content-type", b"multipart/form-data; boundary=x")]
    scope = {"app": SimpleNamespace(get_blocks=lambda: blocks), "type": "http", "headers": headers}

    def send(path: Path, full: bool = False) -> None:
        async def write(scope, receive, send) -> None:
            (tmp_path / "tmp123").write_bytes(b"abc")
            if full:
                raise OSError("no space left on device")
            path.parent.mkdir(exist_ok=True)
            (tmp_path / "tmp123").rename(path)
            blocks.upload_file_set.add(str(path))
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": json.dumps([str(path)]).encode()})

        async def receive() -> dict:
            part = b'Content-Disposition: form-data; name="files"; filename="a"\r\n\r\nabc'
            return {"type": "http.request", "body": b"--x\r\n" + part + b"\r\n--x--\r\n"}

        async def ignore(message: dict) -> None:
            pass

        asyncio.run(blocks.uploads.take(write, scope, receive, ignore))

    blocks.send = send
    return blocks


@pytest.mark.parametrize("path", ["reset", "cancel", "component_server", "process_recording"])
def test_what_is_no_text_is_refused_as_that(server, path):
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = post(server, path, content=b"\xca", headers=headers)
    assert answer.status_code == 400 and "must be JSON" in answer.json()["error"]


def test_uploads_do_not_pile_up(gradio, tmp_path, monkeypatch):
    shown = tmp_path / "hash" / "poster.jpg"
    gradio.blocks[1] = SimpleNamespace(keep_in_cache={str(shown)})
    monkeypatch.setattr(cache, "KEPT", LARGEST_UPLOAD + 2)
    gradio.send(shown)
    with pytest.raises(Refused, match="Too many files"):
        gradio.send(tmp_path / "other" / "a.json")
    monkeypatch.setattr(cache, "KEPT", 2 * LARGEST_UPLOAD)
    gradio.send(tmp_path / "other" / "a.json")
    monkeypatch.setattr(cache, "KEPT_FOR", -1.0)
    gradio.uploads.sweep(gradio)
    assert [path.name for path in tmp_path.iterdir()] == ["hash"] and shown.exists()
    assert not gradio.upload_file_set


@pytest.mark.parametrize(
    ("length", "size"),
    [(b"12", 12), (b"9" * 20, LARGEST_UPLOAD), (b"", LARGEST_UPLOAD), (b"-1", LARGEST_UPLOAD)],
)
def test_an_upload_takes_as_much_room_as_it_announces(length, size):
    assert cache._announced({"headers": [(b"content-length", length)]}) == size


def test_an_upload_to_a_full_disk_leaves_nothing(gradio, tmp_path, capsys):
    with pytest.raises(Refused, match="no room for files"):
        gradio.send(tmp_path / "other" / "a.json", full=True)
    assert list(tmp_path.iterdir()) == []
    assert "no space left" in capsys.readouterr().err


def test_an_upload_that_does_not_come_to_its_end_leaves_nothing(server):
    before = set(Path(get_upload_folder()).glob("tmp*"))
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\nContent-Disposition: "
            b'form-data; name="files"; filename="a.json"\r\n\r\n{'
        )
        time.sleep(0.2)
    time.sleep(0.3)
    assert set(Path(get_upload_folder()).glob("tmp*")) == before


# MCP's older transport


async def by_older_transport(server, *calls: dict, leave=lambda: False) -> list[str]:
    """What its tool says of each call; the client leaves once it is told to."""
    from mcp import ClientSession
    from mcp.client.sse import sse_client

    said = []
    async with (
        sse_client(f"{server.api}/mcp/sse") as streams,
        ClientSession(*streams) as session,
    ):
        await session.initialize()
        for arguments in calls:
            answer = asyncio.create_task(session.call_tool("generate", arguments))
            while not answer.done() and not leave():
                await asyncio.sleep(0.01)
            if not answer.done():
                answer.cancel()
                break
            said.append(str(answer.result()))
    return said


def test_the_older_transport_answers_as_the_newer_one(server):
    pytest.importorskip("mcp")
    calls = ({"prompt": "a", "sead": 1}, {}, {"prompt": "a", "seed": -1}, SHORT)
    *refused, made = asyncio.run(by_older_transport(server, *calls))
    wanted = ("no argument 'sead': choose from", "is missing, of these", "seed must be from 0")
    for words, said in zip(wanted, refused, strict=True):
        assert words in said and "isError=True" in said
    assert "isError=False" in made and "side_by_side" in made


def test_who_leaves_the_older_transport_stops_the_tool(server, capfd):
    pytest.importorskip("mcp")
    before = server.pipe.steps_done
    left = by_older_transport(server, LONG, leave=lambda: server.pipe.steps_done > before)
    assert asyncio.run(left) == []
    began = time.monotonic()
    assert is_served(server)
    assert time.monotonic() - began < 2.5
    assert "Traceback" not in capfd.readouterr().err


# What is cancelled by a message of its own


def cancel(server, number: object) -> None:
    params = {"requestId": number, "reason": "another idea"}
    message = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
    assert httpx.post(**tool(server, {}) | {"json": message}).status_code == 202


def start_tool(server, number: int, arguments: dict) -> Future:
    """A tool call, and what comes of it."""
    call = tool(server, arguments, timeout=60)
    call["json"]["id"] = number
    answer: Future = Future()
    Thread(target=lambda: answer.set_result(httpx.post(**call).text), daemon=True).start()
    return answer


def test_a_tool_call_that_is_cancelled_stops(server):
    pytest.importorskip("mcp")
    before = server.pipe.steps_done
    answer = start_tool(server, 11, LONG)
    until(lambda: server.pipe.steps_done > before)
    for number in (12, None, [11]):
        cancel(server, number)
    assert not answer.done()
    cancel(server, 11)
    assert "The caller is gone" in answer.result(5)
    began = time.monotonic()
    assert is_served(server)
    assert time.monotonic() - began < 2.5


def test_a_number_that_two_tool_calls_have_stops_neither(server):
    pytest.importorskip("mcp")
    before = server.pipe.steps_done
    given = LONG | {"num_inference_steps": 30}
    answers = [start_tool(server, 21, given) for _ in range(2)]
    until(lambda: server.pipe.steps_done > before)
    until(lambda: httpx.get(f"{server.api}/queue/status").json()["queue_size"] == 1)
    cancel(server, 21)
    assert all("side_by_side" in answer.result(60) for answer in answers)


def test_a_call_that_is_cancelled_between_two_items_does_not_begin_anew():
    """Gradio's own answer to it forgets the generator, and awaits in between."""
    jobs = [SimpleNamespace(_id=name, alive=True) for name in ("gone", "stays")]
    queue = SimpleNamespace(active_jobs=[None, jobs])
    blocks = SimpleNamespace(_queue=queue)
    seen = []

    async def gradio(scope, receive, send) -> None:
        seen.append([job.alive for job in jobs])

    async def receive() -> dict:
        return {"type": "http.request", "body": json.dumps({"event_id": "gone"}).encode()}

    scope = {"type": "http", "method": "POST", "path": "/gradio_api/cancel", "headers": []}
    scope["app"] = SimpleNamespace(get_blocks=lambda: blocks)
    asyncio.run(Gate(gradio)(scope, receive, None))
    assert seen == [[False, True]]
