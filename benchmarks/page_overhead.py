"""What the page costs beside the model: from a click to the model's first work, and while others
wait.

    python benchmarks/page_overhead.py
    python benchmarks/page_overhead.py --rounds 3 --steps 60 --clicks 0

The embedded model runs at 544p. A click is the page's own two events, the check and the run, sent
as the browser sends them. In each round a run denoises alone, then with 20 calls waiting behind
it, then with 20 open pages that wait and show their places; calls and pages are clients in another
process. The run begins when all are in the queue, and the model waits after its last step until
they have gone, so that nothing but waiting is measured. What other threads than the model's
compute meanwhile tells more than seconds do where other programs run too.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from threading import Event, Thread
from time import perf_counter, process_time, sleep, thread_time
from typing import Any
from uuid import uuid4

import httpx

WAITING = 20
STARTS = 120  # seconds in which a click must get to the model, and all clients into the queue
SETTLES = 2.0  # seconds from an arrival to what comes next
GRACE = 5.0  # seconds after which a page's run leaves the queue, once the page is gone
CALL = "gradio_api/call/v2/generate"


@dataclass
class Denoising:
    """What was measured of a run.

    Attributes:
        seconds: By the clock.
        own: Seconds for which the model's thread computed.
        others: Seconds for which all other threads of the process computed.
    """

    seconds: float
    own: float
    others: float

    @property
    def share(self) -> float:
        return self.others / self.seconds


class Site:
    """The page with the embedded model, and what is measured of the model's steps.

    Attributes:
        device: Held, it keeps runs from beginning.
        called: Set when the model is first called.
        crowd: Has so many wait in the queue while the model denoises.
    """

    def __init__(self, folder: Path) -> None:
        import app
        from ultragen.runs.loading import load_models

        self.called = Event()
        self.crowd: Crowd | None = None
        self.measured: list[Denoising] = []
        models = load_models()
        encode, pipeline = models.native.encode_prompt, type(models.native)
        self._denoise = pipeline.__call__

        def noting(*values: Any, **options: Any) -> Any:
            self.called.set()
            return encode(*values, **options)

        def measured(pipe: Any, *values: Any, **options: Any) -> Any:
            if pipe is models.native:
                return self._measure(pipe, *values, **options)
            return self._denoise(pipe, *values, **options)

        models.native.encode_prompt = noting
        pipeline.__call__ = measured
        page = app.Page(models, folder, GRACE)
        self.blocks, self.device = page.build(), page.runs.device
        _, self.url, _ = self.blocks.launch(
            **app.launch_options(), prevent_thread_lock=True, quiet=True
        )

    def _measure(self, *values: Any, **options: Any) -> Any:
        wall, everyone, own = perf_counter(), process_time(), thread_time()
        output = self._denoise(*values, **options)
        own = thread_time() - own
        others = process_time() - everyone - own
        self.measured.append(Denoising(perf_counter() - wall, own, others))
        if self.crowd is not None:
            self.crowd.go.set()
            self.until_waiting(0)
        return output

    def until_waiting(self, count: int) -> None:
        from ultragen.web.call_places import waiting_runs

        until = perf_counter() + STARTS
        while (found := len(waiting_runs(self.blocks._queue))) != count:
            if perf_counter() > until:
                raise TimeoutError(f"{found} runs wait after {STARTS} s, and not {count}.")
            sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds (%(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="steps of a run (%(default)s)")
    parser.add_argument("--clicks", type=int, default=5, help="clicks (%(default)s)")
    arguments = parser.parse_args()
    with served() as site:
        settings: dict[str, Any] = {"prompt": "a calm lake", "resolution": "544p", "num_frames": 5}
        settings["upscaler"] = "lanczos"  # at once: it is no part of what is measured
        short = settings | {"num_inference_steps": 2}
        form = page_form(site, short)
        run(site.url, short)  # warms up
        clicks = [click(site, form) for _ in range(arguments.clicks)]
        if clicks:
            print(f"from click to the model: {1000 * median(clicks):.0f} ms", flush=True)
        settings["num_inference_steps"] = arguments.steps
        form = page_form(site, settings)
        kinds: dict[str, Callable | None] = {
            "alone": None,
            f"with {WAITING} calls waiting": wait_as_call,
            f"with {WAITING} pages waiting": wait_as_page,
        }
        found: dict[str, list[Denoising]] = {kind: [] for kind in kinds}
        for _ in range(arguments.rounds):
            for kind, client in kinds.items():
                found[kind].append(denoising(site, settings, form, client))
                last = found[kind][-1]
                print(f"{kind}: {last.seconds:.2f} s, {last.share:.2%}", flush=True)
    tell(found)


def tell(found: dict[str, list[Denoising]]) -> None:
    """Prints medians and ranges; differences are of runs of one round."""
    alone = next(iter(found.values()))
    for kind, runs in found.items():
        seconds, own = [each.seconds for each in runs], [each.own for each in runs]
        shares = [each.share for each in runs]
        more = [each.share - first.share for each, first in zip(runs, alone, strict=True)]
        print(
            f"denoising {kind}: {median(seconds):.2f} s (from {min(seconds):.2f} to "
            f"{max(seconds):.2f}), of which the model computes for {median(own):.2f} s; other "
            f"threads compute for {median(shares):.2%} of it ({min(shares):.2%} to "
            f"{max(shares):.2%}), {median(more):+.2%} beside a run alone"
        )


@contextmanager
def served() -> Iterator[Site]:
    """The page, until it is left."""
    import torch

    from ultragen.runs.worker import stop_all

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder))
        try:
            yield site
        finally:
            stop_all(30)
            site.blocks.close(verbose=False)


def denoising(
    site: Site, settings: dict[str, Any], form: Form, client: Callable | None
) -> Denoising:
    """A run's denoising while clients of a kind wait behind it."""
    if client is None:
        run(site.url, settings)
    else:
        with Crowd(client, site.url, settings, form) as site.crowd:
            with site.device:  # as if a run before it had not ended yet
                measured = Thread(target=run, args=(site.url, settings))
                measured.start()
                sleep(SETTLES)
                site.crowd.come.set()
                site.until_waiting(WAITING)
                sleep(SETTLES)
            measured.join()
        site.crowd = None
    return site.measured[-1]


