"""The page's API and what the page says, against a launched app with a stand-in model."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from shutil import copy
from threading import Event
from types import SimpleNamespace
from urllib.parse import parse_qsl

import gradio as gr
import httpx
import pytest
from fakes import PatientPipeline, fake_models, rejoin_on, run_on, served, until, without_a_server
from gradio_client import Client
from gradio_client.exceptions import AppError, ValidationError
from paths import ROOT, SUPPORT

import app
from ultragen.presets import EMBEDDED, RESOLUTIONS, LoraChoice
from ultragen.runs.clip import job
from ultragen.runs.compare import generate
from ultragen.runs.early import NativeReady
from ultragen.runs.progress import Progress
from ultragen.runs.request import Request
from ultragen.runs.worker import Failed, Finished
from ultragen.runs.write import remove_old
from ultragen.video import probe_video
from ultragen.web import views
from ultragen.web.browser import token
from ultragen.web.following import WAITING
from ultragen.web.kept import KeptRun
from ultragen.web.links import usable
from ultragen.web.places import Place
from ultragen.web.runs import CANCELLED, Runs, with_native_kept
from ultragen.web.settings import (
    SETTINGS,
    as_settings,
    describe_model,
    refresh,
    seconds_by_resolution,
    take_fast,
    validated,
)
from ultragen.web.suggestions import name_unknown_words


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with served(fake_models(), tmp_path_factory.mktemp("runs")) as address:
        yield address


@pytest.fixture(scope="module")
def client(url, tmp_path_factory):
    return Client(url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page without a server."""
    made = app.Page(fake_models(), tmp_path_factory.mktemp("runs"))
    made.build()
    return made


def settings(**changes) -> list:
    return list(
        Request(**{"prompt": "a calm lake", **changes}).validate(EMBEDDED).to_dict().values()
    )


# API


def test_the_api_is_one_endpoint_with_defaults_for_all_but_the_prompt(client):
    api = client.view_api(return_format="dict", print_info=False)
    assert list(api["named_endpoints"]) == ["/generate"]
    endpoint = api["named_endpoints"]["/generate"]
    defaults = {
        p["parameter_name"]: (p["parameter_has_default"], p["parameter_default"])
        for p in endpoint["parameters"]
    }
    assert defaults == {
        "prompt": (False, None),
        "resolution": (True, None),
        "windows": (True, "auto"),
        "num_frames": (True, None),
        "seed": (True, 0),
        "num_inference_steps": (True, None),
        "guidance_scale": (True, None),
        "negative_prompt": (True, None),
        "upscaler": (True, "network"),
        "base_native": (True, "off"),
        "loras": (True, None),
        "noise": (True, "spectral"),
        "aspect": (True, "16:9"),
        "fps": (True, None),
        "guidance_interval": (True, "0-1"),
        "cache": (True, "off"),
        "shift": (True, None),
        "solver": (True, "own"),
        "base_num_inference_steps": (True, None),
        "base_guidance_scale": (True, None),
        "progressive": (True, "auto"),
    }
    returned = [value["label"] for value in endpoint["returns"]]
    assert returned == ["native", "upscaled", "side_by_side", "metadata"]


def test_generate_returns_three_files_and_the_metadata(client):
    native, upscaled, side_by_side, metadata = client.predict(
        prompt="a calm lake", num_frames=5, seed=7, api_name="/generate"
    )
    for path, width in ((native, 960), (upscaled, 960), (side_by_side, 1920)):
        info = probe_video(Path(path))
        assert (info.width, info.height, info.num_frames) == (width, 544, 5)
    assert Request.from_metadata(metadata).seed == 7
    assert metadata["seconds"]["total"] > 0


def test_clips_of_another_shape_and_rate(client):
    *files, metadata = client.predict(
        prompt="a calm lake", num_frames=5, aspect="9:16", fps=24, seed=None, api_name="/generate"
    )
    for path, width in zip(files, (544, 544, 1088), strict=True):
        info = probe_video(Path(path))
        assert (info.width, info.height, info.fps) == (width, 960, 24)
    assert metadata["request"]["seed"] > 0  # one of four thousand million


