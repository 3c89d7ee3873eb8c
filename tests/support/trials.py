"""What the trials share: a page in a process of its own, what is asked of it, and their table."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import httpx
import psutil
from fakes import until
from paths import ROOT, SUPPORT
from ports import free_port

BOUND = 120.0
"""Seconds without a word from the page after which a request counts as hanging."""
PATIENCE = 240.0
"""Seconds for which a state is waited for that has to come, however busy the machine is."""
LONG = 10.0
"""Minutes from which on trials have a machine of their own. Shorter ones are part of all tests, on
machines as slow and as busy as may be: there no time is a fault."""
CALL = "/gradio_api/call/v2/generate"
SHORT = {"prompt": "a calm lake", "num_frames": 1, "num_inference_steps": 1}
WAY_OUT = re.compile(
    r"choose|must |have \d|from \d|up to|try|again|send|leave|write|there is|of these|in this order"
    r"|such as|such a|for example|nearest|free some|read its|remove|shorten|leave out",
    re.IGNORECASE,
)
COLUMNS = {
    "trial": "trial",
    "requests": "requests",
    "server_errors": "5xx",
    "tracebacks": "tracebacks",
    "hangs": "hangs",
    "no_way_out": "no way out",
    "lost": "lost",
    "order": "out of order by",
    "steps_after": "steps after a cancel",
    "memory": "memory",
    "left": "left over",
    "notes": "notes",
}


@dataclass
class Tally:
    """What came of a trial's requests; threads may share one.

    Attributes:
        trial: What was tried.
        requests: How many there were.
        server_errors: Answers with a status of 500 or more.
        hangs: Requests that took longer than `BOUND`.
        no_way_out: Refusals that don't say what to do.
        lost: Calls that were taken and got no end.
        tracebacks: In what the page's process printed.
        order: By how many places a run began earlier or later than it was called.
        steps_after: The most steps that a run began after its caller had cancelled it.
        memory: By how much the page's process grew.
        left: Files, threads, handles that are still there.
        notes: Anything else.
    """

    trial: str
    requests: int = 0
    server_errors: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    no_way_out: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    order: int | None = None
    steps_after: int | None = None
    memory: float | None = None
    left: list[str] = field(default_factory=list)
    notes: str = ""
    _lock: Lock = field(default_factory=Lock, repr=False)

    def ask(self, client: httpx.Client, method: str, path: str, **given) -> httpx.Response | None:
        """A request; None if it hangs or the connection breaks."""
        what = f"{method} {path} {str(given)[:200]}"
        with self._lock:
            self.requests += 1
        try:
            answer = client.request(method, path, **given)
        except httpx.TimeoutException:
            with self._lock:
                self.hangs.append(what)
            return None
        except httpx.TransportError as error:
            with self._lock:
                self.server_errors.append(f"{what}: {error!r}")
            return None
        if answer.status_code >= 500:
            with self._lock:
                self.server_errors.append(f"{what}: {answer.status_code} {answer.text[:200]}")
        return answer

    def check_message(self, message: str, of: object) -> None:
        """Notes a refusal that does not say what would do."""
        if not WAY_OUT.search(message):
            with self._lock:
                self.no_way_out.append(f"{message[:200]} ({str(of)[:200]})")

    def fails(self) -> dict[str, list[str]]:
        """What must be empty, by its column."""
        names = ("server_errors", "hangs", "no_way_out", "lost", "tracebacks", "left")
        return {name: found for name in names if (found := getattr(self, name))}

    def row(self) -> dict[str, str]:
        """The trial as a row of the table."""
        shown = {}
        for name, column in COLUMNS.items():
            value = getattr(self, name)
            if isinstance(value, list):
                value = len(value)
            if isinstance(value, float):
                value = f"{value:+.1%}"
            shown[column] = "" if value is None else str(value)
        return shown


def table(rows: list[dict[str, str]]) -> list[str]:
    """Rows as lines of one width."""
    lines = [list(COLUMNS.values()), *([row[name] for name in COLUMNS.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


class Page:
    """The page in a process of its own.

    Args:
        folder: Where it keeps all its files.
        delay: Seconds of a step.
        grace: Seconds for which a call waits with nobody waiting for it.
        file_size: Bytes that a file may have, or 0.
        files: Where runs are kept, if elsewhere.

    Attributes:
        url: Its address.
        process: As psutil has it.
        slowness: By how much longer its start took than the processor worked for it: what else runs
            on the machine slows everything down so.
        hold: While this file is there, no step ends.
    """

    def __init__(
        self,
        folder: Path,
        delay: float = 0.02,
        grace: float = 30.0,
        file_size: int = 0,
        files: Path | None = None,
    ) -> None:
        self.folder, self.files = folder, files or folder / "gradio"
        self.steps_log, self.said = folder / "steps.log", folder / "said.log"
        self.hold = folder / "hold"
        trial = {"delay": delay, "grace": grace, "file_size": file_size}
        trial |= {"log": str(self.steps_log), "hold": str(self.hold)}
        self.environment = {
            **os.environ,
            "TRIAL": json.dumps(trial),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{SUPPORT}",
            "GRADIO_TEMP_DIR": str(self.files),
            "OMP_NUM_THREADS": "1",
        }
        self.start()

    def start(self) -> None:
        """Starts it on a free port, and waits until it answers."""
        port = free_port()
        self.url, began = f"http://127.0.0.1:{port}", time.monotonic()
        with self.said.open("a") as said:
            started = subprocess.Popen(
                [sys.executable, str(SUPPORT / "trial_page.py")],
                cwd=ROOT,
                env=self.environment | {"GRADIO_SERVER_PORT": str(port)},
                stdout=said,
                stderr=said,
            )
        self.child, self.process = started, psutil.Process(started.pid)
        while (waited := time.monotonic() - began) < PATIENCE:
            assert started.poll() is None, self.said.read_text()
            try:
                if httpx.get(f"{self.url}/config", timeout=BOUND).status_code == 200:
                    used = self.process.cpu_times()
                    self.slowness = max(1.0, waited / (used.user + used.system))
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError("the page did not start")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ends it by a signal; returns its exit code."""
        if self.child.poll() is None:
            self.child.send_signal(number)
        return self.child.wait(PATIENCE)

    @property
    def runs(self) -> Path:
        return self.files / "ultragen" / "runs"

    def results(self) -> set[str]:
        """The folders of results, finished or not."""
        return {path.name for path in self.runs.glob("*")}

    def whole(self) -> set[str]:
        """Those that are finished."""
        files = ("metadata.json", "native.mp4")
        return {
            path.name
            for path in self.runs.glob("*")
            if all((path / name).is_file() for name in files)
        }

    def half(self) -> list[str]:
        """What no run may leave: folders that are not whole."""
        return sorted(self.results() - self.whole())

    def stays_half(self) -> list[str]:
        """The same, once what goes a moment after a run has had time to."""
        found: list[str] = []

        def nothing() -> bool:
            found[:] = self.half()
            return not found

        with suppress(AssertionError):
            until(nothing, PATIENCE)
        return found

    def steps(self) -> list[tuple[float, int, int]]:
        """Time, seed and number of each step that ended; number -1 where a run began, -2 where it
        was cancelled while it was held."""
        lines = self.steps_log.read_text().splitlines() if self.steps_log.exists() else []
        parts = [line.split() for line in lines]
        return [(float(when), int(seed), int(step)) for when, seed, step in parts]

    def tracebacks(self) -> list[str]:
        """What it has printed of exceptions in our code, and not in what merely passes through."""
        found = []
        for part in self.said.read_text().split("Traceback (most recent call last)")[1:]:
            frames = re.findall(r'File "(.+?)", line', part)
            own = [frame for frame in frames if Path(frame).is_relative_to(ROOT)]
            own = [frame for frame in own if not Path(frame).is_relative_to(sys.prefix)]
            gates = tuple(f"ultragen/web/{name}.py" for name in ("gate", "cache", "cards"))
            if (own and not own[-1].endswith(gates)) or own[-1:] == frames[-1:] != []:
                found.append(part[:4000][-1500:])
        return found

    def client(self, **options) -> httpx.Client:
        """Asks it, on connections that are given up before the page itself does, with which a
        request could cross."""
        limits = httpx.Limits(keepalive_expiry=1.0)
        return httpx.Client(base_url=self.url, limits=limits, timeout=BOUND, **options)

    def use(self) -> dict[str, int]:
        """Bytes, handles and threads of the process."""
        with self.process.oneshot():
            return {
                "memory": self.process.memory_info().rss,
                "handles": self.process.num_fds(),
                "threads": self.process.num_threads(),
            }