# What is sent


@dataclass
class Form:
    """The page's two events of a click, as numbers of Gradio's, and the settings that it sends."""

    events: dict[str, int]
    values: list[Any]

    def send(self, client: httpx.Client, name: str, session: str) -> None:
        data = self.values if name == "prepare" else [*self.values, None]
        body = {"data": data, "fn_index": self.events[name], "session_hash": session}
        client.post("gradio_api/queue/join", json=body).raise_for_status()


def page_form(site: Site, settings: dict[str, Any]) -> Form:
    """The page as it is when it is opened, with some settings changed."""
    from ultragen.web.settings import SETTINGS

    events: dict[str, int] = {}
    for number, function in site.blocks.fns.items():
        events.setdefault(function.name, number)  # drafts have later ones of these names
    shown = [component._id for component in site.blocks.fns[events["prepare"]].inputs]
    config = httpx.get(f"{site.url}config").json()
    kept = {each["id"]: each["props"].get("value") for each in config["components"]}
    filled = dict(zip(SETTINGS, (kept[number] for number in shown), strict=True)) | settings
    return Form({name: events[name] for name in ("prepare", "run")}, list(filled.values()))


def click(site: Site, form: Form) -> float:
    """Seconds from a click to the model's first work."""
    session = uuid4().hex
    site.called.clear()
    with httpx.Client(base_url=site.url, timeout=600) as client:
        began = perf_counter()
        form.send(client, "prepare", session)
        read_session(client, session)
        form.send(client, "run", session)
        if not site.called.wait(STARTS):
            raise TimeoutError(f"The model was not called in {STARTS} s.")
        took = perf_counter() - began
        read_session(client, session)
    with site.device:  # the run ends after what this event tells of it
        return took


def read_session(client: httpx.Client, session: str) -> None:
    """Reads a session's answers until its call has ended."""
    with client.stream("GET", f"gradio_api/queue/data?session_hash={session}") as answer:
        for line in answer.iter_lines():
            if '"process_completed"' in line:
                assert '"success":true' in line.replace(" ", ""), line
                return


def run(url: str, settings: dict[str, Any]) -> None:
    """A run through the API."""
    with httpx.Client(base_url=url, timeout=600) as client:
        event = client.post(CALL, json=settings).json()["event_id"]
        answer = client.get(f"{CALL}/{event}").text
    assert "event: complete" in answer, answer


# Who waits


class Crowd:
    """Clients in another process, each with an address of its own.

    Attributes:
        come: Has them call.
        go: Has them hang up.
    """

    def __init__(self, client: Callable, *given: Any) -> None:
        context = get_context("spawn")
        self.come, self.go = context.Event(), context.Event()
        given = (client, self.come, self.go, *given)
        self._process = context.Process(target=wait_in_line, args=given, daemon=True)

    def __enter__(self) -> Crowd:
        self._process.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.go.set()
        self._process.join()


def wait_in_line(client: Callable, come: Any, go: Any, url: str, *given: Any) -> None:
    """Has clients call and read what they are told; they hang up at the end."""

    def wait(number: int) -> None:
        transport = httpx.HTTPTransport(local_address=f"127.0.2.{number + 1}")
        with httpx.Client(base_url=url, timeout=600, transport=transport) as requests:
            client(requests, *given)

    come.wait()
    for number in range(WAITING):
        Thread(target=wait, args=(number,), daemon=True).start()
    go.wait()


def wait_as_call(client: httpx.Client, settings: dict[str, Any], form: Form) -> None:
    answer = client.post(CALL, json=settings)
    answer.raise_for_status()
    read_all(client, f"{CALL}/{answer.json()['event_id']}")


def wait_as_page(client: httpx.Client, settings: dict[str, Any], form: Form) -> None:
    session = uuid4().hex
    form.send(client, "prepare", session)
    read_session(client, session)
    form.send(client, "run", session)
    read_all(client, f"gradio_api/queue/data?session_hash={session}")


def read_all(client: httpx.Client, path: str) -> None:
    with client.stream("GET", path) as answer:
        for _ in answer.iter_lines():
            pass


if __name__ == "__main__":
    main()