def test_runs_through_plain_http_do_not_touch_each_others_files(url):
    clips = {}
    for seed in (1, 2):
        given = {"prompt": "a calm lake", "num_frames": 1, "num_inference_steps": 1, "seed": seed}
        call = f"{url}/gradio_api/call/v2/generate"
        event = httpx.post(call, json=given).json()["event_id"]
        answer = httpx.get(f"{call}/{event}", timeout=60).text
        assert "event: complete" in answer, answer
        last = [line for line in answer.splitlines() if line.startswith("data:")][-1]
        native = json.loads(last.removeprefix("data:"))[0]
        clips[native["url"]] = httpx.get(native["url"]).content
    assert len(clips) == 2
    for address, content in clips.items():
        assert content[4:8] == b"ftyp"
        assert httpx.get(address).content == content


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": "  "}, "empty"),
        ({"prompt": "x" * 10_000}, "10,000"),
        ({"prompt": None}, "text"),
        ({"prompt": "a\x00b"}, r"U\+0000"),
        ({"resolution": "8k"}, "544p, 720p, 1080p, 2k, 4k"),
        ({"windows": "3"}, "even"),
        ({"windows": 64}, "17 × 30"),
        ({"num_frames": 18}, "17 or 21"),
        ({"num_frames": "many"}, "whole number"),
        ({"num_inference_steps": 0}, "from 1 to 100"),
        ({"num_inference_steps": 10_000}, "from 1 to 100"),
        ({"guidance_scale": 1e9}, r"from 0 to 100"),
        ({"guidance_scale": -1}, r"from 0 to 100"),
        ({"guidance_scale": [3]}, "number"),
        ({"seed": -1}, "from 0"),
        ({"seed": "seven"}, "whole number"),
        ({"seed": 10**30}, "from 0"),
        ({"upscaler": "/etc/passwd"}, "network or lanczos"),
        ({"base_native": "maybe"}, "off, on"),
        ({"noise": "white"}, "independent, spectral"),
        ({"aspect": "3:2"}, "the nearest are 4:3 and 16:9"),
        ({"fps": 60}, "one of 12, 15, 16, 24, not 60"),
        ({"resolution": "<img src=x>"}, "<img"),
        ({"windows": 101}, "up to 16"),
        ({"windows": "9" * 5000}, "windows .* even number such as"),
        ({"guidance_scale": 10**400}, "guidance_scale must be a number from 0 to 100"),
        ({"upscaler": "u" * 300}, "network or lanczos"),
    ],
)
def test_bad_input_through_the_api_gets_a_message_with_the_way_out(client, arguments, words):
    with pytest.raises(ValidationError, match=words):
        client.predict(**{"prompt": "a calm lake", **arguments}, api_name="/generate")


def test_html_and_emoji_are_a_prompt_like_any_other(client):
    prompt = "<script>alert('x')</script> a calm lake 🏔️"
    *_, metadata = client.predict(
        prompt=prompt, num_frames=1, num_inference_steps=1, api_name="/generate"
    )
    assert metadata["request"]["prompt"] == prompt


def test_a_failing_run_gives_its_reason(tmp_path):
    with served(fake_models(damage="black"), tmp_path) as address:
        client = Client(address, verbose=False)
        with pytest.raises(AppError, match="every frame is black"):
            client.predict(prompt="a calm lake", num_frames=1, api_name="/generate")
    assert list(tmp_path.iterdir()) == []


def test_the_api_is_a_tool_for_agents(url):
    pytest.importorskip("mcp")
    tools = httpx.get(f"{url}/gradio_api/mcp/schema").json()
    assert [tool["name"].endswith("generate") for tool in tools] == [True]
    assert "natively" in tools[0]["description"]
    described = tools[0]["inputSchema"]["properties"]
    assert "description" in described["prompt"]
    assert set(described) == set(app.SETTINGS)


# The page


def test_refresh_tells_the_cost_of_every_resolution(page):
    updates = refresh(page.ui, page.models, *settings())
    assert updates[page.ui.costs].count("≈") == len(RESOLUTIONS)
    seconds = seconds_by_resolution(
        page.models, Request(**dict(zip(app.SETTINGS, settings(), strict=True)))
    )
    assert seconds == sorted(seconds)
    assert len(set(seconds)) == len(RESOLUTIONS)
    assert "About" in updates[page.ui.estimate]
    drawing = updates[page.ui.drawing]
    assert "2 × 2 windows in even layers" in drawing
    assert "3 × 3 windows in odd layers" in drawing


def test_refresh_counts_the_steps_that_are_predicted(page):
    all_steps, some = (
        seconds_by_resolution(page.models, Request("-", cache=cache).validate(EMBEDDED))
        for cache in ("off", "taylor-2")
    )
    assert 0.7 < some[-1] / all_steps[-1] < 0.9
    told = [
        refresh(page.ui, page.models, *settings(cache=cache))[page.ui.estimate]
        for cache in ("off", "taylor-2")
    ]
    assert told[0] != told[1]


def test_fast_sets_the_interval_and_the_cache_of_guided_clips(page):
    assert take_fast(page.models, *settings(guidance_scale=3.0)) == ["0.6-1", "taylor-2"]
    for values, says in (
        (settings(guidance_scale=1.0), "is for guided clips"),
        (settings(guidance_scale=3.0, num_inference_steps=2), "nothing out of 2 steps"),
    ):
        with pytest.raises(gr.Error, match=says):
            take_fast(page.models, *values)


def test_refresh_tells_sizes_and_seconds_of_the_shape(page):
    ui = page.ui
    lying = refresh(ui, page.models, *settings())
    standing = refresh(ui, page.models, *settings(aspect="9:16", num_frames=33, fps=24))
    assert "1920×1080" in lying[ui.costs] and "1080×1920" in standing[ui.costs]
    assert "1.4 s at 12 a second" in lying[ui.length]
    assert "1.4 s at 24 a second" in standing[ui.length]
    assert "30 × 17" not in lying[ui.drawing]


def test_an_empty_seed_is_a_new_one_each_time(page):
    asked = dict(zip(SETTINGS, settings(), strict=True)) | {"seed": None}
    seeds = {validated(page.models, asked).seed for _ in range(3)}
    assert len(seeds) == 3


def test_refresh_says_which_setting_is_wrong(page):
    values = settings()
    values[app.SETTINGS.index("num_frames")] = 18
    assert "17 or 21" in refresh(page.ui, page.models, *values)[page.ui.estimate]


def test_what_visitors_typed_is_escaped(page):
    shown = name_unknown_words(page.models, "<img/src=x/onerror=alert(1)> a calm lake")
    assert "<img" not in shown
    assert "&lt;img" in shown
    assert name_unknown_words(page.models, "a calm lake") == ""
    card = views.notice("bad", "<b>", "<script>")
    assert "<b>" not in card
    assert "<script>" not in card


