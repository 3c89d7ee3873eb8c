"""Folders of clips become datasets: what these hold, runs that stop, files that can't be read."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clip_folders import (
    BUCKETS,
    LEFT_OUT,
    RATE,
    TAKEN,
    dataset_process,
    make_clips,
    moving,
    run_to_end,
)
from paths import ROOT

from ultragen.dataset import clip_reading, encoding, planning, report
from ultragen.dataset.buckets import Bucket, fit
from ultragen.dataset.encoders import CaptionEncoder, encode_clip, load_autoencoder, locate_base
from ultragen.dataset.encoding import Encoding
from ultragen.dataset.encoding_processes import Processes
from ultragen.dataset.frames import read_frames
from ultragen.dataset.planning import Request
from ultragen.dataset.shard_files import ShardWriter
from ultragen.dataset.shards import LatentDataset
from ultragen.model.autoencoder import normalize
from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import EMBEDDED_MODEL
from ultragen.video import encode_video

CPU = torch.device("cpu")
SMALL = tuple(map(Bucket.parse, BUCKETS))
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "ULTRAGEN_DTYPE": "float32",
}


@pytest.fixture(scope="module", autouse=True)
def _exact():
    """Whatever this machine's CPU is fast in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ULTRAGEN_DTYPE", "float32")
        yield


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A folder which no test may change."""
    return make_clips(tmp_path_factory.mktemp("people") / "clips")


@pytest.fixture
def own_clips(clips, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(clips, tmp_path / "clips"))


def asked(folder: Path, out: Path, **changes) -> Request:
    return Request(folder, out, SMALL, float(RATE), **{"model": "embedded", **changes})


def run(request: Request) -> tuple[report.Report, list[str]]:
    """The report, and what was said before."""
    said: list[str] = []
    return Encoding(request, Processes(), lambda fraction, text: None, said.append).run(), said


@pytest.fixture(scope="module")
def made(clips, tmp_path_factory) -> LatentDataset:
    """The embedded model's latents of all clips."""
    out = tmp_path_factory.mktemp("made")
    run(asked(clips, out))
    return LatentDataset(out)


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".json", ".safetensors")
    }


# What is in a dataset