@contextmanager
def page(folder: Path, **settings) -> Iterator[Page]:
    """A page that ends with the test."""
    started = Page(folder, **settings)
    try:
        yield started
    finally:
        started.end(signal.SIGKILL)


@dataclass(frozen=True)
class Taken:
    """A call's name, and the two moments between which the page took it."""

    event: str
    sent: float
    answered: float


def take_place(tally: Tally, client: httpx.Client, **given) -> Taken | None:
    """Calls, and tries again while there is no place; None if the call is lost."""
    end = time.monotonic() + PATIENCE
    while (sent := time.monotonic()) < end:
        answer = tally.ask(client, "POST", CALL, json=SHORT | given)
        if answer is not None and answer.status_code == 200:
            return Taken(answer.json()["event_id"], sent, time.monotonic())
        if answer is None or answer.status_code != 429:
            break
        tally.check_message(answer.json()["error"], "a full queue")
        time.sleep(0.5)
    tally.lost.append(f"{given}: no place")
    return None


def start_call(tally: Tally, client: httpx.Client, **given) -> str:
    """Calls as `take_place` does; returns the call's name, empty if it is lost."""
    taken = take_place(tally, client, **given)
    return taken.event if taken else ""


def displaced(taken: dict[int, Taken], began: list[int]) -> int:
    """By how many places a run began earlier or later than it was called, at most.

    Args:
        taken: When calls were taken, by their seeds. Of two that may have been taken at one time,
            either may come first.
        began: Seeds in the order of their runs.
    """
    places = list(enumerate(began))
    most = 0
    for place, seed in places:
        call = taken[seed]
        overtaken = sum(taken[other].answered < call.sent for _, other in places[place + 1 :])
        waited_for = sum(call.answered < taken[other].sent for _, other in places[:place])
        most = max(most, overtaken, waited_for)
    return most


def read_call(tally: Tally, client: httpx.Client, event: str) -> str:
    """The whole answer of a call; empty if it hangs."""
    answer = tally.ask(client, "GET", f"/gradio_api/call/generate/{event}")
    return "" if answer is None else answer.text


def hang_up(client: httpx.Client, event: str, after: int = 1) -> None:
    """Reads an answer up to its so many-th event, and closes the connection."""
    with client.stream("GET", f"/gradio_api/call/generate/{event}") as answer:
        for line in answer.iter_lines():
            if line.startswith("event: generating"):
                after -= 1
            if not after or "event: complete" in line or "event: error" in line:
                return


def is_served(tally: Tally, client: httpx.Client, **given) -> bool:
    """Whether a short run ends with its clips."""
    return "event: complete" in read_call(tally, client, start_call(tally, client, **given))