def test_zero_gpu_visitors_are_told_who_can_run_it(page, monkeypatch):
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    few = refresh(page.ui, page.models, *settings(num_inference_steps=1))[page.ui.estimate]
    assert "anonymous visitors" in few
    many = refresh(page.ui, page.models, *settings(resolution="4k", num_inference_steps=100))[
        page.ui.estimate
    ]
    assert "exceeds every daily quota" in many


def visitor(name: str) -> SimpleNamespace:
    return SimpleNamespace(session_hash=name)


OWNER = {"token": "0" * 32}


def test_a_run_that_zero_gpu_stops_can_be_started_again_and_asks_for_more(tmp_path):
    """Its own words reach the visitor, and the next estimate knows how far this run came."""
    made = without_a_server(app.Page(fake_models(), tmp_path))

    def gpu_part(request):
        yield Progress("denoise", 0, 10, 0.0, "step 0 of 10")
        time.sleep(0.5)
        yield Progress("denoise", 5, 10, 0.5, "step 5 of 10")
        raise gr.Error("GPU task aborted")

    made.following.gpu_part = gpu_part
    estimator = made.models.estimator
    request = Request("a calm lake").validate(EMBEDDED)
    estimator.expect(0.5 / sum(estimator.estimate(job(request, made.models)).values()))
    updates: list = []
    with pytest.raises(gr.Error, match="GPU task aborted"):
        for update in run_on(made, visitor("me"), *settings(), [], OWNER):
            updates.append(update)
    assert "GPU task aborted" in updates[-1][made.ui.status]
    assert updates[-1][made.ui.start]["interactive"]
    after = sum(estimator.estimate(job(request, made.models)).values())
    assert 0.9 < after < 1.4  # half of it took half a second


def test_the_page_shows_previews_then_the_native_clip_then_both(tmp_path):
    made = without_a_server(app.Page(fake_models(delay=0.1), tmp_path))
    plain = made.runs.frames

    def gpu_part(request):
        for item in plain(request):
            pictured = isinstance(item, Progress) and item.stage == "denoise"
            yield replace(item, preview=b"a picture") if pictured else item

    made.following.gpu_part = gpu_part
    ui, shown = made.ui, []
    asked = settings(num_frames=5, num_inference_steps=5)
    for update in run_on(made, visitor("me"), *asked, [], OWNER):
        if "ug-preview" in str(update.get(ui.status)) and "preview" not in shown:
            shown.append("preview")
        if ui.comparison in update:
            shown.append("both" if "upscaled" in update[ui.comparison] else "native")
    assert shown == ["preview", "native", "both"]