def test_every_clip_is_taken_or_named(clips, tmp_path):
    found, said = run(asked(clips, tmp_path))
    assert {each.name: each.reason for each in found.left_out} == LEFT_OUT
    assert found.clips == Counter({"64x96x5": 2, "96x64x5": 1, "64x96x1": 1})
    lines = (tmp_path / "left_out.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == sorted(LEFT_OUT)
    dataset = LatentDataset(tmp_path)
    assert {clip.name: clip.size for clip in dataset.clips} == TAKEN
    assert all(clip.captions == (f"a clip called {clip.name}, in waves",) for clip in dataset.clips)
    [plan] = said
    assert "2  64x96x5" in plan and "that are free" in plan
    for row in ("2  64x96x5", "1  too small for any bucket", f"{tmp_path}: 4 clips"):
        assert row in str(found)


def test_latents_are_those_of_the_autoencoder(made, clips):
    vae = load_autoencoder("embedded", EMBEDDED_MODEL, CPU)
    for number, clip in enumerate(made.clips):
        frames = np.stack(list(read_frames(clips / clip.name, RATE)))[: clip.num_frames]
        video = fit(frames, Bucket(*clip.size)).movedim(1, 0)[None]
        whole = normalize(vae, vae.encode(video * 2 - 1).latent_dist.mode())[0]
        assert torch.allclose(made.latents(number).float(), whole, rtol=1e-2, atol=1e-2)
        assert made.latents(number).dtype == torch.bfloat16


@pytest.mark.parametrize("model", ["embedded", "wan"])
def test_pieces_are_encoded_as_the_whole(model, files):
    vae = load_autoencoder(model, locate_base(model, files.base if model == "wan" else None), CPU)
    video = torch.from_numpy(moving(29, 64, 96)).movedim(-1, 0) / 127.5 - 1
    pieces = encode_clip(vae, video.split([9, 8, 8, 4], dim=1))
    whole = vae.encode(video[None]).latent_dist.mode()
    assert pieces.shape[1] == 8
    assert torch.allclose(pieces.float(), normalize(vae, whole)[0], rtol=1e-2, atol=1e-2)


def test_all_clips_of_a_source(clips, tmp_path, made):
    found, _ = run(asked(clips, tmp_path, clips="all"))
    assert found.clips["64x96x5"] == 3 + 2
    dataset = LatentDataset(tmp_path)
    lying = [n for n, clip in enumerate(dataset.clips) if clip.name == "lying.mp4"]
    assert [dataset.clips[n].start for n in lying] == [0, 5 / RATE, 10 / RATE]
    assert torch.equal(dataset.latents(lying[0]), made.latents(0))
    frames = np.stack(list(read_frames(clips / "lying.mp4", RATE)))[10:15]
    vae = load_autoencoder("embedded", EMBEDDED_MODEL, CPU)
    last = encode_clip(vae, [fit(frames, Bucket(64, 96, 5)).movedim(1, 0) * 2 - 1])
    assert torch.allclose(dataset.latents(lying[2]).float(), last.float(), rtol=1e-2, atol=1e-2)


def test_small_clips_are_enlarged_if_asked(clips, tmp_path):
    found, _ = run(asked(clips, tmp_path, enlarge=True))
    assert "small.mp4" in {clip.name for clip in LatentDataset(tmp_path).clips}
    assert "small.mp4" not in {each.name for each in found.left_out}


# Wan


@pytest.fixture(scope="module")
def made_by_wan(clips, tmp_path_factory, files) -> LatentDataset:
    out = tmp_path_factory.mktemp("wan")
    run(asked(clips, out, model="wan", base=files.base))
    return LatentDataset(out)


def test_embeddings_are_those_of_the_pipeline(made_by_wan, files):
    pipe = UltraGenPipeline.from_wan(files.base, files.ultragen, dtype=torch.float32)
    for number, clip in enumerate(made_by_wan.clips):
        expected, empty = pipe.encode_prompt(clip.captions[0])
        for text, full in ((made_by_wan.text(number), expected), (made_by_wan.empty_text(), empty)):
            assert full is not None and text.dtype == torch.bfloat16
            assert torch.allclose(text.float(), full[0, : len(text)], rtol=1e-2, atol=1e-2)
            assert not full[0, len(text) :].any()


def test_captions_are_cleaned_and_cut_as_prompts_are(files):
    encoder = CaptionEncoder(files.base, CPU)
    pipe = UltraGenPipeline.from_wan(files.base, files.ultragen, dtype=torch.float32)
    captions = ["  a  lake &amp; a hill\n", "waves " * 600, "Ünicode – «quoted»", ""]
    found = dict(encoder.encode(captions))
    assert set(found) == set(captions)
    for caption in captions:
        full = pipe.encode_prompt("a lake", caption)[1][0]
        assert len(found[caption]) == 512 if len(caption) > 512 else len(found[caption]) < 60
        close = torch.isclose(found[caption].float(), full[: len(found[caption])], 1e-2, 1e-2)
        assert close.all()
        assert not full[len(found[caption]) :].any()


def test_latents_of_wan(made_by_wan, clips, files):
    assert {clip.name: clip.size for clip in made_by_wan.clips} == TAKEN
    vae = load_autoencoder("wan", files.base, CPU)
    for number, clip in enumerate(made_by_wan.clips):
        frames = np.stack(list(read_frames(clips / clip.name, RATE)))[: clip.num_frames]
        video = fit(frames, Bucket(*clip.size)).movedim(1, 0)[None]
        whole = normalize(vae, vae.encode(video * 2 - 1).latent_dist.mode())[0]
        assert torch.allclose(made_by_wan.latents(number).float(), whole, rtol=2e-2, atol=2e-2)


def test_several_captions_of_a_clip(own_clips, tmp_path, files):
    rows = ["video,long,short", 'lying.mp4,"a long one, of waves",waves', "still.png,a still,waves"]
    (own_clips / "metadata.csv").write_text("\n".join(rows))
    columns = ("long", "short")
    run(asked(own_clips, tmp_path / "out", model="wan", base=files.base, caption_columns=columns))
    dataset = LatentDataset(tmp_path / "out")
    assert [clip.captions for clip in dataset.clips] == [
        ("a long one, of waves", "waves"),
        ("a still", "waves"),
    ]
    assert torch.equal(dataset.text(0, 1), dataset.text(1, 1))
    assert len(dataset.text(0)) > len(dataset.text(0, 1)) > len(dataset.empty_text())


# Runs that stop and go on


def test_the_same_command_again_does_nothing(made, clips, monkeypatch):
    before = files_of(made.folder)

    def never(*arguments) -> None:
        raise AssertionError("a network was loaded")

    monkeypatch.setattr(encoding, "load_autoencoder", never)
    monkeypatch.setattr(planning, "probe", never)
    found, said = run(asked(clips, made.folder))
    assert found.clips.total() == 4 and said == []
    assert files_of(made.folder) == before


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(made, clips, tmp_path):
    """SIGKILL after the first shard; the rest is made by another run, none of it twice."""
    out = tmp_path / "out"
    options = [word for bucket in BUCKETS for word in ("--bucket", bucket)]
    slow = (
        "import time; from ultragen.dataset import encoding, shard_files as files;"
        "files.SHARD_BYTES = 1;"
        "encode = encoding.encode_clip; n = []; encoding.encode_clip = lambda *a:"
        " (n.append(1), time.sleep(60 if len(n) > 1 else 0), encode(*a))[-1]"
    )
    command = dataset_process(clips, "--out", out, "--model", "embedded", *options, before=slow)
    process = subprocess.Popen(command, env=ENVIRONMENT)
    try:
        deadline = time.monotonic() + 120
        while not list((out / "latents").glob("[!.]*.json")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (out / "latents" / ".0123.partial.safetensors").write_bytes(b"half")
    before = files_of(out)
    assert 0 < len(LatentDataset(out)) < 4
    run(asked(clips, out))
    assert LatentDataset(out).fingerprint() == made.fingerprint()
    after = files_of(out)
    assert {name: after[name] for name in before if "partial" not in name} == {
        name: state for name, state in before.items() if "partial" not in name
    }
    assert not list(out.rglob("*.partial*"))


@pytest.mark.slow
def test_two_processes_make_what_one_makes(made, clips, tmp_path):
    options = [word for bucket in BUCKETS for word in ("--bucket", bucket)]
    # With --cpu, accelerate 1.15.0 starts one process whatever their number.
    launcher = ("accelerate.commands.launch", "--multi_gpu", "--num_processes=2")
    launcher += ("--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no")
    words = (clips, "--out", tmp_path, "--model", "embedded", *options)
    printed = run_to_end(dataset_process(*words, launcher=launcher), **ENVIRONMENT)
    assert printed.count("Clips taken") == 1 and "4 clips" in printed
    assert LatentDataset(tmp_path).fingerprint() == made.fingerprint()
    assert len(list((tmp_path / "latents").glob("*.json"))) == 2


def test_another_number_of_processes_goes_on(made, clips, tmp_path, monkeypatch):
    """Of three processes one ran; then one alone does what the others left."""
    part = Processes(rank=1, count=3)
    monkeypatch.setattr(Processes, "gather", lambda processes, part: [part])
    Encoding(asked(clips, tmp_path), Processes(), print, print)._open(EMBEDDED_MODEL)
    Encoding(asked(clips, tmp_path), part, print, print).run()
    assert 0 < len(LatentDataset(tmp_path)) < 4
    run(asked(clips, tmp_path))
    assert LatentDataset(tmp_path).fingerprint() == made.fingerprint()


def test_what_was_encoded_is_kept_when_the_user_stops(clips, tmp_path, monkeypatch):
    encode, calls = encoding.encode_clip, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(encoding, "encode_clip", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(asked(clips, tmp_path))
    assert [clip.name for clip in LatentDataset(tmp_path).clips] == ["lying.mp4"]


def test_files_that_changed_are_named(own_clips, tmp_path):
    out = tmp_path / "out"
    run(asked(own_clips, out))
    before = LatentDataset(out).fingerprint()
    (own_clips / "still.txt").write_text("another caption")
    encode_video(moving(9, 64, 96), own_clips / "lying.mp4", RATE)
    (own_clips / "standing.mp4").unlink()
    found, said = run(asked(own_clips, out))
    assert len(said) == 1 and "3 of the files" in said[0] and "lying.mp4" in said[0]
    assert found.clips.total() == 4 and LatentDataset(out).fingerprint() == before
    _, said = run(asked(own_clips, out, overwrite=True))
    assert not any("changed" in line for line in said)
    assert len(LatentDataset(out)) == 3 and LatentDataset(out).fingerprint() != before


def test_what_was_left_out_is_tried_again_once_it_has_changed(own_clips, tmp_path):
    out = tmp_path / "out"
    run(asked(own_clips, out))
    (own_clips / "broken.mp4").write_bytes(b"still no video")
    for _ in range(2):
        run(asked(own_clips, out))
        shards = len(list((out / "latents").glob("*.json")))
        assert shards == 2  # the second time nothing is tried
    encode_video(moving(6, 64, 96), own_clips / "broken.mp4", RATE)
    found, said = run(asked(own_clips, out))
    assert [line for line in said if "changed" in line] == []
    assert found.clips.total() == 5 and "broken.mp4" not in {e.name for e in found.left_out}


# Disk and memory


def test_too_small_a_disk_ends_before_the_work(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(report.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr(encoding, "load_autoencoder", None)
    with pytest.raises(OSError, match=r"take about 0\.0 MB, and 0\.0 MB are free .* --out"):
        run(asked(clips, tmp_path / "out"))


def test_a_disk_that_is_full_leaves_what_is_written(made, clips, tmp_path, monkeypatch):
    write, written = Path.write_bytes, []

    def full(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) > 2:
            write(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(encoding, "ShardWriter", lambda *a: ShardWriter(*a, most_bytes=1))
    with pytest.raises(OSError, match=r"The disk of .* is full, .* What was written before stays"):
        run(asked(clips, tmp_path))
    assert 0 < len(LatentDataset(tmp_path)) < 4
    assert not list(tmp_path.rglob("*.partial*"))
    monkeypatch.undo()
    run(asked(clips, tmp_path))
    assert LatentDataset(tmp_path).fingerprint() == made.fingerprint()


def test_memory_that_runs_out_is_told_in_a_line(clips, tmp_path, monkeypatch):
    def too_large(*arguments) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(encoding, "encode_clip", too_large)
    with pytest.raises(RuntimeError, match=r"memory ran out .* smaller --bucket"):
        run(asked(clips, tmp_path))


# Files that can't be read


def test_a_damaged_file_gives_the_clips_before_the_damage(own_clips, tmp_path):
    whole = own_clips / "lying.mp4"
    encode_video(moving(60, 64, 96), whole, RATE)
    content = bytearray(whole.read_bytes())
    at = content.index(b"mdat")
    tail = at + (len(content) - at) * 2 // 3
    content[tail:] = bytes(len(content) - tail)  # the index stands before the frames
    whole.write_bytes(content)
    found, _ = run(asked(own_clips, tmp_path / "out", clips="all"))
    [reason] = [each.reason for each in found.left_out if each.name == "lying.mp4"]
    assert reason.startswith("damaged from")
    taken = [clip for clip in LatentDataset(tmp_path / "out").clips if clip.name == "lying.mp4"]
    assert 0 < len(taken) < 12


def test_a_file_that_fails_today_is_tried_again(clips, tmp_path, monkeypatch, made):
    def gone(path: Path, frame_rate: float):
        if path.name == "lying.mp4":
            raise OSError(errno.EIO, "Input/output error")
        yield from read_frames(path, frame_rate)

    monkeypatch.setattr(clip_reading, "read_frames", gone)
    found, _ = run(asked(clips, tmp_path))
    [reason] = [each.reason for each in found.left_out if each.name == "lying.mp4"]
    assert reason.startswith("failed: ") and found.clips.total() == 3
    monkeypatch.undo()
    run(asked(clips, tmp_path))
    assert LatentDataset(tmp_path).fingerprint() == made.fingerprint()


def test_a_missing_package_is_no_fault_of_the_files(clips, tmp_path, monkeypatch):
    def missing(path: Path) -> None:
        raise OSError("Reading clips needs one more package: pip install av")

    monkeypatch.setattr(planning, "probe", missing)
    with pytest.raises(OSError, match="pip install av"):
        run(asked(clips, tmp_path))


def test_latents_that_are_not_finite_are_left_out(clips, tmp_path, monkeypatch):
    encode = encoding.encode_clip

    def broken(vae, pieces):
        latents = encode(vae, pieces)
        return latents * float("nan") if latents.shape[1] == 1 else latents

    monkeypatch.setattr(encoding, "encode_clip", broken)
    found, _ = run(asked(clips, tmp_path))
    assert {e.name: e.reason for e in found.left_out} == LEFT_OUT | {
        "still.png": "latents that are not finite"
    }


def test_names_and_captions_that_no_file_can_hold(own_clips, tmp_path):
    entries = [
        {"video": "lying.mp4", "prompt": "\ud800"},
        {"video": "still.png", "prompt": "waves"},
    ]
    (own_clips / "metadata.json").write_text(json.dumps(entries))
    found, _ = run(asked(own_clips, tmp_path / "out"))
    assert "name or caption is not UTF-8" in {each.reason for each in found.left_out}
    assert [clip.name for clip in LatentDataset(tmp_path / "out").clips] == ["still.png"]


def test_a_dataset_inside_the_folder_is_not_read(own_clips):
    run(asked(own_clips, own_clips / "latents"))
    (own_clips / "latents" / "preview.jpg").touch()
    (own_clips / "latents" / "preview.png").write_bytes((own_clips / "still.png").read_bytes())
    (own_clips / "latents" / "preview.txt").write_text("no clip")
    found, _ = run(asked(own_clips, own_clips / "latents"))
    assert len(LatentDataset(own_clips / "latents")) == 4
    assert {each.name for each in found.left_out} == set(LEFT_OUT)


def test_a_dataset_around_the_folder(own_clips):
    run(asked(own_clips, own_clips.parent))
    assert len(LatentDataset(own_clips.parent)) == 4


# What is asked for


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "other"}, "model must be one of wan, embedded"),
        ({"buckets": (Bucket(48, 96, 5),)}, "multiples of 32; the nearest is 64x96x5"),
        ({"frame_rate": 0.0}, "frame rate must be positive"),
    ],
)
def test_requests_that_can_not_be_met(clips, tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        run(replace(asked(clips, tmp_path), **changes))
    assert list(tmp_path.iterdir()) == []


def test_other_settings_are_refused(made, clips):
    with pytest.raises(ValueError, match=r"frame_rate .*--overwrite"):
        run(replace(asked(clips, made.folder), frame_rate=6.0))
    with pytest.raises(ValueError, match=r"buckets .*--overwrite"):
        run(replace(asked(clips, made.folder), buckets=SMALL[:1]))


def test_time_that_is_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: now[0])
    remaining = report.Remaining(10)
    assert "unknown" in str(remaining) and remaining.fraction == 0
    now[0] = 60.0
    remaining.add(1)
    assert str(remaining) == "0:09:00 left" and remaining.fraction == 0.1
