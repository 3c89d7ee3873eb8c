"""Clips on real Ray clusters of this machine, with a tiny model in actors of their own."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from commands import one_line, ultragen
from disks import fill, small_disk
from killed_actors import kill_one_at_work
from ray_clusters import two_machines
from wan_files import make_wan

from ultragen.batch.maker import Settings
from ultragen.batch.on_ray import Fetcher, Worker
from ultragen.batch.prompt_files import read_prompts
from ultragen.cli.batch import with_weights
from ultragen.dataset.encoding_processes import Processes
from ultragen.files import UNFINISHED
from ultragen.presets import EMBEDDED, WAN
from ultragen.runs import choice
from ultragen.weights.released import load_ultragen

ray = pytest.importorskip("ray")
UNKNOWN = choice.Choice("wan", WAN, why="", other="")
FAST = ("--model", "model", "--frames", 5, "--guidance", 1)
COUNT = 4


def kill_one(out: Path, killed: list[bool]) -> None:
    """Ends an actor by SIGKILL once a clip is begun, as the kernel does where memory runs out."""
    end = time.monotonic() + 120
    while not killed and time.monotonic() < end:
        if kill_one_at_work(out, psutil.Process()):
            killed.append(True)
        time.sleep(0.02)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a cluster of two machines."""
    with two_machines() as address:
        yield address


def test_an_actor_is_killed_and_nothing_is_lost_or_made_twice(folder, cluster, monkeypatch, capsys):
    """The clips are those that one process makes; one of them fails, which ends nothing."""
    # It is on the machine's list until it is read, so its prompt is found to fail late.
    Path("broken.safetensors").write_bytes(b"no LoRA")
    monkeypatch.setenv("ULTRAGEN_LORA", "broken.safetensors")
    lines = [{"prompt": text} for text in Path("p.txt").read_text().splitlines() if text]
    lines[2]["loras"] = {"broken": 1.0}
    Path("p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = ("batch", "p.jsonl", *FAST, "--steps", 6)

    killed: list[bool] = []
    killer = threading.Thread(target=kill_one, args=(Path("two"), killed))
    killer.start()
    code = ultragen(*run, "--out", "two", "--ray", cluster, "--workers", 2)
    killer.join()
    printed, told = capsys.readouterr()
    assert code == 1 and "1 clips failed" in told and len(killed) == 1
    numbers = [line.split()[1] for line in printed.splitlines() if f"/{COUNT} " in line]
    assert sorted(numbers) == [f"{index:05d}" for index in range(COUNT)]
    [failed] = map(json.loads, Path("two/failed.jsonl").read_text().splitlines())
    assert failed["line"] == 3 and "no LoRA 'broken'" in failed["reason"]
    assert not any(path.name.startswith(UNFINISHED) for path in Path("two").iterdir())
    assert not Path("two/.attempts").exists()

    assert ultragen(*run, "--out", "one") == 1
    clips = [{path.name: path.read_bytes() for path in Path(out).glob("*.mp4")} for out in
             ("one", "two")]  # fmt: skip
    assert len(clips[0]) == COUNT - 1 and clips[0] == clips[1]
    assert clips[0]["00000.mp4"] != clips[0]["00001.mp4"]  # the same prompt, but another seed
    tables = [Path(out, "metadata.jsonl").read_text() for out in ("one", "two")]
    assert tables[0] == tables[1]


def test_a_disk_that_fills_up_stops_the_run_which_goes_on_later(folder, cluster, capsys):
    with small_disk(folder / "clips", "20m") as disk:
        filler = fill(disk)
        run = ("batch", "p.txt", *FAST, "--steps", 1, "--out", disk, "--ray", cluster)
        assert ultragen(*run) == 1
        told = capsys.readouterr().err
        assert "disk is full" in told and "the same command goes on" in told
        assert not list(disk.glob("*.mp4")) and not (disk / "failed.jsonl").exists()
        filler.unlink()
        assert ultragen(*run) == 0
        assert len(list(disk.glob("*.mp4"))) == COUNT
        assert not any(path.name.startswith(UNFINISHED) for path in disk.iterdir())
    capsys.readouterr()


def test_clusters_that_do_not_fit(folder, cluster, monkeypatch, capsys):
    run = ("batch", "p.txt", *FAST, "--ray", cluster)
    assert ultragen(*run, "--workers", 3) == 2
    assert "--workers 3 is more than the cluster has room for: it has 2 CPUs" in one_line(capsys)
    ours = ray.__version__
    monkeypatch.setattr(ray, "__version__", "2.1.0")
    assert ultragen(*run) == 1
    said = one_line(capsys)
    assert f"Ray: {ours}" in said and "Ray: 2.1.0" in said
    assert "Install ray==2.1.0 there" in said
    assert not list(Path("clips").glob("*"))


def test_what_ends_an_actors_work_is_told(tmp_path, monkeypatch):
    """An actor that raised would be started again and again."""
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a lake")
    [clip] = read_prompts(Path("p.txt"), {}, EMBEDDED, 1, "{index}").clips
    outcome = Worker(Settings(tmp_path, "p.txt", str(tmp_path / "nowhere")))(clip)
    assert outcome.state == "stopped" and "nowhere" in outcome.reason


def test_the_cluster_tells_what_weights_bring_that_it_alone_has(
    folder, cluster, tmp_path, monkeypatch
):
    """So that clips are listed with the settings that they are made with."""
    files = make_wan(tmp_path / "files")
    student = load_ultragen(files.ultragen)
    student.register_to_config(distilled_steps=3, distilled_shift=7.0)
    student.save_pretrained(tmp_path / "student")
    files = replace(files, ultragen=tmp_path / "student")
    for name, value in files.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(choice, "weights_are_here", lambda asked: False)
    found = with_weights(UNKNOWN, Processes(), tmp_path / "out", cluster).preset
    assert (found.num_inference_steps, found.guidance_scale, found.shift) == (3, 1.0, 7.0)
    assert not list((tmp_path / "out").iterdir())


def test_why_weights_can_not_be_had_is_told(monkeypatch):
    monkeypatch.setenv("ULTRAGEN_WEIGHTS", "nowhere.safetensors")
    assert "nowhere.safetensors" in Fetcher()(UNKNOWN)


def test_without_ray(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    Path("p.txt").write_text("a lake")
    assert ultragen("batch", "p.txt", "--model", "embedded", "--ray", "auto") == 1
    assert "pip install -e '.[ray]'" in one_line(capsys)
