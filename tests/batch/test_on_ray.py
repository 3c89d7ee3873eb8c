"""Clips on real Ray clusters of this machine, with a tiny model in actors of their own."""

from __future__ import annotations

import json
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from commands import one_line, ultragen
from killed_actors import kill_one_at_work

from ultragen import __version__
from ultragen.batch import on_ray
from ultragen.batch.maker import Settings
from ultragen.batch.on_ray import Worker
from ultragen.batch.prompt_files import read_prompts
from ultragen.files import UNFINISHED
from ultragen.presets import EMBEDDED

ray = pytest.importorskip("ray")
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
    """Two machines, as Ray's own tests make them of one; yields their address."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        made.add_node(num_cpus=1)
        yield made.address
    finally:
        made.shutdown()


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


def test_a_cluster_of_this_machine_starts_by_itself(tmp_path, monkeypatch):
    def none(*_: object) -> None:
        raise ConnectionError  # that of another test is not found

    monkeypatch.setattr(on_ray, "_init", none)
    with on_ray._cluster("auto", 3) as started:
        assert started.cluster_resources()["CPU"] >= 3
        assert on_ray._check_nodes(started, tmp_path, "CPU") == 1
    assert not ray.is_initialized()


def test_a_machine_that_lacks_something(tmp_path):
    on_ray._judge("node", tmp_path, __version__, True)
    with pytest.raises(OSError, match=f"node does not see the folder {tmp_path}: choose an --out"):
        on_ray._judge("node", tmp_path, *on_ray._look(str(tmp_path / "token")))
    with pytest.raises(OSError, match=f"node has UltraGen 0.0.1: install {__version__} there"):
        on_ray._judge("node", tmp_path, "0.0.1", True)
    with pytest.raises(OSError, match="node has no UltraGen"):
        on_ray._judge("node", tmp_path, "", True)


def test_gpus_have_an_actor_each():
    assert on_ray._room({"GPU": 2.0, "CPU": 32.0}, None) == (2, {"num_gpus": 1})
    assert on_ray._room({"GPU": 2.0, "CPU": 32.0}, 1) == (1, {"num_gpus": 1})
    assert on_ray._room({"CPU": 8.0}, None) == (1, {"num_cpus": 8})
    assert on_ray._room({"CPU": 8.0}, 3) == (3, {"num_cpus": 2})
    with pytest.raises(ValueError, match="it has 2 GPUs"):
        on_ray._room({"GPU": 2.0}, 3)


def test_what_ends_an_actors_work_is_told(tmp_path, monkeypatch):
    """An actor that raised would be started again and again."""
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a lake")
    [clip] = read_prompts(Path("p.txt"), {}, EMBEDDED, 1, "{index}").clips
    worker = Worker(Settings(tmp_path, "p.txt", str(tmp_path / "nowhere")), str(tmp_path / "none"))
    rows = worker({"clip": [pickle.dumps(clip)]})
    assert rows["state"] == ["stopped"] and "nowhere" in rows["reason"][0]


def test_without_ray(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    Path("p.txt").write_text("a lake")
    assert ultragen("batch", "p.txt", "--model", "embedded", "--ray", "auto") == 1
    assert "pip install -e '.[ray]'" in one_line(capsys)
