"""The page starts behind proxies and ends by signals, with nothing half; old results are swept."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import gradio as gr
import httpx
import pytest
from fakes import until
from gradio import http_server
from paths import ROOT, SUPPORT
from ports import free_port

from ultragen.files import UNFINISHED, whole_result, write_text
from ultragen.runs.progress import Cancelled
from ultragen.runs.worker import stream
from ultragen.runs.write import remove_old
from ultragen.web import cache, proxies, server


class FakeBlocks:
    """Launched, it begins to write a clip that would take a minute."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def launch(self, **options: Any) -> None:
        def work(report, cancelled) -> None:
            with whole_result(self.folder) as folder:
                for index in range(600):
                    (folder / "clip.mp4").write_text(str(index))
                    if cancelled.wait(0.1):
                        raise Cancelled

        Thread(target=lambda: list(stream(work)), daemon=True).start()

    def close(self) -> None:
        time.sleep(60)  # a client that reads for ever


def serve(folder: Path, ignored: list[int]) -> None:
    for number in server.ENDING:
        signal.signal(getattr(signal, number), signal.SIG_DFL)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    server.serve(FakeBlocks(folder), lambda: (folder / "swept").touch())


def started(folder: Path, ignored: tuple[int, ...] = ()):
    process = get_context("fork").Process(target=serve, args=(folder, list(ignored)))
    process.start()
    while not (list(folder.glob(f"{UNFINISHED}*/files/*")) and (folder / "swept").exists()):
        assert process.is_alive()
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("name", server.ENDING)
def test_a_signal_ends_the_page_with_nothing_half(tmp_path: Path, name: str) -> None:
    process = started(tmp_path)
    began = time.monotonic()
    os.kill(process.pid, getattr(signal, name))
    process.join(10)
    assert time.monotonic() - began < 5
    assert process.exitcode == 128 + getattr(signal, name)
    assert [path.name for path in tmp_path.iterdir()] == ["swept"]


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    process = started(tmp_path, (signal.SIGHUP,))
    os.kill(process.pid, signal.SIGHUP)
    time.sleep(0.3)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGTERM)
    process.join(10)
    assert process.exitcode == 128 + signal.SIGTERM


def test_a_killed_page_leaves_what_the_next_one_sweeps(tmp_path: Path) -> None:
    process = started(tmp_path)
    remove_old(tmp_path, age=60)
    assert list(tmp_path.glob(f"{UNFINISHED}*/files/clip.mp4"))  # it still runs
    process.kill()
    process.join()
    remove_old(tmp_path, age=60)
    assert [path.name for path in tmp_path.iterdir()] == ["swept"]


def test_results_go_after_a_day_and_not_while_they_are_sent(tmp_path: Path) -> None:
    now = time.time()
    for name, changed, read in (("old", 90_000, 50_000), ("sent", 90_000, 5), ("new", 80_000, 999)):
        clip = tmp_path / name / "native.mp4"
        clip.parent.mkdir()
        clip.write_text("clip")
        os.utime(clip, (now - read, now - changed))
        os.utime(clip.parent, (now - changed, now - changed))
    (tmp_path / "empty").mkdir()  # what an earlier version left when it was killed
    os.utime(tmp_path / "empty", (now - 90_000, now - 90_000))
    (tmp_path / "made-just-now").mkdir()
    write_text(tmp_path / "download" / "native.gif", "another kind of clip")
    write_text(tmp_path / "taken" / "metadata.json", "{}")  # Gradio has removed its clips
    remove_old(tmp_path, 86_400)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "download", "made-just-now", "new", "sent",
    ]  # fmt: skip
    remove_old(tmp_path / "nowhere", 86_400)


# Proxies


@pytest.fixture
def environment(monkeypatch) -> dict[str, str]:
    """An environment of its own."""
    found: dict[str, str] = {}
    monkeypatch.setattr(proxies.os, "environ", found)
    return found


def test_localhost_is_never_proxied(environment: dict[str, str]) -> None:
    environment |= {"no_proxy": "example.org,localhost", "HTTP_PROXY": "http://proxy:3128"}
    proxies.reach_localhost()
    assert environment["no_proxy"].split(",") == [
        "example.org", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::",
    ]  # fmt: skip
    assert environment["NO_PROXY"].split(",") == list(proxies.LOCAL)
    assert environment["HTTP_PROXY"] == "http://proxy:3128"


@pytest.mark.parametrize("there", [True, False])
def test_proxies_that_can_not_be_used_are_named(environment, monkeypatch, capsys, there) -> None:
    monkeypatch.setattr(proxies, "find_spec", lambda name: object() if there else None)
    environment |= {"ALL_PROXY": "socks://proxy:1", "https_proxy": "socks5h://proxy:1"}
    proxies.reach_localhost()
    assert ("https_proxy" in environment) == there and "ALL_PROXY" not in environment
    said = capsys.readouterr().err.splitlines()
    assert len(said) == (1 if there else 2) and all("is left out" in line for line in said)


