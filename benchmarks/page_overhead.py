"""What the page costs beside the model: from a click to the model's first work, and while calls
wait.

    python benchmarks/page_overhead.py
    python benchmarks/page_overhead.py --runs 9 --steps 20

The embedded model runs at 544p. A click is the page's own two events, the check and the run, sent
as the browser sends them. Runs that nobody waits behind take turns with runs behind which 20 calls
wait, each with a client in another process that reads how far it is. What other threads than the
model's compute meanwhile tells more than seconds do where other programs run too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from threading import Event, Thread
from time import perf_counter, process_time, sleep, thread_time
from typing import Any
from uuid import uuid4

import httpx

WAITING = 20
STARTS = 120  # seconds in which a click must get to the model
CALL = "gradio_api/call/v2/generate"
SHARES: list[float] = []  # of the time of each denoising: what other threads computed meanwhile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="runs of each kind (%(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="steps of a run (%(default)s)")
    arguments = parser.parse_args()
    with served() as (url, page, model_called):
        settings = {"prompt": "a calm lake", "resolution": "544p", "num_frames": 5}
        settings["num_inference_steps"] = arguments.steps
        run(url, settings)  # warms up
        clicks = [click(url, page, settings, model_called) for _ in range(arguments.runs)]
        print(f"from click to the model: {1000 * median(clicks):.0f} ms", flush=True)
        alone, crowded = [], []
        for _ in range(arguments.runs):
            alone.append(denoising(url, settings))
            with waiting(url, settings):
                crowded.append(denoising(url, settings))
        for what, found in (("alone", alone), ("with a full queue", crowded)):
            seconds, shares = zip(*found, strict=True)
            print(
                f"denoising {what}: {median(seconds):.3f} s, from {min(seconds):.3f} to "
                f"{max(seconds):.3f}; the page's own threads compute for {median(shares):.2%} of it"
            )


def denoising(url: str, settings: dict[str, Any]) -> tuple[float, float]:
    """Seconds of a run's denoising, and the share of them that other threads computed for."""
    SHARES.clear()
    return run(url, settings), max(SHARES[:2])


@contextmanager
def served() -> Iterator[tuple[str, Any, Event]]:
    """The page: its address, itself, and what is set when the model is first called."""
    import torch

    import app
    from ultragen.runs.loading import load_models
    from ultragen.runs.worker import stop_all

    torch.set_num_threads(1)
    models, called = load_models(), Event()
    encode, pipeline = models.native.encode_prompt, type(models.native)
    denoise = pipeline.__call__

    def noting(*values: Any, **options: Any) -> Any:
        called.set()
        return encode(*values, **options)

    def measured(*values: Any, **options: Any) -> Any:
        wall, all_threads, own = perf_counter(), process_time(), thread_time()
        output = denoise(*values, **options)
        others = process_time() - all_threads - (thread_time() - own)
        SHARES.append(others / (perf_counter() - wall))
        return output

    models.native.encode_prompt = noting
    pipeline.__call__ = measured
    with tempfile.TemporaryDirectory() as folder:
        blocks = app.build(models, Path(folder))
        launch = app.launch_options()
        _, url, _ = blocks.launch(**launch, prevent_thread_lock=True, quiet=True)
        try:
            yield url, blocks, called
        finally:
            stop_all(30)
            blocks.close(verbose=False)


def click(url: str, page: Any, settings: dict[str, Any], model_called: Event) -> float:
    """Seconds from a click to the model's first work."""
    from ultragen.web.settings import SETTINGS

    numbers: dict[str, int] = {}
    for number, function in page.fns.items():
        numbers.setdefault(function.name, number)  # drafts have later ones of these names
    shown = [component._id for component in page.fns[numbers["prepare"]].inputs]
    session = uuid4().hex
    model_called.clear()
    with httpx.Client(base_url=url, timeout=600) as client:
        config = client.get("config").json()
        kept = {each["id"]: each["props"].get("value") for each in config["components"]}
        filled = dict(zip(SETTINGS, (kept[number] for number in shown), strict=True)) | settings
        values = list(filled.values())
        began = perf_counter()
        for name, data in (("prepare", values), ("run", [*values, None, None])):
            body = {"data": data, "fn_index": numbers[name], "session_hash": session}
            client.post("gradio_api/queue/join", json=body).raise_for_status()
            if name == "run":
                if not model_called.wait(STARTS):
                    raise TimeoutError(f"The model was not called in {STARTS} s.")
                took = perf_counter() - began
            read_session(client, session)
    return took


def read_session(client: httpx.Client, session: str) -> None:
    """Reads a session's answers until its call has ended."""
    with client.stream("GET", f"gradio_api/queue/data?session_hash={session}") as answer:
        for line in answer.iter_lines():
            if '"process_completed"' in line:
                assert '"success":true' in line.replace(" ", ""), line
                return


def run(url: str, settings: dict[str, Any]) -> float:
    """A run through the API; returns its seconds of denoising."""
    with httpx.Client(base_url=url, timeout=600) as client:
        event = client.post(CALL, json=settings).json()["event_id"]
        answer = client.get(f"{CALL}/{event}").text
    last = answer.rpartition("event: complete\ndata: ")[2].strip()
    return json.loads(last)[3]["seconds"]["measured"]["denoise"]


@contextmanager
def waiting(url: str, settings: dict[str, Any]) -> Iterator[None]:
    """Has so many calls wait as the queue takes, once the next run has begun."""
    context = get_context("spawn")
    end = context.Event()
    process = context.Process(target=wait_in_line, args=(url, settings, end))
    process.start()
    try:
        yield
    finally:
        end.set()
        process.join()


def wait_in_line(url: str, settings: dict[str, Any], end: Any) -> None:
    """Clients that call and read, each with an address of its own; they hang up at the end."""

    def client(number: int) -> None:
        sleep(0.5)  # the run that is measured comes first
        transport = httpx.HTTPTransport(local_address=f"127.0.2.{number + 1}")
        with httpx.Client(base_url=url, timeout=600, transport=transport) as calls:
            answer = calls.post(CALL, json=settings)
            answer.raise_for_status()
            with calls.stream("GET", f"{CALL}/{answer.json()['event_id']}") as stream:
                for _ in stream.iter_lines():
                    if end.is_set():
                        return
                end.wait()

    for number in range(WAITING):
        Thread(target=client, args=(number,), daemon=True).start()
    end.wait()


if __name__ == "__main__":
    main()