class HTMLString(str):
    """As `spaces` sends: a page's HTML, which says as text what it is."""

    def __str__(self) -> str:
        return "No GPU: sign in"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (gr.Error(HTMLString("<a href='x'>No GPU</a>")), "No GPU: sign in"),
        (RuntimeError("ZeroGPU API /schedule error: 502"), "ZeroGPU API /schedule error: 502"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_whatever_goes_wrong_with_a_lent_gpu_is_said_and_leaves_the_page_usable(
    error, shown, tmp_path
):
    made = without_a_server(app.Page(fake_models(), tmp_path))

    def gpu_part(request):
        yield None
        raise error

    made.following.gpu_part = gpu_part
    before = made.models.estimator.coefficients
    updates: list = []
    with pytest.raises(gr.Error):
        for update in run_on(made, visitor("me"), *settings(), [], OWNER):
            updates.append(update)
    assert shown in updates[-1][made.ui.status] and "&lt;" not in updates[-1][made.ui.status]
    assert updates[-1][made.ui.start]["interactive"]
    assert made.models.estimator.coefficients == before  # nothing to learn from that


def test_a_worker_that_is_kept_does_not_hold_up_learning(tmp_path, monkeypatch):
    """It goes on with a copy of the estimator that was made when it began."""
    runs = Runs(fake_models(), tmp_path)
    request = Request("a calm lake", num_frames=5, num_inference_steps=1).validate(EMBEDDED)
    work = job(request, runs.models)
    stale = runs.models.estimator.estimate(work)
    made: list[dict[str, float]] = []
    true = {stage: 2 * seconds for stage, seconds in stale.items()}
    clips = generate(request, runs.models)

    def gpu_part(request):
        seconds = {"estimated": dict(stale), "measured": dict(true)}
        yield Finished(replace(clips, metadata={**clips.metadata, "seconds": seconds}))

    def write(clips, *arguments):
        made.append(clips.metadata["seconds"]["estimated"])
        return SimpleNamespace(metadata={"seconds": {**clips.metadata["seconds"]}})

    monkeypatch.setattr("ultragen.web.runs.write", write)
    for _ in range(8):
        list(runs.items(request, gpu_part, Event()))
    found = sum(runs.models.estimator.estimate(work).values())
    assert found == pytest.approx(sum(true.values()), rel=0.05)
    assert sum(made[-1].values()) == pytest.approx(found, rel=0.05)  # and that is what is told


def test_a_full_disk_shows_no_path_to_visitors(tmp_path, monkeypatch, capsys):
    runs = Runs(fake_models(), tmp_path)
    request = Request("a calm lake", num_frames=1, num_inference_steps=1).validate(EMBEDDED)

    def full(frames, path, fps, comment):
        raise OSError(f"{path} was not written: the disk is full")

    monkeypatch.setattr("ultragen.runs.write.encode_video", full)
    *_, last = runs.items(request, runs.frames, Event())
    assert "disk is full" in last.message and str(tmp_path) not in last.message
    assert str(tmp_path) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


LONG = {"num_frames": 1, "num_inference_steps": 40}
SHORT = {"num_frames": 1, "num_inference_steps": 1}


@pytest.fixture
def slow(tmp_path):
    """A page whose runs take two seconds."""
    return without_a_server(app.Page(fake_models(delay=0.05), tmp_path))


def test_cancelling_stops_only_the_visitors_own_run(slow, tmp_path):
    run = run_on(slow, visitor("me"), *settings(**LONG), [], OWNER)
    next(run)
    assert "Nothing to cancel" in slow.cancel(visitor("someone else"))
    assert slow.cancel(visitor("me")) == gr.skip()
    last = list(run)[-1]
    assert "Cancelled" in last[slow.ui.status]
    assert slow.models.native.steps_done < 10
    assert list(tmp_path.iterdir()) == []


def test_cancelled_as_it_ends_a_run_says_again_how_it_ended(slow):
    """The click has put "Stopping" over that, or is about to."""
    assert "Nothing to cancel" in slow.cancel(visitor("me"))
    last = list(run_on(slow, visitor("me"), *settings(**SHORT), [], OWNER))[-1]
    assert "Done" in last[slow.ui.status]
    assert slow.cancel(visitor("me")) == last[slow.ui.status]


def test_a_run_cancelled_while_it_waits_never_starts(slow):
    values = settings(**LONG)
    list(slow.prepare(visitor("me"), *values))
    slow.cancel(visitor("me"))
    updates = list(run_on(slow, visitor("me"), *values, [], OWNER))
    assert "Cancelled" in updates[-1][slow.ui.status]
    assert slow.models.native.steps_done <= 1


def test_a_run_cancelled_before_its_turn_says_that_nothing_was_computed(slow, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("ultragen.web.kept.monotonic", lambda: clock.now)
    run = slow.kept.announce("me")
    run.begin(OWNER["token"], {"text": 1.0}, lambda: iter([CANCELLED]))
    clock.now += 8
    run.compute()
    card = list(slow.following.end(visitor("me"), [], OWNER))[-1][slow.ui.status]
    assert "Its turn had not come: nothing was computed." in card and "0:0" not in card


def test_the_time_of_a_cancelled_run_is_that_for_which_it_computed(slow, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("ultragen.web.kept.monotonic", lambda: clock.now)
    run = slow.kept.announce("me")

    def work():
        clock.now += 20  # the last step of another run
        yield None
        yield Progress("denoise", 1, 10, 0.1, "step 1 of 10")
        clock.now += 3
        yield CANCELLED

    clock.now += 8
    run.begin(OWNER["token"], {"denoise": 1.0}, work)
    run.compute()
    clock.now += 600  # until its page comes back
    card = list(slow.following.end(visitor("me"), [], OWNER))[-1][slow.ui.status]
    assert "Stopped after 0:03 at: step 1 of 10. Nothing was kept." in card


@pytest.mark.parametrize("ends", ["cancelled", "failed"])
def test_a_native_clip_that_was_shown_stays_when_its_run_ends_without_the_other(
    slow, tmp_path, ends
):
    ui, native = slow.ui, None
    base = slow.models.base = PatientPipeline(damage="nan" if ends == "failed" else "none")
    for update in run_on(slow, visitor("me"), *settings(num_frames=5), [], OWNER):
        if native is None and ui.comparison in update:
            native = Path(update[ui.comparison]["native"]["path"])
            if ends == "cancelled":
                slow.cancel(visitor("me"))
            base.told.set()
    assert update[ui.comparison]["native"]["path"] == update[ui.native] == str(native)
    assert update[ui.files] == [str(native)] and update[ui.upscaled] is None
    assert probe_video(native).num_frames == 5
    card = update[ui.status]
    assert "The native clip stays, the upscaled one is missing" in card
    assert "Files are kept until" in card and "Nothing was kept" not in card
    assert update[ui.start]["interactive"]
    assert list(tmp_path.iterdir()) == [native.parent]
    for path in (native, native.parent):
        os.utime(path, (0, 0))
    remove_old(tmp_path, 3600)
    assert list(tmp_path.iterdir()) == []


def test_a_native_clip_that_was_shown_gives_way_to_the_result(slow, tmp_path):
    player, shown = slow.ui.comparison, []
    slow.models.base = PatientPipeline()
    for update in run_on(slow, visitor("me"), *settings(num_frames=5), [], OWNER):
        if player in update:
            shown.append(Path(update[player]["native"]["path"]))
            slow.models.base.told.set()
    early, native = shown
    assert early != native and list(tmp_path.iterdir()) == [native.parent]


def test_a_native_clip_that_can_not_be_kept_is_not_shown(slow, tmp_path, monkeypatch, capsys):
    def full(*paths):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "hardlink_to", full)
    monkeypatch.setattr("ultragen.web.runs.shutil.copyfile", full)
    ready = NativeReady(tmp_path / "native.mp4", {})
    runs = tmp_path / "runs"
    assert list(with_native_kept((each for each in (ready, CANCELLED)), runs)) == [CANCELLED]
    assert list(runs.iterdir()) == [] and "No space left" in capsys.readouterr().err


def test_where_there_are_no_links_the_native_clip_is_copied(tmp_path, monkeypatch):
    def without_links(*paths):
        raise OSError("Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", without_links)
    file = tmp_path / "native.mp4"
    file.write_bytes(b"a clip")
    items = (each for each in (NativeReady(file, {}), CANCELLED))
    shown, _ = with_native_kept(items, tmp_path / "runs")
    file.unlink()
    assert shown.file.read_bytes() == b"a clip"


def test_keys_start_no_second_run_while_one_is_under_way(slow):
    values = settings(**LONG)
    run = run_on(slow, visitor("me"), *values, [], OWNER)
    next(run)
    with pytest.raises(gr.Error, match="under way"):
        list(slow.prepare(visitor("me"), *values))
    assert slow.cancel(visitor("me")) == gr.skip()
    assert "Cancelled" in list(run)[-1][slow.ui.status]  # the run that the page shows
    assert list(slow.prepare(visitor("me"), *values))


def test_a_page_that_failed_can_start_another_run(slow):
    values = settings(**LONG)
    run = run_on(slow, visitor("me"), *values, [], OWNER)
    next(run)
    assert slow.following.not_taken(visitor("me"), "a card")[slow.ui.status] == "a card"
    assert list(slow.prepare(visitor("me"), *values))
    assert "The queue is full" in slow.following.not_taken(visitor("me"), WAITING)[slow.ui.status]


@pytest.mark.parametrize("begun", ["run", "drafts"])
def test_settings_that_changed_before_the_run_are_the_reason_that_is_told(slow, begun):
    me, ui = visitor("me"), slow.ui
    list(slow.prepare(me, *settings()))
    changed = settings()
    changed[SETTINGS.index("seed")] = -1
    with pytest.raises(gr.Error, match="seed must be from 0"):
        if begun == "run":
            list(slow.following.run(me, *changed, OWNER))
        else:
            list(slow.drafts.run(me, *changed, 2))
    updates = slow.following.not_taken(me, WAITING)
    assert "Not started" in updates[ui.status] and "Seed must be from 0" in updates[ui.status]
    assert updates[ui.start]["interactive"]
    assert list(slow.prepare(me, *settings()))  # nor does it keep another run from starting


def test_an_end_that_comes_before_its_run_has_ended_holds_no_place(slow):
    run = run_on(slow, visitor("me"), *settings(**LONG), [], OWNER)
    next(run)
    updates = list(slow.following.end(visitor("me"), [], OWNER))
    assert not slow.kept.shown("me").ended  # it did not wait
    assert [set(update) for update in updates] == [{slow.ui.status}]
    assert "reload" in updates[0][slow.ui.status]
    assert "Done" in list(run)[-1][slow.ui.status]  # nor was the run taken for one that was seen


def test_each_event_of_a_run_says_only_what_its_outputs_take(slow):
    """Gradio makes all outputs of an event anew, so a page that waits must have one alone."""
    events = reversed(slow.places.blocks.fns.values())  # drafts have later ones of these names
    wired = {each.name: set(each.outputs) for each in events}
    status, player = slow.ui.status, slow.ui.comparison
    assert wired["run"] == wired["run_large"] == wired["wait"] == {status}
    assert wired["compute"] == {status, player}
    short = settings(num_frames=1, num_inference_steps=2)
    for event in (
        slow.following.run(visitor("me"), *short, OWNER),
        slow.following.compute(visitor("me")),
    ):
        updates = [update for update in event if update != gr.skip()]
        assert all(isinstance(each, str) or set(each) <= {status, player} for each in updates)
    [last] = slow.following.end(visitor("me"), [], OWNER)
    assert set(last) <= wired["end"] and slow.ui.history in last


def test_a_run_goes_on_without_its_page_and_is_found_by_the_same_browser(slow):
    run = run_on(slow, visitor("first"), *settings(**LONG), [], OWNER)
    next(run)
    run.close()
    slow.leave(visitor("first"))
    for stranger in ({"token": "1" * 32}, {}):
        with pytest.raises(gr.Error, match="No run is under way"):  # so no event comes after it
            list(rejoin_on(slow, visitor("other"), [], stranger))
    again = rejoin_on(slow, visitor("second"), [], OWNER)
    assert next(again)[slow.ui.stop]["visible"]
    last = list(again)[-1]
    assert "Done" in last[slow.ui.status]
    assert [each.metadata["request"]["prompt"] for each in last[slow.ui.history]] == ["a calm lake"]
    assert slow.models.native.steps_done == 40
    with pytest.raises(gr.Error, match="No run is under way"):
        list(rejoin_on(slow, visitor("third"), [], OWNER))  # it was shown


def test_a_run_that_is_found_again_can_be_cancelled(slow):
    run = run_on(slow, visitor("first"), *settings(**LONG), [], OWNER)
    next(run)
    run.close()
    slow.leave(visitor("first"))
    again = rejoin_on(slow, visitor("second"), [], OWNER)
    next(again)
    assert "Nothing to cancel" in slow.cancel(visitor("first"))
    assert slow.cancel(visitor("second")) == gr.skip()
    assert "Cancelled" in list(again)[-1][slow.ui.status]
    assert slow.models.native.steps_done < 20


def test_a_run_that_ended_with_no_page_open_is_shown_to_the_next_one(slow):
    short = settings(num_frames=1, num_inference_steps=1)
    run = run_on(slow, visitor("first"), *short, [], OWNER)
    next(run)
    run.close()
    until(lambda: slow.kept.found(OWNER["token"]).ended)
    last = list(rejoin_on(slow, visitor("second"), [], OWNER))[-1]
    assert "Done" in last[slow.ui.status] and "Files are kept until" in last[slow.ui.status]
    assert last[slow.ui.visitor]["runs"] == [last[slow.ui.visitor]["shown"]]


def test_who_comes_late_gets_the_latest_of_each_kind_in_order():
    run = KeptRun()
    steps = [Progress("denoise", step, 3, step / 3, "") for step in range(4)]
    for item in (steps[1], "preview", steps[2], None, "later preview", steps[3]):
        run.put(item)
    page = run.follow()
    assert [next(page), next(page), next(page)] == ["later preview", steps[3], None]
    run.put(steps[1])
    run.end(Failed("over"))
    assert list(page) == [steps[1], Failed("over")]
    assert run.seen


def test_who_comes_late_sees_the_preview_of_an_earlier_step():
    run = KeptRun()
    run.put(Progress("denoise", 1, 3, 0.1, "", b"a picture"))
    run.put(Progress("denoise", 2, 3, 0.2, ""))
    assert next(run.follow()) == Progress("denoise", 2, 3, 0.2, "", b"a picture")


def test_a_native_clip_that_is_gone_is_not_shown_to_who_comes_late(slow, tmp_path):
    run = slow.kept.announce("first")
    run.begin(OWNER["token"], {"text": 1.0}, lambda: iter(()))
    run.put(NativeReady(tmp_path / "gone.mp4", {}))
    run.end(CANCELLED)
    _, last = rejoin_on(slow, visitor("second"), [], OWNER)
    assert "Cancelled" in last[slow.ui.status]


def test_a_run_is_abandoned_only_when_no_page_shows_it():
    run = KeptRun()
    assert not run.abandoned(60)
    assert run.abandoned(-1)
    pages = [run.follow(), run.follow()]
    for page in pages:
        next(page)
    pages[0].close()
    assert not run.abandoned(-1)
    pages[1].close()
    assert run.abandoned(-1)


def test_a_page_that_waits_is_told_its_place_once_and_let_go_when_it_is_gone(slow):
    run = slow.kept.announce("me")
    run.begin(OWNER["token"], {"text": 1.0}, lambda: iter(()))
    followed = iter([True, False])
    slow.following.places = SimpleNamespace(
        place=lambda run: Place(2, 30.0, 0.0), is_followed=lambda session: next(followed)
    )
    told, last = slow.following.wait(visitor("me"))
    assert last == gr.skip()  # which Gradio says again
    assert "place 3" in told and "0:30" in told
    assert run.abandoned(-1)


# What comes back


def back(page, kept=None, visitor=None, **parameters) -> dict:
    """The page as it is loaded anew."""
    request = SimpleNamespace(session_hash="me", query_params=parameters)
    return page.visits.restore(request, kept or {}, visitor or {})


def parameters(query: str) -> dict[str, str]:
    return dict(parse_qsl(query.removeprefix("?"), keep_blank_values=True))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A page that has made a clip, and the clip."""
    folder = tmp_path_factory.mktemp("runs")
    page = without_a_server(app.Page(fake_models(), folder))
    asked = settings(num_frames=1, num_inference_steps=1, seed=7, negative_prompt="a & b = c")
    *_, last = run_on(page, visitor("me"), *asked, [], OWNER)
    return SimpleNamespace(
        page=page,
        values=asked,
        **{"history": last[page.ui.history], "visitor": last[page.ui.visitor]},
    )


def test_a_first_visit_gets_a_token_and_leaves_the_settings_alone(made):
    updates = back(made.page)
    assert token(updates[made.page.ui.visitor])
    assert set(updates) & set(made.page.ui.settings) == {made.page.ui.seed}
    assert updates[made.page.ui.seed] is None  # a new one each time
    again = back(made.page, visitor=updates[made.page.ui.visitor])
    assert again[made.page.ui.visitor]["token"] == updates[made.page.ui.visitor]["token"]


def test_settings_runs_and_the_clip_come_back(made):
    kept = dict(zip(SETTINGS, made.values, strict=True))
    updates = back(made.page, kept, made.visitor)
    assert updates[made.page.ui.seed] == 7
    assert updates[made.page.ui.negative] == "a & b = c"
    assert updates[made.page.ui.history] == made.history
    assert updates[made.page.ui.comparison]["native"]["path"] == str(made.history[0].native)
    assert "Files are kept until" in updates[made.page.ui.status]


@pytest.mark.parametrize(
    "visitor",
    [[], {"runs": 3, "shown": 3, "token": 3}, {"runs": ["../..", "a/b", "", None, "gone-1"]}],
)
def test_whatever_the_browser_has_kept_the_page_opens(made, visitor):
    updates = back(made.page, {"seed": "x", "windows": [], "more": 1}, visitor)
    assert updates[made.page.ui.seed] is None
    assert updates[made.page.ui.history] == []
    assert token(updates[made.page.ui.visitor])


def test_a_link_has_all_settings_and_the_clip_that_belongs_to_them(made):
    ui = made.page.ui
    updates = made.page.visits.share(made.history, made.visitor, *made.values)
    query = parameters(updates[ui.link]["value"])
    assert query["seed"] == "7" and query["run"] == made.visitor["shown"]
    updates = back(made.page, **query)
    values = [updates[component] for component in ui.settings]
    assert Request(**dict(zip(SETTINGS, values, strict=True)) | {"loras": {}}) == Request(
        **dict(zip(SETTINGS, made.values, strict=True))
    )
    assert updates[ui.comparison]["native"]["path"] == str(made.history[0].native)
    # Other settings than those of the clip: a link without it.
    other = list(made.values)
    other[SETTINGS.index("seed")] = 8
    updates = made.page.visits.share(made.history, made.visitor, *other)
    assert "run" not in parameters(updates[ui.link]["value"])


def test_a_link_from_before_there_was_a_setting_means_what_it_meant(made):
    """One that people write has the settings of today."""
    ui, values = made.page.ui, list(made.values)
    values[SETTINGS.index("resolution")] = "4k"
    query = parameters(made.page.visits.share([], {}, *values)[ui.link]["value"])
    assert back(made.page, **query)[ui.progressive] == "auto"
    del query["progressive"], query["noise"]
    updates = back(made.page, **query)
    assert (updates[ui.progressive], updates[ui.noise]) == ("off", "independent")
    updates = back(made.page, prompt="a lake", resolution="4k")
    assert (updates[ui.progressive], updates[ui.noise]) == ("auto", "spectral")


def test_an_empty_seed_stays_empty_and_a_link_has_that_of_the_clip(made):
    ui, visits = made.page.ui, made.page.visits
    empty = list(made.values)
    empty[SETTINGS.index("seed")] = None
    updates = back(made.page, dict(zip(SETTINGS, empty, strict=True)))
    assert updates[ui.seed] is None and updates[ui.negative] == "a & b = c"
    query = parameters(visits.share(made.history, made.visitor, *empty)[ui.link]["value"])
    assert (query["seed"], query["run"]) == ("7", made.visitor["shown"])
    query = parameters(visits.share([], {}, *empty)[ui.link]["value"])
    assert not {"seed", "run"} & set(query)
    assert back(made.page, **query)[ui.seed] is None


def test_settings_that_fit_only_together_come_back(made, monkeypatch):
    def check(request):
        if (request.resolution, request.frames > 5) == ("4k", True):
            raise ValueError("too little memory")

    monkeypatch.setattr(made.page.models, "check_memory", check)
    updates = back(made.page, {"resolution": "4k", "num_frames": 5, "prompt": "a lake"})
    assert (updates[made.page.ui.resolution], updates[made.page.ui.num_frames]) == ("4k", 5)


def test_a_link_with_nonsense_is_named_and_defaulted(made):
    ui = made.page.ui
    nonsense = {"num_frames": "18", "sead": "3", "seed": "many", "windows": "3", "utm_source": "x"}
    updates = back(made.page, prompt="a calm lake", run="../etc", **nonsense)
    assert updates[ui.num_frames] == EMBEDDED.num_frames
    assert (updates[ui.seed], updates[ui.windows]) == (None, "auto")
    assert updates[ui.prompt] == "a calm lake"
    said = updates[ui.status]
    for words in ("Frames must be 4n + 1", "17 is used instead", "no setting &#x27;sead&#x27;",
                  "Seed must be a whole number", "A new one is used instead",
                  "not kept any more"):  # fmt: skip
        assert words in said, words
    assert "utm" not in said


def test_a_file_with_settings_fills_the_page_and_goes(made, tmp_path):
    ui, result = made.page.ui, made.history[0]
    for source in (result.native, result.metadata_path):
        dropped = Path(copy(source, tmp_path))
        updates = made.page.visits.take_file(str(dropped))
        assert updates[ui.seed] == 7 and updates[ui.negative] == "a & b = c"
        assert "makes the same clip again" in updates[ui.status]
        assert not dropped.exists()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", "{}", "of another program"),
        ("a.json", "{", "is broken"),
        ("a.mp4", "no video", "is not a video"),
        ("a.json", "FRAMES", "Frames must be 4n + 1, not 18"),
        ("a.json", "WARP", "which this version does not know"),
    ],
)
def test_a_file_that_can_not_be_used_says_why_and_goes(made, tmp_path, name, content, says):
    metadata = json.loads(json.dumps(made.history[0].metadata))
    if content == "FRAMES":
        metadata["request"]["num_frames"] = 18
    if content == "WARP":
        metadata["request"]["warp"] = 9
    text = json.dumps(metadata) if content.isupper() else content
    dropped = tmp_path / name
    dropped.write_text(text)
    updates = made.page.visits.take_file(str(dropped))
    assert says in updates[made.page.ui.status]
    assert str(tmp_path) not in updates[made.page.ui.status]
    assert not set(updates) & set(made.page.ui.settings)
    assert not dropped.exists()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.01, "0:01"), (7.4, "0:07"), (59.6, "1:00"), (76, "1:16"), (3661, "1:01:01")],
)
def test_times_are_minutes_and_seconds(seconds, text):
    assert views.duration(seconds) == text


def test_examples_are_shown_with_their_settings(tmp_path, monkeypatch):
    from ultragen.runs.compare import compare

    compare(
        Request("a calm lake", num_frames=1, num_inference_steps=1, windows=4, seed=9),
        fake_models(),
        tmp_path / "examples",
    )
    (tmp_path / "examples" / "broken").mkdir()
    (tmp_path / "examples" / "broken" / "metadata.json").write_text('{"files": {"native": "x"}}')
    monkeypatch.setattr(app, "EXAMPLES", tmp_path / "examples")
    page = app.Page(fake_models(), tmp_path)
    page.build()
    assert len(page.examples) == 1
    updates = page.show_example(SimpleNamespace(index=0))
    assert updates[page.ui.seed] == 9
    assert updates[page.ui.windows] == "4"
    assert updates[page.ui.noise] == "spectral"
    # One from before there was a choice.
    del page.examples[0].metadata["request"]["noise"]
    assert page.show_example(SimpleNamespace(index=0))[page.ui.noise] == "independent"
    assert updates[page.ui.comparison]["native"]["path"].endswith("native.mp4")


# LoRAs


@pytest.fixture(scope="module")
def with_loras(tmp_path_factory):
    """The API of a machine that has two LoRAs, and its models."""
    folder = tmp_path_factory.mktemp("loras")
    for name in ("style", "look"):
        (folder / f"{name}.safetensors").write_bytes(name.encode())
    style, look = (str(folder / f"{name}.safetensors") for name in ("style", "look"))
    loras = (LoraChoice("style", style, 0.5), LoraChoice("look", look, 0.0))
    models = fake_models(loras=loras)
    with served(models, tmp_path_factory.mktemp("runs")) as address:
        yield SimpleNamespace(client=Client(address, verbose=False), models=models, style=style)


def test_loras_are_asked_for_by_name(with_loras):
    quick = {"prompt": "a calm lake", "num_frames": 1, "num_inference_steps": 1}
    for given, used in (
        ({}, {"style": 0.5}),
        ({"loras": {"look": 1.5}}, {"look": 1.5}),
        ({"loras": {}}, {}),
    ):
        metadata = with_loras.client.predict(**quick, **given, api_name="/generate")[-1]
        assert metadata["request"]["loras"] == used
        assert [each["name"] for each in metadata["model"]["loras"]] == list(used)
        files = [Path(file).stem for file, _ in with_loras.models.native.calls[-1]["loras"]]
        assert files == list(used)
    for loras, says in (
        ({with_loras.style: 1.0}, "no LoRA .*: choose from style, look"),
        ({"style": 1e9}, "from -10 to 10"),
        ({"style": None}, "from -10 to 10"),
        (["style"], "a strength by name"),
    ):
        with pytest.raises(ValidationError, match=says):
            with_loras.client.predict(**quick, loras=loras, api_name="/generate")


def test_the_page_lists_loras_where_there_are_any(page, tmp_path):
    assert not page.ui.loras.visible
    loras = (LoraChoice("style", "a", 0.5), LoraChoice("look", "b", 0.0))
    models = fake_models(loras=loras)
    models.left_out = {"14b": "It looks like <b>Wan 14B</b>."}
    ours = app.Page(models, tmp_path)
    ours.build()
    assert ours.ui.loras.visible
    assert ours.ui.loras.value["data"] == [["style", 0.5], ["look", 0.0]]
    assert "The LoRA 14b is left out: It looks like &lt;b&gt;Wan 14B" in describe_model(models)
    given = dict(zip(SETTINGS, settings(), strict=True))
    asked = validated(models, given | {"loras": [["style", 0.0], ["look", "2"], ["", ""]]})
    assert asked.loras == {"look": 2.0}
    for rows, says in (([["style", ""]], "number, not ''"), ([["style", 99]], "to 10")):
        with pytest.raises(gr.Error, match=says):
            validated(models, given | {"loras": rows})


# Starting


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{SUPPORT}", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_a_missing_model_is_one_clear_line(tmp_path):
    ended = start("app.py", ULTRAGEN_MODEL=str(tmp_path))
    assert ended.returncode != 0
    assert "model_index.json is missing" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_taken_port_is_one_clear_line():
    code = "import app, fakes; app.load_models = fakes.fake_models; app.main()"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = start("-c", code, GRADIO_SERVER_PORT=port)
    assert ended.returncode != 0
    assert f"Port {port} can't be had" in ended.stderr
    assert "GRADIO_SERVER_PORT=" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_theme_can_be_compared_with_gradios_own():
    """Gradio does so at every start, and fails on fonts that are plain names."""
    import gradio as gr

    assert app.theme().to_dict() != gr.themes.Soft().to_dict()
    assert "fonts.googleapis" not in app.theme()._get_theme_css()


def test_what_crosses_to_a_gpu_worker_can_be_pickled(page):
    request = Request("a calm lake", num_frames=1, num_inference_steps=1)
    request = pickle.loads(pickle.dumps(request.validate(EMBEDDED)))
    items = [pickle.loads(pickle.dumps(item)) for item in page.gpu_part(request)]
    assert isinstance(items[0], Progress)
    assert items[-1].value.native.shape == (1, 544, 960, 3)


@pytest.mark.parametrize(
    ("typed", "number"),
    [
        ("", None), ("  ", None), (None, None), ("3.5", 3.5), (" 8 ", 8.0), (3.5, 3.5),
        ("3,5", "3,5"), ("much", "much"),
    ],
)  # fmt: skip
def test_a_shift_is_typed_or_left_out(typed, number):
    values = [*settings()]
    values[SETTINGS.index("shift")] = typed
    assert as_settings(values)["shift"] == number


def test_a_shift_that_is_none_is_told(page):
    given = dict(zip(SETTINGS, settings(), strict=True))
    with pytest.raises(gr.Error, match=r"shift must be a number from 0\.01 to 100, not 'much'"):
        validated(page.models, given | {"shift": "much"})
    kept, problems = usable(given | {"shift": "3.5"}, page.models)
    assert kept["shift"] == 3.5 and problems == []
    kept, problems = usable(given | {"shift": ""}, page.models)
    assert kept["shift"] is None and problems == []