def has_ipv6() -> bool:
    with suppress(OSError), socket.socket(socket.AF_INET6) as tried:
        tried.bind(("::1", 0))
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_page_starts_behind_proxies_and_without_a_home(tmp_path: Path, address: str) -> None:
    if address == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    copy = tmp_path / "ultragen" / "hash" / "poster.jpg"  # of a page that was killed
    write_text(copy, "poster")
    days = "app.KEPT_FOR = -1; " if address == "::1" else ""  # what is left there is old at once
    code = f"import app, fakes; app.load_models = fakes.fake_models; {days}app.main()"
    port = free_port(address)
    nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "HTTP_PROXY", "https_proxy")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={
            **os.environ,
            **nowhere,
            "ALL_PROXY": "socks://127.0.0.1:9",
            "HOME": "/proc/nowhere",  # not even root can write there
            "PYTHONPATH": f"{ROOT}{os.pathsep}{SUPPORT}",
            "GRADIO_TEMP_DIR": str(tmp_path),
            "GRADIO_SERVER_NAME": address,
            "GRADIO_SERVER_PORT": str(port),
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        opener, deadline = build_opener(ProxyHandler({})), time.monotonic() + 90
        url = f"http://[::1]:{port}/" if address == "::1" else f"http://{address}:{port}/"
        while time.monotonic() < deadline and process.poll() is None:
            try:
                assert opener.open(url, timeout=5).status == 200
                break
            except URLError:
                time.sleep(0.5)
        until(lambda: copy.exists() == (not days))
        process.terminate()
        _, said = process.communicate(timeout=5)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "Traceback" not in said


def test_only_ipv6_addresses_are_rewritten_for_gradio(environment) -> None:
    for asked, found in (("", None), ("0.0.0.0", None), ("::1", "[::1]"), ("[::]", "[::]")):
        environment["GRADIO_SERVER_NAME"] = asked
        assert server.ipv6_name() == found
        assert ("GRADIO_SERVER_NAME" in environment) == (found is None)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that is taken at 127.0.0.2, and free at 127.0.0.1."""
    with socket.create_server(("127.0.0.2", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.2", "0.0.0.0"])
def test_the_port_is_looked_for_where_the_page_will_listen(
    environment, monkeypatch, taken: int, address: str
) -> None:
    launched: list[dict[str, Any]] = []
    blocks = SimpleNamespace(launch=lambda **options: launched.append(options))
    free = free_port("0.0.0.0")
    monkeypatch.setattr(server, "PORTS", [taken, free])
    environment["GRADIO_SERVER_NAME"] = address
    server.launch(blocks, quiet=True)
    [options] = launched
    assert (options["server_name"], options["server_port"]) == (address, free) and options["quiet"]
    environment["GRADIO_SERVER_PORT"] = str(taken)
    with pytest.raises(server.NoPort, match=f"Port {taken} can't be had at {address}"):
        server.launch(blocks)
    for impossible in ("70000", str(taken)):
        environment |= {"GRADIO_SERVER_NAME": "192.0.2.1", "GRADIO_SERVER_PORT": impossible}
        with pytest.raises(server.NoPort, match="if this machine has that address"):
            server.launch(blocks)


# The server that can't start ends its thread.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_port_that_is_lost_to_another_process_is_no_end(
    environment, monkeypatch, taken: int
) -> None:
    """Gradio's MCP server has been started by then, and starts only once."""
    blocks = gr.Interface(str.upper, "text", "text", api_name="upper")
    monkeypatch.setattr(server, "PORTS", [taken, free_port("127.0.0.2")])
    monkeypatch.setattr(server, "can_listen", lambda address, port: True)
    monkeypatch.setattr(http_server, "LOCALHOST_NAME", "127.0.0.1")  # where Gradio looks itself
    environment["GRADIO_SERVER_NAME"] = "127.0.0.2"
    server.launch(blocks, mcp_server=True, quiet=True)
    try:
        assert blocks.server_port == server.PORTS[1]
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        accept = {"accept": "application/json, text/event-stream"}
        url = f"{blocks.local_url}gradio_api/mcp/"
        assert httpx.post(url, json=ping, headers=accept, trust_env=False).status_code == 200
    finally:
        blocks.close(verbose=False)


def test_gradio_gets_a_folder_of_its_own(environment) -> None:
    for asked in ("/here", "/here/ultragen"):
        environment["GRADIO_TEMP_DIR"] = asked
        assert cache.own_folder() == Path("/here/ultragen")
        assert environment["GRADIO_TEMP_DIR"] == "/here/ultragen"


def test_copies_that_a_killed_page_left_go_after_a_day(tmp_path: Path) -> None:
    for name in ("hash/poster.jpg", "tmp123", "runs/clip/native.mp4", "example/poster.jpg"):
        write_text(tmp_path / name, "old")
    (tmp_path / "empty").mkdir()
    cache.remove_old_copies(tmp_path, age=60)
    assert len(list(tmp_path.iterdir())) == 5
    cache.remove_old_copies(tmp_path, age=-1, stay=[str(tmp_path / "example/poster.jpg")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["example", "runs"]
    assert (tmp_path / "runs/clip/native.mp4").exists()
    cache.remove_old_copies(tmp_path / "nowhere", age=-1)


def test_names_of_files_that_are_gone_go(tmp_path: Path) -> None:
    there, gone = str(tmp_path / "there.mp4"), str(tmp_path / "gone.mp4")
    Path(there).touch()
    blocks = SimpleNamespace(temp_file_sets=[{there, gone}, {gone}])
    cache.forget_removed(blocks)
    assert blocks.temp_file_sets == [{there}, set()]
